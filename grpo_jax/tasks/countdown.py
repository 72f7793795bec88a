"""The countdown game: combine given numbers into a target. It is easy to check, and takes search to solve."""

from typing import Any

import numpy as np

from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.expressions import evaluate, reaches_target
from grpo_jax.rewards.format import follows_template
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.task import Task, check_sizes, messages

PATIENCE = 1000  # consecutive draws without a new puzzle before an error


def countdown(
    train: int = 4096,  # examples
    held_out: int = 256,  # examples, none of which is in train
    numbers: int = 3,  # how many are given
    largest: int = 20,  # of the given numbers, which start at 1
    largest_target: int = 100,
    instruction: str = "Think in <think> </think> tags, then write the expression in <answer> </answer> tags.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Puzzles that have a solution with + - * / and parentheses, in which each number is used exactly once.

    The correct expression earns 1, and the format that the instruction asks for earns 0.1. No two puzzles, in train or
    held out, have the same numbers and the same target.
    """
    check_sizes(train, held_out)
    check_range("task.seed", seed, least=0)
    rows = puzzles(train + held_out, numbers, largest, largest_target, seed)
    examples = tuple(Example(messages(asked(row), instruction, system), _solved(row["solution"]), row) for row in rows)
    return Task(examples[:train], examples[train:], Mix(((reaches_target, 1.0), (follows_template, 0.1))))


def puzzles(wanted: int, count: int, largest: int, largest_target: int, seed: int) -> list[dict[str, Any]]:
    """So many different puzzles, as rows with the columns numbers, target and solution."""
    _check(count, largest, largest_target)
    random = np.random.default_rng(seed)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    fruitless_draws = 0
    while len(found) < wanted:
        numbers = [int(number) for number in random.integers(1, largest, size=count, endpoint=True)]
        solution = _combined(numbers, random)
        target = evaluate(solution)
        key = (*sorted(numbers), int(target or 0))
        fruitless_draws += 1
        if target is not None and target.denominator == 1 and 1 <= target <= largest_target and key not in found:
            found[key] = {"numbers": sorted(numbers), "target": int(target), "solution": solution}
            fruitless_draws = 0
        if fruitless_draws == PATIENCE:
            raise ValueError(
                f"train and held_out ask for {wanted} different puzzles, and after {len(found)} no more were found."
                " Ask for fewer, or raise numbers, largest or largest_target."
            )
    return list(found.values())


def _combined(numbers: list[int], random: np.random.Generator) -> str:
    """An expression of all the numbers: two random terms are joined until one is left."""
    terms = [str(number) for number in numbers]
    while len(terms) > 1:
        left = terms.pop(random.integers(len(terms)))
        right = terms.pop(random.integers(len(terms)))
        terms.append(f"({left} {random.choice(list('+-*/'))} {right})")
    return terms[0].removeprefix("(").removesuffix(")")


def asked(row: dict[str, Any]) -> str:
    """The question of a puzzle."""
    *most, last = (str(number) for number in row["numbers"])
    return (
        f"Use each of the numbers {', '.join(most)} and {last} exactly once, with + - * / and parentheses,"
        f" to make {row['target']}."
    )


def _solved(solution: str) -> str:
    return f"<think>{solution}</think> <answer>{solution}</answer>"


def _check(numbers: int, largest: int, largest_target: int) -> None:
    if not 2 <= numbers <= 6:
        raise ValueError(f"A puzzle gives 2 to 6 numbers; got {numbers}.")
    if not (1 <= largest <= 1000 and 1 <= largest_target <= 1000):
        raise ValueError(f"largest and largest_target must be from 1 to 1000; got {largest} and {largest_target}.")
