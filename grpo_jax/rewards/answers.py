r"""Rewards for tasks whose answer is a number or a few words.

Numbers are compared as exact fractions, as `numbers.py` reads them. What a response marks as its answer, in `\boxed{}`,
after `####` or between `<answer>` and `</answer>`, is read whole or not at all: a list, a root or a product is not its
last number. Without a mark the last number of the text counts, and that, too, is read with all that belongs to it.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from grpo_jax.rewards.example import Example
from grpo_jax.rewards.needs import needs
from grpo_jax.rewards.numbers import plain, read_number, read_quantity
from grpo_jax.rewards.says import says

MAX_SCANNED = 20_000  # characters at the end of a response that are searched for an answer

_BOX = re.compile(r"\\f?boxed(?![A-Za-z])\s*")
_BARE = re.compile(r"[-+$]*(?:\\[dtc]?frac|[0-9])[^\s$]*")
_LISTED = re.compile(r"(?:\s|\$|\\[()\[\]]|[,;&]|and|or|\\text\{\s*(?:and|or)\s*\})*")  # between boxes of one list
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_HEADING = re.compile(r"[\s*_]*(?:[0-9]+[.):]\s+\S|[A-Za-z])")  # of a section, where more lines follow
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_OPEN, _CLOSE = "<answer>", "</answer>"

# In prose, a run of characters that may be one number: digits with what is written in and directly around them.
_RUN = re.compile(
    r"(?:\\(?:sqrt|log|ln|sin|cos|tan|exp|binom|overline|pm|mp|lfloor|lceil)(?![A-Za-z])\s?"  # of what follows
    r"|\\[dtc]?frac\s*(?:[0-9]|\{[^{}\n]{0,60}\})\s*(?:[0-9]|\{[^{}\n]{0,60}\})"
    r"|\\[A-Za-z]+"
    r"|\{[^{}\n]{0,60}\}"
    r"|[\dA-Za-z.,/'\u2019%^_{}$\u20ac\u00a3\u00a5\u20b9\u00b0]"
    r"|(?<=[0-9])\u202f(?=[0-9])"
    r"|(?<=[0-9}])\s?/\s?(?=[0-9\\])"
    r"|(?<=[0-9])\ (?=[0-9]{1,2}/[0-9])"  # mixed numbers
    r"|(?<=[0-9])\s?(?=\\[dtc]?frac)"
    r"|(?<=[0-9}%])\s?(?=\\(?:text|mathrm|mbox))"  # units
    r"|(?<=[0-9])\s?(?:\\times|\\cdot|[\u00d7\u00b7\u22c5xX*])\s?(?=10\^)"
    r"|(?<=[0-9])\*\*(?=[0-9])"  # a power, as programs write it
    r"|(?<=[0-9][eE])[-+](?=[0-9])|(?<=\^)[-+](?=[0-9])"
    r"|(?<=[0-9]):(?=[0-9]))+"  # ratios and times of day
)
_RELATION = re.compile(
    r"\\(?:approx|sim|simeq|implies|to|[rR]ightarrow|therefore|because|equiv|leq?|geq?|lt|gt|neq?|in|quad|qquad)(?![A-Za-z])"
)
_BEFORE = re.compile(r"^(?:[,'/_%}\u00b0]|\.{2,})+")
_AFTER = ".,'/_^{\\\u2019"  # characters at the end of a run that belong to what follows
_MONEY = r"(?:USD|US|CAD|AUD|EUR|GBP|CHF|JPY|CNY|RMB|INR|Rs)"  # may be written directly before a number
_WORD = re.compile(  # whose digits are no number: cm^2, m2, H2O, CO2, x_1
    r"\\?(?:(?:text|mathrm)\{[A-Za-z /]+\}|[A-Za-z]{2,}|[mshgl])\^\{?-?[1-9]\}?|[A-Za-z]+[0-9]+[A-Za-z][0-9A-Za-z]*"
    r"|(?:[kcdm]?m|ft|in|yd|mi)[23]"
    rf"|(?!{_MONEY}[0-9])[A-Za-z_]+[0-9.]+"
)
_NAMED = re.compile(_MONEY)
_FACTOR = re.compile(  # before a bracket that is a part of something larger: -(3), 2(3), 4 * (3)
    r"(?:[-+0-9)\]}^]|(?:[*/\u00d7\u00b7\u22c5]|\\times|\\cdot)\s*)(?:\\left)?\(\s*[-+]?\s*$"
)
_SHORT_UNIT = re.compile(r"(?<=[0-9])[mgshlL]$")  # 15m; in a formula, where a mark is, it is a variable
_LARGE = re.compile(r"\s(?:hundred|thousand|million|billion|trillion)\b", re.IGNORECASE)
_NEGATIVE = re.compile(r"=\s*-\s*$")  # with a space after the minus, too
_GROUP_BEFORE = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})* $")


def _has_answer(example: Example) -> None:
    if not _without_stop(example.answer):
        raise ValueError(
            f"exact compares with the answer, and {example.label} has none."
            " Name the column that holds the answers, or use a reward that needs none."
        )


def _gold_number(example: Example) -> Fraction:
    number = _read_gold(example.answer)
    if number is None:
        raise ValueError(
            f"the answer must be a number, and that of {example.label} is {example.answer[:80]!r}."
            " Use exact for answers in words, or MathEqual for formulas."
        )
    return number


@functools.lru_cache(maxsize=4096)  # of each step, which compares every gold with a group of responses
def _read_gold(answer: str) -> Fraction | None:
    """The number of an answer, or the one that it marks: some data sets have whole solutions."""
    mark = final_mark(answer)
    return read_quantity(answer if mark is None else mark.text)


def _whole(response: str) -> Fraction | str | None:
    """The whole response as a number, or as text without a final full stop; None for an empty one."""
    number = read_number(response)
    return number if number is not None else _without_stop(response) or None


@needs(_has_answer)
@says(_whole)
def exact(example: Example, response: str) -> float:
    """1 if the response is the answer and nothing else; a final full stop is ignored."""
    _has_answer(example)
    answer, number = read_number(response), read_number(example.answer)
    if answer is not None and number is not None:
        return float(answer == number)
    return float(_without_stop(response) == _without_stop(example.answer))


def final_number(response: str) -> Fraction | None:
    """The number that a response ends with or marks as its answer; None if what is there is no single number."""
    text = response[-MAX_SCANNED:]
    mark = final_mark(text)
    return _last_number_of(text) if mark is None else read_quantity(mark.text)


@needs(_gold_number)
@says(final_number)
def last_number(example: Example, response: str) -> float:
    r"""1 if the final number of the response is the answer.

    It is what the last `\boxed{12}`, `#### 12` or `<answer>12</answer>` holds, whichever comes last; without any, it is
    the last number of the response. The unit does not matter, so `12 apples` counts as 12.
    """
    return float(final_number(response) == _gold_number(example))


def _in_box(response: str) -> Fraction | str | None:
    """What the last box of a response holds, as `answer_in` gives it; None without a box."""
    mark = _boxed(response[-MAX_SCANNED:])
    return None if mark is None else answer_in(mark.text)


@needs(_gold_number)
@says(_in_box)
def boxed_number(example: Example, response: str) -> float:
    r"""1 if the last `\boxed{}` of the response holds the answer, as in MATH; a response without one earns 0."""
    mark = _boxed(response[-MAX_SCANNED:])
    return float(mark is not None and read_quantity(mark.text) == _gold_number(example))


def answer_in(text: str) -> Fraction | str | None:
    """The number that a text is, or else the text without spaces; None for an empty one. Equal answers are the same."""
    number = read_quantity(text)
    return number if number is not None else "".join(text.split()) or None


@dataclass(frozen=True)
class Mark:
    """What a response marks as its answer, and where that begins; empty if the mark is never closed."""

    start: int
    text: str


def final_mark(text: str) -> Mark | None:
    r"""The last of `\boxed{}`, `<answer>` and a line with `####`; None if there is none."""
    marks = [mark for mark in (_boxed(text), _tagged(text), _hashed(text)) if mark is not None]
    return max(marks, key=lambda mark: mark.start, default=None)


def _boxed(text: str) -> Mark | None:
    """The last box; a list of boxes that hold different things is one answer."""
    boxes = list(_BOX.finditer(text))
    while boxes:
        last = boxes.pop()
        inside = _inside(text, last)
        if inside is not None:
            before = _inside(text, boxes[-1]) if boxes else None
            if before is not None and before[0] != inside[0] and _LISTED.fullmatch(text, before[1], last.start()):
                return Mark(last.start(), f"{before[0]}, {inside[0]}")
            return Mark(last.start(), inside[0])
    return None


def _inside(text: str, box: re.Match[str]) -> tuple[str, int] | None:
    r"""What a box holds, and where it ends: nothing if it is never closed. None where `\boxed{}` is only mentioned."""
    if not text.startswith("{", box.end()):
        bare = _BARE.match(text, box.end())
        return (bare[0], bare.end()) if bare else None
    start = box.end() + 1
    end = _closing(text, start)
    if end is None:
        return "", len(text)
    return (text[start:end], end + 1) if text[start:end].strip() else None


def _tagged(text: str) -> Mark | None:
    start = text.rfind(_OPEN)
    inner, close, _ = text[start + len(_OPEN) :].partition(_CLOSE)
    return None if start < 0 else Mark(start, inner if close else "")


def _hashed(text: str) -> Mark | None:
    """The last line with `####`, unless that is the heading of a section."""
    if "####" not in text:
        return None
    for found in reversed(list(_HASHES.finditer(text))):
        line = found[1].rpartition("####")[2].partition(_CLOSE)[0]
        heading = not line.strip() or (_HEADING.match(line) and text[found.end() :].strip())
        if not heading or read_quantity(line) is not None:
            return Mark(found.start(), line)
    return None


def _closing(text: str, start: int) -> int | None:
    """Where the brace is that closes the one just before `start`; None if there is none."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def _last_number_of(text: str) -> Fraction | None:
    for line in reversed(text.splitlines()):
        line = _RELATION.sub("=", plain(line))
        if any(map(str.isdecimal, line)):
            for run in reversed(list(_RUN.finditer(line))):
                if any(map(str.isdecimal, run[0])) and not _WORD.fullmatch(run[0].rstrip("$.,")):
                    return _read_run(line, run)
    return None


