"""Arithmetic expressions: their value without `eval`, and the reward of the countdown game."""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeGuard

from grpo_jax.rewards.example import Example
from grpo_jax.rewards.needs import needs

MAX_EXPRESSION = 200  # characters; limits the depth of the tree and the size of the numbers
_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _puzzle(example: Example) -> tuple[int, Sequence[int]]:
    target, numbers = example.columns.get("target"), example.columns.get("numbers")
    if not _is_whole(target) or not isinstance(numbers, list | tuple) or not all(map(_is_whole, numbers)):
        raise ValueError(
            "reaches_target needs the columns target (a whole number) and numbers (a list of them);"
            f" got target {target!r} and numbers {numbers!r}."
        )
    if not numbers or min(numbers) < 0:
        raise ValueError(f"reaches_target needs at least one number, none of them negative; got {numbers!r}.")
    return target, numbers


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


@needs(_puzzle)
def reaches_target(example: Example, response: str) -> float:
    """1 if the expression equals the column `target` and uses each number of the column `numbers` exactly once.

    The expression is the text between the last `<answer>` and `</answer>`, or else the whole response. Every number
    must be used, as in TinyZero's countdown; the television game does not require all of them.
    """
    target, numbers = _puzzle(example)
    expression = answered(response)
    used = [int(digits) for digits in re.findall(r"[0-9]+", expression[: MAX_EXPRESSION + 1])]
    return float(sorted(used) == sorted(numbers) and evaluate(expression) == target)


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an expression of whole numbers, + - * / and parentheses; None if it is anything else."""
    if len(expression) > MAX_EXPRESSION or not _ALLOWED.fullmatch(expression):
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left), _value(right))
    raise ValueError(f"{ast.unparse(node)} is not arithmetic.")


def answered(response: str) -> str:
    """The text between the last `<answer>` and `</answer>`, or else the whole response."""
    _, tag, rest = response.rpartition("<answer>")
    return (rest.partition("</answer>")[0] if tag else response).strip()
