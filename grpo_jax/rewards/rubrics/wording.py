"""What a text mentions, and whether it says so or denies it: "not in Namba" does not name Namba as the place to go.

Letters are compared without case, width, accents of Latin letters and invisible characters. A phrase is found between
word boundaries of any script, and in its plural; scripts that have no spaces between words have no boundaries. In words
that mix scripts, letters of Cyrillic and Greek that look like Latin ones are read as these. What denies a mention is in
`denials`; what it cannot tell is a mention.
"""

import bisect
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grpo_jax.rewards.rubrics.denials import STRUCK, is_denial, is_denied_after, spelled_out

INVISIBLE = dict.fromkeys([0x00AD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF])
TYPED = {"'": "\u2019\u2018\u02bc", '"': "\u201c\u201d", "-": "\u2010\u2011\u2212"}
PLAIN = {ord(fancy): simple for simple, group in TYPED.items() for fancy in group}
LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u03bf\u03bd\u03c1\u03b1\u03b9\u03ba\u03c4\u03c5",
    "aeopcyxijshdovpaiktu",
)
WITHOUT_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
LETTER = r"[^\W_]"
GAP = r"[\s-]+"
LONGEST_CLAUSE = 300  # characters before a mention in which a denial is looked for
MOST_HEADINGS = 50  # that deny what stands below them
PLURAL_FROM = 4  # letters of a word that is also found with an s or es after it

ITEM = r"(?:[-*\u2022\u2013]|[0-9]+[.)])\s"  # what a line of a list begins with
SENTENCE = re.compile(
    rf"""(?<![.!?])[.!?]+(?=["')\]*_]*(?:\s|$))|[\u3002\uff01\uff1f;]|\n\s*\n|\n(?=\s*{ITEM})""",
)
VERBS = (
    "go|try|visit|head|choose|pick|eat|stay|start|walk|take|see|come|make|get|find|use|look|it|you|we|they|there|i|he|she"
    "|just|so|then|and then"
)
ALL_BUT = "".join(
    rf"(?<!{word} )" for word in ("anywhere", "anything", "everywhere", "everything", "nothing", "all", "else")
)
CLAUSE = re.compile(
    rf"\b(?:{ALL_BUT}but|however|although|though|whereas|while|instead(?! of)|except that)\b"
    rf"|,\s*(?=(?:{VERBS})\b)|(?:,|\band|\bor)\s+(?=(?:not|no|never|avoid|skip|neither)\b)"
    r"|\s[-\u2013\u2014]+\s|\u2014|:"
)
BULLET = re.compile(rf"\s*{ITEM}")


def plain(text: str) -> str:
    """The text as it is compared: folded in case, width and accents, with single spaces inside lines."""
    text = text.casefold() if text.isascii() else _folded(text)
    return re.sub(r"[^\S\n]+", " ", text)


def _folded(text: str) -> str:
    """A text with letters of any script, without the accents of Latin ones."""
    letters: list[str] = []
    latin = False
    for letter in unicodedata.normalize("NFKD", text.translate(PLAIN).translate(INVISIBLE)).casefold():
        if not unicodedata.combining(letter):
            latin = letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")
        elif latin:
            continue
        letters.append(letter)
    text = unicodedata.normalize("NFC", "".join(letters))
    return re.sub(r"[^\W\d_]+", lambda word: _latin(word[0]), text)


def _latin(word: str) -> str:
    """A word in which letters of another script that look like Latin ones are these, if it has Latin ones, too."""
    return word.translate(LOOKALIKES) if re.search("[a-z]", word) else word


@functools.lru_cache(maxsize=4096)
def pattern(phrase: str) -> tuple[str, re.Pattern[str]]:
    """The first word of a phrase, and what finds the phrase in a plain text that has this word."""
    words = re.split(GAP, plain(phrase).strip())
    text = GAP.join(re.escape(word) for word in words)
    bare = re.compile(rf"[{WITHOUT_SPACES}]")
    before = rf"(?<!{LETTER})" if re.match(LETTER, words[0]) and not bare.match(words[0]) else ""
    last = words[-1]
    ends = re.search(rf"{LETTER}$", last) is not None and not bare.match(last[-1])
    plural = "(?:s|es)?" if ends and last.isascii() and last.isalpha() and len(last) >= PLURAL_FROM else ""
    return words[0], re.compile(before + text + plural + (rf"(?!{LETTER})" if ends else ""))


