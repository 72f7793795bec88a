r"""Answers that are formulas: roots, sets, intervals, polynomials, compared by math-verify in a process of its own.

`pip install "grpo-jax[math]"` installs it. Numbers are compared exactly and without it; the rest is given to sympy,
which can take for ever over a single answer, and then only that process is ended and replaced.
"""

import functools
import importlib.util
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from grpo_jax.ranges import check_range
from grpo_jax.rewards.answers import MAX_SCANNED, answer_in, final_mark
from grpo_jax.rewards.child import Child
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.numbers import read_quantity

MAX_FORMULA = 1000  # characters; a longer answer earns 0
LONGEST = 600.0  # seconds

_NAMES = re.compile(
    r"\\(?:begin|end|operatorname|mathrm)\s*\{[a-z]*\}|\\[A-Za-z]+|\b(?:a?(?:sin|cos|tan)|log|exp|sqrt|and)\b"
)
_WORD = re.compile(r"[^\W\d_]{3,}")  # sympy would take it for a product of its letters


@dataclass(frozen=True)
class MathEqual:
    r"""1 if what the response marks as its answer equals the gold: `\frac{\sqrt{2}}{2}` is `\frac{1}{\sqrt{2}}`.

    The mark is the last `\boxed{}`, `####` or `<answer>`, or else the whole response. Beside a formula, a decimal is
    right to six places. An answer that math-verify does not decide in `seconds` is not scored.
    """

    seconds: float = 5.0  # for one answer

    def __post_init__(self) -> None:
        check_range("seconds", self.seconds, above=0, most=LONGEST)

    def check(self, example: Example) -> None:
        """Refuses gold that is no formula."""
        gold = _marked(example.answer)
        if read_quantity(gold) is not None:
            return
        if not _installed():
            raise ValueError(
                f"MathEqual compares formulas with math-verify, which is not installed, and the answer of"
                f' {example.label} is {example.answer[:80]!r}. Install it: pip install "grpo-jax[math]".'
            )
        is_word = _WORD.search(_NAMES.sub(" ", gold)) is not None
        if is_word or _child().ask([_boxed(gold), None, self.seconds], self.seconds + 1) is not True:
            raise ValueError(
                f"MathEqual needs answers that are numbers or formulas, and that of {example.label} is"
                f" {example.answer[:80]!r}. Use exact for answers in words."
            )

    def __call__(self, example: Example, response: str) -> float | None:
        """1, 0, or None if the answer could not be decided in time."""
        gold, answer = _marked(example.answer), _marked(response[-MAX_SCANNED:])
        if not answer or len(answer) > MAX_FORMULA:
            return 0.0
        number, expected = read_quantity(answer), read_quantity(gold)
        if expected is not None and (number is not None or not _installed()):
            return float(number == expected)
        equal = _child().ask([_boxed(gold), _boxed(answer), self.seconds], self.seconds + 1)
        return None if equal is None else float(equal)

    def said(self, response: str) -> Fraction | str | None:
        """What a response answers: a number, or a formula as it is written, without spaces; None for nothing."""
        answer = _marked(response[-MAX_SCANNED:])
        return answer_in(answer) if len(answer) <= MAX_FORMULA else None


@functools.cache
def _child() -> Child:
    """The one process of this process, with which all compare. -P: the folder of the program is no import path."""
    return Child((sys.executable, "-P", str(Path(__file__).with_name("verifier.py"))))


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def _marked(text: str) -> str:
    """What a text marks as its answer, or the text itself."""
    mark = final_mark(text)
    return (text if mark is None else mark.text).strip()


def _boxed(text: str) -> str:
    """A formula as math-verify looks for it."""
    return rf"\boxed{{{text.strip('$')}}}"
