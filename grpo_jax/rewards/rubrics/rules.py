"""Rules: what a criterion can be judged by without a judge. The same text always has the same value, from 0 to 1.

Its table has the first field of one of the `KINDS` below as a key, such as `rule = {any_of = ["Namba", "Tenma"]}`, and
the others as options. `bound` gives it the columns of an example.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from grpo_jax.rewards.rubrics.columns import COLUMN, filled, phrases
from grpo_jax.rewards.rubrics.language import LANGUAGES, is_written_in
from grpo_jax.rewards.rubrics.wording import SENTENCE, Wording, plain, wording_of
from grpo_jax.rewards.structured import read_json

Phrases = str | tuple[str | tuple[str, ...], ...]  # an item is a phrase, or its spellings
Test = Callable[[str], float]
LONGEST = 20_000  # characters of a response that are looked at

FORMS = Literal["prose", "list", "plain", "json", "complete"]
PROSE = 0.2  # share of common words below which a text is a list of words and no sentences
SMALL_WORDS = frozenset(
    "a an and are as at be because before but by can do for from go has have here if in into is it its more most not of"
    " on one or so some such than that the their then there these they this to try up very visit was we when where"
    " which while who will with you your".split()
)


@runtime_checkable
class Rule(Protocol):
    """What a criterion is judged by."""

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test of responses to an example that has these columns."""


@dataclass(frozen=True)
class AnyOf:
    """How many of some things a text mentions, as a share of `at_least`; nothing if it is more than `at_most`.

    Of a column with fewer items than that, all of them. What it denies does not count: see `wording`.
    """

    any_of: Phrases
    at_least: int = 1
    at_most: int | None = None

    def __post_init__(self) -> None:
        if self.at_least < 1 or (self.at_most is not None and self.at_most < self.at_least):
            raise ValueError(
                f"at_least must be 1 or more, and at_most no less than that; got {self.at_least} and {self.at_most}."
            )
        written = (self.any_of,) if isinstance(self.any_of, str) else self.any_of
        if self.at_least > len(written) and not any(COLUMN.search(item) for item in written if isinstance(item, str)):
            raise ValueError(f"at_least is {self.at_least}, and any_of has {len(written)} to mention; ask for no more.")

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test with the phrases of an example."""
        items = phrases(self.any_of, columns)

        def test(response: str) -> float:
            count = mentioned(wording_of(response[:LONGEST]), items)
            too_many = self.at_most is not None and count > self.at_most
            return 0.0 if too_many else min(count / max(1, min(self.at_least, len(items))), 1.0)

        return test


@dataclass(frozen=True)
class AllOf:
    """The share of some things that a text mentions and does not deny."""

    all_of: Phrases

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test with the phrases of an example."""
        items = phrases(self.all_of, columns)
        return lambda response: mentioned(wording_of(response[:LONGEST]), items) / len(items) if items else 1.0


@dataclass(frozen=True)
class NoneOf:
    """1 if a text mentions none of some things, except to deny them."""

    none_of: Phrases

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test with the phrases of an example."""
        items = phrases(self.none_of, columns)

        def test(response: str) -> float:
            wording = wording_of(response[:LONGEST])
            return float(not any(wording.mentions(item).affirmed for item in items))

        return test


@dataclass(frozen=True)
class OnlyOf:
    """1 if a text mentions nothing of `among` that is not in `only`, except to deny it.

    A name within a longer allowed one does not count: `York` in `New York`.
    """

    only: Phrases
    among: Phrases

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test with the phrases of an example."""
        allowed, known = phrases(self.only, columns), phrases(self.among, columns)
        spellings = {plain(spelling) for item in allowed for spelling in item}
        others = [item for item in known if not spellings & {plain(spelling) for spelling in item}]

        def test(response: str) -> float:
            wording = wording_of(response[:LONGEST])
            inside = sorted(span for item in allowed for span in wording.spans(item))
            return float(not any(wording.mentions(item, inside).affirmed for item in others))

        return test


@dataclass(frozen=True)
class Consistent:
    """1 if a text does not both say and deny one and the same of some things."""

    consistent: Phrases

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test with the phrases of an example."""
        items = phrases(self.consistent, columns)

        def test(response: str) -> float:
            found = [wording_of(response[:LONGEST]).mentions(item) for item in items]
            return float(not any(each.affirmed and each.denied for each in found))

        return test


@dataclass(frozen=True)
class Within:
    """The share of the numbers and names in a response that the text `within` has, too; 1 if there are none.

    A name is a word that begins with a capital letter and no sentence.
    """

    within: str

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test with the text of an example."""
        known = frozenset(re.findall(r"\w+", plain(filled(self.within, columns))))

        def test(response: str) -> float:
            found = facts(response[:LONGEST])
            return sum(_is_known(fact, known) for fact in found) / len(found) if found else 1.0

        return test


