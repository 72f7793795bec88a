r"""Rewards for tasks whose answer is a number or a few words.

Numbers are compared as exact fractions: 1,000 is 1000, 3.50 is 3.5 and \frac{1}{2} is 0.5. Signs of currency and
percent carry no value: 50% is 50, not one half. Anything else is compared as text.
"""

import re
from fractions import Fraction

from grpo_jax.rewards.example import Example
from grpo_jax.rewards.needs import needs

MAX_SCANNED = 20_000  # characters at the end of a response that are searched for an answer
MAX_NUMBER = 100  # characters; a longer run of digits is not an answer, and is slow to compare

# [0-9], because \d also matches the digits of other scripts.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+"
_SIGN = r"(?:(?<![0-9A-Za-z)\]}])[-+])?"  # neither the minus in 10-5 nor the dash of a list is a sign
_NUMBER = re.compile(rf"({_SIGN})\$?({_DIGITS})(?:/([0-9]+))?(?:[eE]([-+]?[0-9]{{1,2}})(?![0-9]))?%?")
_HASHES = re.compile(rf"####[ \t]*({_NUMBER.pattern})[ \t.]*$", re.MULTILINE)
_FRAC = re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_BOX = "\\boxed{"


def _has_answer(example: Example) -> None:
    if not _without_stop(example.answer):
        raise ValueError(
            f"exact compares with the answer, and {example.label} has none."
            " Name the column that holds the answers, or use a reward that needs none."
        )


def _gold_number(example: Example) -> Fraction:
    number = read_number(example.answer)
    if number is None:
        raise ValueError(
            f"last_number needs answers that are numbers, and that of {example.label} is {example.answer[:80]!r}."
            " Use exact for answers in words."
        )
    return number


@needs(_has_answer)
def exact(example: Example, response: str) -> float:
    """1 if the response is the answer and nothing else; a final full stop is ignored."""
    _has_answer(example)
    answer, number = read_number(response), read_number(example.answer)
    if answer is not None and number is not None:
        return float(answer == number)
    return float(_without_stop(response) == _without_stop(example.answer))


@needs(_gold_number)
def last_number(example: Example, response: str) -> float:
    r"""1 if the final number of the response is the answer.

    It is the last `#### 12` at the end of a line or the last `\boxed{12}`, whichever comes later; without either, it is
    the last number of the response. The text around the number does not matter, so `12 apples` counts as 12.
    """
    return float(_final_number(_plain(response[-MAX_SCANNED:])) == _gold_number(example))


def read_number(text: str) -> Fraction | None:
    """The number that a text consists of, or None if it is anything else."""
    text = text.strip()
    if len(text) > MAX_NUMBER:
        return None
    match = _NUMBER.fullmatch(_without_stop(_plain(text)).strip("$ "))
    return _value(match) if match else None


def _final_number(text: str) -> Fraction | None:
    hashes = list(_HASHES.finditer(text))
    box = text.rfind(_BOX)
    if hashes and hashes[-1].start() > box:
        return read_number(hashes[-1].group(1))
    return _last_number_of(text if box < 0 else _braced(text, box + len(_BOX)))


def _last_number_of(text: str) -> Fraction | None:
    matches = list(_NUMBER.finditer(text))
    return _value(matches[-1]) if matches and len(matches[-1].group()) <= MAX_NUMBER else None


def _braced(text: str, start: int) -> str:
    """The text from `start` to the closing brace of the one just before it; empty if that brace is never closed."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    return ""


def _value(match: re.Match[str]) -> Fraction | None:
    sign, digits, denominator, exponent = match.groups()
    if denominator is not None and int(denominator) == 0:
        return None
    value = Fraction(digits.replace(",", "")) / int(denominator or 1) * Fraction(10) ** int(exponent or 0)
    return -value if sign.startswith("-") else value


def _plain(text: str) -> str:
    """The text with numbers in LaTeX or typographic notation rewritten in plain characters."""
    for fancy, plain in (("\u2212", "-"), ("{,}", ","), ("\\!", ""), ("\\$", "$"), ("\\%", "%")):
        text = text.replace(fancy, plain)
    return _FRAC.sub(r"\1/\2", text)


def _without_stop(text: str) -> str:
    return text.strip().removesuffix(".").rstrip()
