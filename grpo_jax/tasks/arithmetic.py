"""Arithmetic questions. They are generated, so they need no download, and their difficulty can be set."""

from collections.abc import Callable
from functools import partial

import numpy as np

from grpo_jax.ranges import check_range
from grpo_jax.rewards.answers import exact, last_number
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.expressions import evaluate
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.task import Task, check_sizes, messages

DRAWS = 100  # attempts for each question wanted
LARGEST = 10**12  # answers stay readable, and operands fit in 64 bits


def arithmetic(
    train: int = 4096,  # examples
    held_out: int = 256,  # examples, none of which is in train, not even with its operands in another order
    operations: str = "+-",  # any of + - *
    smallest: int = 0,  # of the operands
    largest: int = 99,
    terms: int = 2,  # operands in a question
    instruction: str = "Reply with only the number.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Questions such as `What is 12 + 34?`, all different; * is computed before + and -.

    A response that is only the answer earns 1, and one whose final number is the answer 0.1: together at most 1.1.
    """
    check_sizes(train, held_out)
    check_range("task.seed", seed, least=0)
    _check(operations, smallest, largest, terms)
    existing = (largest - smallest + 1) ** terms * len(operations) ** (terms - 1)
    if train + held_out > existing:
        raise ValueError(
            f"train and held_out ask for {train + held_out} different questions, and only {existing} exist."
            " Ask for fewer, or widen smallest, largest, terms or operations."
        )
    draw = partial(_draw, np.random.default_rng(seed), operations, smallest, largest, terms)
    training, testing = _divide(draw, train, held_out)
    reward = Mix(((exact, 1.0), (last_number, 0.1)))
    return Task(
        tuple(_example(text, instruction, system) for text in training),
        tuple(_example(text, instruction, system) for text in testing),
        reward,
    )


def _divide(draw: Callable[[], tuple[str, str]], train: int, held_out: int) -> tuple[list[str], list[str]]:
    """Questions for training, and questions for evaluation whose families do not occur in training."""
    training: dict[str, None] = {}  # a dict keeps the order of drawing
    testing: dict[str, str] = {}
    for _ in range(DRAWS * (train + held_out)):
        text, family = draw()
        if family not in testing and len(testing) < held_out:
            testing[family] = text
        elif family not in testing:
            training[text] = None
        if len(training) == train:
            return list(training), list(testing.values())
    raise ValueError(
        f"Only {len(training)} of {train} training questions were found beside {held_out} held-out ones, which must"
        " differ in more than the order of operands. Ask for fewer, or widen smallest, largest, terms or operations."
    )


def _draw(random: np.random.Generator, operations: str, smallest: int, largest: int, terms: int) -> tuple[str, str]:
    """A question, and its family: the question with its operands and its operations sorted."""
    operands = random.integers(smallest, largest, size=terms, endpoint=True)
    signs = random.choice(list(operations), size=terms - 1)
    return _written(operands, signs), _written(np.sort(operands), np.sort(signs))


def _written(operands: np.ndarray, signs: np.ndarray) -> str:
    pairs = zip(signs, operands[1:], strict=True)
    return " ".join([str(operands[0]), *(f"{sign} {operand}" for sign, operand in pairs)])


def _example(expression: str, instruction: str, system: str | None) -> Example:
    question, answer = f"What is {expression}?", str(evaluate(expression))
    return Example(messages(question, instruction, system), answer, {"question": question, "answer": answer})


def _check(operations: str, smallest: int, largest: int, terms: int) -> None:
    if not operations or set(operations) - set("+-*") or len(set(operations)) != len(operations):
        raise ValueError(f"operations must be some of + - *, each once, such as '+-'; got {operations!r}.")
    if not 0 <= smallest <= largest <= LARGEST:
        raise ValueError(
            f"Operands need 0 <= smallest <= largest <= {LARGEST}; got smallest {smallest} and largest {largest}."
        )
    if not 2 <= terms <= 10:
        raise ValueError(f"A question has 2 to 10 terms; got {terms}.")
