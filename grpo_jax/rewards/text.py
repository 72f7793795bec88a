"""Rewards for how a response is written: without repeating itself, in one language, close to a given text."""

import difflib
import functools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.needs import needs

# Scripts by language, as the Unicode names of letters begin with them. Languages of one script are not told apart.
SCRIPTS = {
    **dict.fromkeys(("cs da de en es fi fr hu id it nl no pl pt ro sv sw tr vi").split(), frozenset({"LATIN"})),
    **dict.fromkeys(("be bg mk ru sr uk").split(), frozenset({"CYRILLIC"})),
    **dict.fromkeys(("ar fa ur").split(), frozenset({"ARABIC"})),
    **dict.fromkeys(("hi mr ne").split(), frozenset({"DEVANAGARI"})),
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ka": frozenset({"GEORGIAN"}),
    "ko": frozenset({"HANGUL"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK"}),
}
SHARE = 0.1  # of a prompt's letters that make its kana Japanese

# A word, or a letter of a script that is written without spaces.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+")
_NO_LANGUAGE = re.compile(  # code, formulas, variables, tags and addresses
    r"```.*?```|`[^`\n]*`|\$[^$\n]{0,200}\$|\\\[[^]]{0,500}\\\]|\\\([^)]{0,200}\\\)|\\[A-Za-z]+|</?[A-Za-z_]+>|https?://\S+"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z])",
    re.DOTALL,
)


@dataclass(frozen=True)
class RepetitionPenalty:
    """0 for a response that never repeats `words` words in a row, and down to -`most` for one that does little else.

    Minus `most` times the share of such sequences that occurred before, as in "Demystifying Long Chain-of-Thought
    Reasoning in LLMs" (arXiv:2502.03373). In scripts without spaces a letter counts as a word.
    """

    words: int = 3  # of a sequence
    most: float = 1.0  # what is taken away

    def __post_init__(self) -> None:
        check_range("words", self.words, least=1, most=1000)
        check_range("most", self.most, least=0, most=1000)

    def __call__(self, example: Example, response: str) -> float:
        """0 at most."""
        words = _WORD.findall(response.lower())
        sequences = list(zip(*(words[start:] for start in range(self.words)), strict=False))
        repeated = len(sequences) - len(set(sequences))
        return -self.most * repeated / len(sequences) if repeated else 0.0


@dataclass(frozen=True)
class LanguageConsistency:
    """The share of a response's letters that are of the language's script, as DeepSeek-R1 rewards it
    (arXiv:2501.12948), there by words.

    Code, formulas and tags do not count. English is told from Chinese or Russian by this, but not from German. A
    response without letters earns 1 if there is anything in it.
    """

    language: str | None = None  # such as en, zh or ja; null: that of the prompt

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in SCRIPTS:
            raise ValueError(f"language must be one of {', '.join(sorted(SCRIPTS))}, or null; got {self.language!r}.")

    def check(self, example: Example) -> None:
        """Refuses a prompt whose language has to be known and that has no letters."""
        if self.language is None and not _scripts(_asked(example)):
            raise ValueError(f"LanguageConsistency finds no letters in the prompt of {example.label}: name a language.")

    def __call__(self, example: Example, response: str) -> float:
        """From 0 to 1."""
        self.check(example)
        wanted = _dominant(_scripts(_asked(example))) if self.language is None else SCRIPTS[self.language]
        counts = _scripts(response)
        if not counts:
            return float(bool(response.strip()))
        return sum(count for script, count in counts.items() if script in wanted) / sum(counts.values())


def _answer(example: Example) -> str:
    if not example.answer.strip():
        raise ValueError(f"alike compares with the answer, and {example.label} has none.")
    return example.answer.strip()


@needs(_answer)
def alike(example: Example, response: str) -> float:
    """How much of the answer and of the response are the same, in order: 1 if they are equal (difflib's ratio)."""
    answer, response = _answer(example), response.strip()
    if len(response) > 2 * len(answer) + 100:  # comparing takes the product of both lengths
        return 0.0
    return difflib.SequenceMatcher(None, answer, response, autojunk=False).ratio()


def _asked(example: Example) -> str:
    """The prompt's text: of a chat, the last message of the user."""
    if isinstance(example.prompt, str):
        return example.prompt
    return next((message["content"] for message in reversed(example.prompt) if message["role"] == "user"), "")


def _scripts(text: str) -> Counter[str]:
    """How many letters a text has of each script."""
    counts: Counter[str] = Counter()
    for character, count in Counter(_NO_LANGUAGE.sub(" ", text)).items():
        script = _script(character)
        if script is not None:
            counts[script] += count
    return counts


@functools.lru_cache(maxsize=65536)
def _script(character: str) -> str | None:
    """The script of a letter; None for anything else, and for the letters of mathematics."""
    name = unicodedata.name(character, "") if character.isalpha() else ""
    first = name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").partition(" ")[0]
    return first if first in _KNOWN else None


def _dominant(counts: Counter[str]) -> frozenset[str]:
    """The script of most letters; all three of Japanese where there are kana."""
    if counts["HIRAGANA"] + counts["KATAKANA"] > SHARE * sum(counts.values()):
        return SCRIPTS["ja"]
    return frozenset({counts.most_common(1)[0][0]})


_KNOWN = frozenset().union(*SCRIPTS.values()) | {
    "ARMENIAN",
    "ETHIOPIC",
    "GUJARATI",
    "KANNADA",
    "KHMER",
    "LAO",
    "MYANMAR",
}
