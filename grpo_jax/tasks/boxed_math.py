r"""Generated problems in the form of MATH (Hendrycks et al., 2021): a short text, and the answer in `\boxed{}`."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from grpo_jax.ranges import check_range
from grpo_jax.rewards.answers import boxed_number, last_number
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.drawing import draw_different
from grpo_jax.tasks.task import Task, messages

Problem = Callable[[Callable[[], int]], tuple[str, Fraction]]


def boxed_math(
    train: int = 4096,  # examples
    held_out: int = 256,  # examples, none of which is in train, not even with its numbers in another order
    largest: int = 20,  # of the numbers in a problem, which start at 2
    instruction: str = r"Reason step by step, then write the final answer in \boxed{}.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    r"""Fractions, equations, percentages, averages, areas, probabilities, slopes and divisors.

    The answer in `\boxed{}` earns 1, and one that is only the last number of the response 0.1: together at most 1.1.
    """
    check_range("largest", largest, least=5, most=10_000)

    def example(random: np.random.Generator) -> tuple[object, Example]:
        problem = PROBLEMS[random.integers(len(PROBLEMS))]
        question, answer = problem(lambda: int(random.integers(2, largest, endpoint=True)))
        columns: dict[str, Any] = {"problem": question, "kind": problem.__name__, "answer": _latex(answer)}
        family = problem.__name__, tuple(sorted(re.findall("[0-9]+", question)))  # the same in another order
        return family, Example(messages(question, instruction, system), rf"\boxed{{{_latex(answer)}}}", columns)

    return Task(*draw_different(example, train, held_out, seed), Mix(((boxed_number, 1.0), (last_number, 0.1))))


def _latex(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def fractions(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """The sum or the difference of two fractions."""
    a, b, c, d = (draw() for _ in range(4))
    if draw() % 2:
        return rf"What is $\frac{{{a}}}{{{b}}} + \frac{{{c}}}{{{d}}}$?", Fraction(a, b) + Fraction(c, d)
    return rf"What is $\frac{{{a}}}{{{b}}} - \frac{{{c}}}{{{d}}}$?", Fraction(a, b) - Fraction(c, d)


def equation(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """A linear equation with one unknown."""
    a, b, c = draw(), draw(), draw()
    return f"Solve ${a}x + {b} = {c}$ for $x$.", Fraction(c - b, a)


def percentage(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """A price after a discount."""
    price, percent = 10 * draw(), 1 + draw() % 99
    return f"A coat costs {price} dollars and is reduced by {percent} percent. What does it cost now, in dollars?", (
        Fraction(price * (100 - percent), 100)
    )


def average(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """The number that makes a mean what it is."""
    a, b, c, mean = draw(), draw(), draw(), draw()
    return f"The average of ${a}$, ${b}$, ${c}$ and $n$ is ${mean}$. What is $n$?", Fraction(4 * mean - a - b - c)


def triangle(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """The area of a triangle."""
    base, height = draw(), draw()
    return (
        f"A triangle has a base of {base} cm and a height of {height} cm. What is its area, in square centimeters?",
        (Fraction(base * height, 2)),
    )


def probability(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """Two marbles of one color, drawn one after the other."""
    red, blue = draw(), draw()
    return (
        f"A bag has {red} red and {blue} blue marbles. Two are drawn without putting the first back."
        " What is the probability that both are red?"
    ), Fraction(red * (red - 1), (red + blue) * (red + blue - 1))


def slope(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """The slope of a line through two points."""
    a, b, c, d = (draw() for _ in range(4))
    return f"What is the slope of the line through $({a}, {b})$ and $({a + c}, {d})$?", Fraction(d - b, c)


def divisor(draw: Callable[[], int]) -> tuple[str, Fraction]:
    """The greatest common divisor of two numbers."""
    a, b, c = draw(), draw(), draw()
    return f"What is the greatest common divisor of {a * b} and {a * c}?", Fraction(math.gcd(a * b, a * c))


PROBLEMS = (fractions, equation, percentage, average, triangle, probability, slope, divisor)
