"""Sums to work out: generated, so they need no download and can be as easy or as hard as a model needs."""

import numpy as np

from grpo_jax.rewards.answers import exact, last_number
from grpo_jax.rewards.expressions import evaluate
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.example import Example, Task, check_sizes, messages

LARGEST = 10**12  # keeps answers readable, and operands in 64 bits


def arithmetic(
    train: int = 4096,  # examples
    held_out: int = 256,  # examples, none of which is in train
    operations: str = "+-",  # any of + - *
    smallest: int = 0,  # of the operands
    largest: int = 99,
    terms: int = 2,  # operands in a question
    instruction: str = "Reply with only the number.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Questions such as `What is 12 + 34?`, all different; the usual precedence holds where * meets + or -.

    A response that is just the answer earns one, and the last number being right earns a tenth.
    """
    check_sizes(train, held_out)
    _check(operations, smallest, largest, terms)
    existing = (largest - smallest + 1) ** terms * len(operations) ** (terms - 1)
    if train + held_out > existing:
        raise ValueError(
            f"train and held_out ask for {train + held_out} different questions, and only {existing} exist."
            " Ask for fewer, or widen smallest, largest, terms or operations."
        )
    random = np.random.default_rng(seed)
    expressions: dict[str, None] = {}  # a dict keeps the order of drawing
    while len(expressions) < train + held_out:
        operands = random.integers(smallest, largest, size=terms, endpoint=True)
        signs = random.choice(list(operations), size=terms - 1)
        expressions[_written(operands, signs)] = None
    examples = tuple(_example(expression, instruction, system) for expression in expressions)
    return Task(examples[:train], examples[train:], Mix(((exact, 1.0), (last_number, 0.1))))


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