@dataclass(frozen=True)
class Mentions:
    """How often a text says something, and how often it denies it."""

    affirmed: int
    denied: int

    @property
    def stands(self) -> bool:
        """Whether the text says it, and nowhere the opposite."""
        return self.affirmed > 0 and self.denied == 0


NOTHING = Mentions(0, 0)


class Wording:
    """A text that is asked what it mentions."""

    def __init__(self, text: str) -> None:
        self.text = spelled_out(plain(text))
        self._struck = [found.span() for found in STRUCK.finditer(self.text)]
        breaks = sorted(found.span() for kind in (SENTENCE, CLAUSE) for found in kind.finditer(self.text))
        self._closings = [start for start, _ in breaks]
        self._openings = list(itertools.accumulate((end for _, end in breaks), max))
        self._headings = list(itertools.islice(self._denying_headings(), MOST_HEADINGS))

    def spans(self, spellings: Sequence[str]) -> list[tuple[int, int]]:
        """Where any of the spellings stands."""
        known = [pattern(spelling) for spelling in spellings]
        return sorted({m.span() for word, finds in known if word in self.text for m in finds.finditer(self.text)})

    def mentions(self, spellings: Sequence[str], allowed: Sequence[tuple[int, int]] = ()) -> Mentions:
        """How the text speaks of something that has these spellings, except where it is a part of an allowed span.
        Spans are sorted.
        """
        found = self.spans(spellings)
        if not found:
            return NOTHING
        starts, reach = [start for start, _ in allowed], list(itertools.accumulate((end for _, end in allowed), max))
        spans = []
        for start, end in found:
            before = bisect.bisect_right(starts, start)
            if before == 0 or reach[before - 1] < end:
                spans.append((start, end))
        denied = sum(self.denies(start, end) for start, end in spans)
        return Mentions(len(spans) - denied, denied)

    def denies(self, start: int, end: int) -> bool:
        """Whether the clause around a place in the text denies it, or the heading of the list that it stands in."""
        index = bisect.bisect_right(self._openings, start)
        clause = max(self._openings[index - 1] if index else 0, start - LONGEST_CLAUSE)
        index = bisect.bisect_left(self._closings, end)
        closing = self._closings[index] if index < len(self._closings) else len(self.text)
        earlier = is_denial(self.text[clause:start])
        headed = any(first <= start < last for first, last in self._headings)
        struck = any(first <= start < last for first, last in self._struck)
        return (earlier != headed) or struck or is_denied_after(self.text, start, end, closing)

    def _denying_headings(self) -> Iterator[tuple[int, int]]:
        """The places of lists and sentences that follow a heading such as `Places to avoid:`."""
        for found in re.finditer(r":", self.text):
            index = bisect.bisect_right(self._openings, found.start())
            begins = max(self._openings[index - 1] if index else 0, found.start() - LONGEST_CLAUSE)
            if is_denial(self.text[begins : found.start()]):
                yield found.end(), _end_of_list(self.text, found.end())


def _end_of_list(text: str, start: int) -> int:
    """Where what follows a colon ends: the bullets below it, or the rest of its sentence."""
    rest = text[start:]
    if rest.lstrip(" ").startswith("\n"):
        position = start
        for line in rest.splitlines(keepends=True):
            if line.strip() and not BULLET.match(line):
                return position
            position += len(line)
        return position
    ends = SENTENCE.search(rest)
    return len(text) if ends is None else start + ends.start()


@functools.lru_cache(maxsize=256)
def wording_of(text: str) -> Wording:
    """What is asked about a text, which is prepared once for all rules."""
    return Wording(text)
