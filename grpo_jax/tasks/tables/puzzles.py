"""Rows of reasoning-gym, which makes puzzles from a seed: `question`, `answer` and `metadata`."""

import importlib
import random
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from grpo_jax.tasks.tables.functions import MOST_ROWS
from grpo_jax.tasks.tables.row import Row, plain_row

SEED = 0  # unless the options name another: without a seed, each host would have other puzzles


def read_puzzles(name: str, options: Mapping[str, Any]) -> list[Row]:
    """Each puzzle of a data set with its number, counted from 0. `options` are those of the data set."""
    with _seeded(options.get("seed", SEED)):
        puzzles = _created(name, {"seed": SEED, **options})
        if len(puzzles) > MOST_ROWS:
            raise ValueError(f"{name} has {len(puzzles)} puzzles, and a task at most {MOST_ROWS}. Set a smaller size.")
        return list(_rows(puzzles, name))


@contextmanager
def _seeded(seed: Any) -> Generator[None]:
    """Python's own generator starts from the seed, as a few data sets draw from it; afterwards it is as it was."""
    before = random.getstate()
    random.seed(repr(seed))
    try:
        yield
    finally:
        random.setstate(before)


def _created(name: str, options: Mapping[str, Any]) -> Any:
    try:
        library = importlib.import_module("reasoning_gym")
        known = importlib.import_module("reasoning_gym.factory").DATASETS
    except ModuleNotFoundError as error:
        raise ValueError(
            'This table is made by reasoning-gym, which is not installed: pip install "grpo-jax[reasoning-gym]"'
        ) from error
    if name not in known:
        close = get_close_matches(name, known, 1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"reasoning-gym has no data set {name!r}; it has {len(known)} others.{meant}")
    try:
        return library.create_dataset(name, **options)
    except Exception as error:  # an unknown option is a TypeError, a wrong value an AssertionError
        raise ValueError(f"task.options are not those of {name}: {type(error).__name__}: {error}") from error


def _rows(puzzles: Any, name: str) -> Iterator[Row]:
    for number in range(len(puzzles)):
        place = f"{name}, row {number}"
        try:
            values = puzzles[number]
        except Exception as error:  # generators run code of their own
            raise ValueError(f"{place}: reasoning-gym cannot make it: {type(error).__name__}: {error}") from error
        yield plain_row(values, place)
