"""Draws different questions at random, as many as a generated task asks for."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from grpo_jax.ranges import check_range
from grpo_jax.tasks.task import check_sizes

PATIENCE = 1000  # consecutive draws without a new question before an error

Row = TypeVar("Row")


def draw_different(
    draw: Callable[[np.random.Generator], tuple[object, Row]], train: int, held_out: int, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows for training and rows held out. `draw` returns a key with each row, and no two rows have the same key."""
    check_sizes(train, held_out)
    check_range("task.seed", seed, least=0)
    random, found, fruitless = np.random.default_rng(seed), dict[object, Row](), 0
    while len(found) < train + held_out:
        key, row = draw(random)
        fruitless = fruitless + 1 if key in found else 0
        found.setdefault(key, row)
        if fruitless == PATIENCE:
            raise ValueError(
                f"train and held_out ask for {train + held_out} different questions, and after {len(found)} no more"
                " were found. Ask for fewer, or for questions of which there are more."
            )
    rows = tuple(found.values())
    return rows[:train], rows[train:]