def _read_run(line: str, run: re.Match[str]) -> Fraction | None:
    """The number that a run of characters is, with its sign, and with `million` after it; None if it is none."""
    begin = _BEFORE.match(run[0])
    start = run.start() + (begin.end() if begin else 0)
    text = _balanced(line[start : run.end()].rstrip(_AFTER).rstrip("$"))
    named = _NAMED.match(text)
    text = _SHORT_UNIT.sub("", text[named.end() :] if named else text)
    if re.fullmatch(r"[0-9]{3}", text) and _GROUP_BEFORE.search(line[max(start - 40, 0) : start]):
        return None  # 12 000: one number, or two
    if _FACTOR.search(line[max(start - 40, 0) : start]):
        return None
    large = _LARGE.match(line, run.end())
    number = read_quantity(text + (large[0] if large else ""))
    return -number if number is not None and _is_negative(line, start) else number


def _is_negative(line: str, start: int) -> bool:
    """Whether a minus stands before a run; neither the minus in 10-5 nor the dash of a list is a sign."""
    if _NEGATIVE.search(line, max(start - 10, 0), start):
        return True
    return line[start - 1 : start] == "-" and not re.match(r"[0-9A-Za-z)\]}]", line[max(start - 2, 0) : start - 1])


def _balanced(text: str) -> str:
    """The text without braces at its ends that belong to what is around it."""
    while text.count("}") > text.count("{") and text.endswith("}"):
        text = text[:-1]
    while text.count("{") > text.count("}") and text.startswith("{"):
        text = text[1:]
    return text


def _without_stop(text: str) -> str:
    return text.strip().removesuffix(".").rstrip()