@dataclass(frozen=True)
class Words:
    """1 for a number of words in this range, and less the further it is outside: half as many earn 0.5."""

    words: tuple[int, int]

    def __post_init__(self) -> None:
        check_range_of("words", self.words)

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test, the same for every example."""
        return lambda response: _within(len(re.findall(r"\w[\w'\u2019-]*", response)), self.words)


@dataclass(frozen=True)
class Sentences:
    """1 for a number of sentences in this range, and less the further it is outside."""

    sentences: tuple[int, int]

    def __post_init__(self) -> None:
        check_range_of("sentences", self.sentences)

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test, the same for every example."""

        def test(response: str) -> float:
            pieces = [piece for piece in SENTENCE.split(plain(response[:LONGEST])) if re.search(r"\w", piece)]
            return _within(len(pieces), self.sentences)

        return test


@dataclass(frozen=True)
class Pattern:
    """1 if a regular expression is found in the text. It is trusted: nothing limits how long it backtracks."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern needs a regular expression; {self.pattern!r} is not one: {error}.") from error

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test; columns stand in it as plain text."""
        escaped = {name: re.escape(str(value)) for name, value in columns.items()}
        compiled = re.compile(re.sub(r"\{([A-Za-z_][\w.-]*)\}", lambda m: filled(m[0], escaped), self.pattern))
        return lambda response: float(compiled.search(response[:LONGEST]) is not None)


@dataclass(frozen=True)
class Form:
    """1 for a form: `prose` has sentences and not only key words, a `list` has bullets or numbers, `plain` no marks of
    Markdown, `json` is one JSON value, and what is `complete` ends as a sentence does.
    """

    form: FORMS

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test, the same for every example."""
        return lambda response: float(IS_OF_FORM[self.form](response[:LONGEST].strip()))


@dataclass(frozen=True)
class Language:
    """How much of a text is in a language, by its code: en, de, fr, es, it, pt, nl, or one with a script of its own."""

    language: str

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {self.language!r}.")

    def bound(self, columns: Mapping[str, Any]) -> Test:
        """The test, the same for every example."""
        return lambda response: is_written_in(plain(response[:LONGEST]), self.language)


KINDS = (AnyOf, AllOf, NoneOf, OnlyOf, Consistent, Within, Words, Sentences, Pattern, Form, Language)


def mentioned(wording: Wording, items: Sequence[Sequence[str]]) -> int:
    """How many of the items a text mentions without denying them anywhere."""
    return sum(wording.mentions(item).stands for item in items)


def facts(text: str) -> list[str]:
    """The numbers and names in a text, as `plain` writes them, each once."""
    found: dict[str, None] = {}
    for number in re.findall(r"\d[\d.,:]*", text):
        found[plain(number.rstrip(".,:"))] = None
    for sentence in re.split(r"[.!?:]\s+|\n+", text):
        words = re.findall(r"[^\W\d_][\w'\u2019-]*", sentence)
        for word in words[1:]:
            if word[0].isupper() and word not in ("I", "I'm", "I'll", "I've", "I'd"):
                found[re.sub(r"'s$", "", plain(word))] = None
    return list(found)


def check_range_of(name: str, sizes: tuple[int, int]) -> None:
    """Refuses a range that no text can be in."""
    if not 0 <= sizes[0] <= sizes[1]:
        raise ValueError(f"{name} is a smallest and a largest number, such as [20, 80]; got {list(sizes)}.")


def _within(count: int, sizes: tuple[int, int]) -> float:
    least, most = sizes
    if count < least:
        return count / least
    return 1.0 if count <= most else most / count


def _is_known(fact: str, known: frozenset[str]) -> bool:
    parts = re.findall(r"\w+", fact)
    return all(part in known or part.removesuffix("s") in known for part in parts)


def _is_prose(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", plain(text))
    return len(words) > 3 and sum(word in SMALL_WORDS for word in words) / len(words) >= PROSE


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except ValueError:
        return False
    return True


IS_OF_FORM: Mapping[str, Callable[[str], bool]] = {
    "prose": _is_prose,
    "list": lambda text: len(re.findall(r"(?m)^[^\S\n]*(?:[-*\u2022\u2013]|[0-9]+[.)])\s+\S", text)) >= 2,
    "plain": lambda text: (
        bool(text) and not re.search(r"(?m)\*\*|__|^#{1,6} |```|^[^\S\n]*[-*\u2022]\s|\|.*\||`", text)
    ),
    "json": _is_json,
    "complete": lambda text: bool(
        re.search(r"""[^\W_]\W*[.!?\u3002\uff01\uff1f\u2026]["'\u201d\u2019)\]*_]*\Z""", text)
    ),
}
