"""Rows that a Python function gives, and functions that choose rows; named as `module:name`, as rewards are."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from grpo_jax.tasks.tables.row import Row, plain_row

NAMED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
MOST_ROWS = 10_000_000  # a generator that never ends would fill the memory


def is_named(path: str) -> bool:
    """Whether a text has the form of `module:name`."""
    return NAMED.fullmatch(path) is not None


def function(target: str, key: str) -> Callable[..., Any]:
    """The function that `module:name` stands for. `key` is the setting that names it."""
    module, _, name = target.partition(":")
    if not is_named(target) or name.startswith("_") or module.split(".")[0] in {*sys.stdlib_module_names, "grpo_jax"}:
        raise ValueError(
            f"task.{key} must name a public function of your own or of an installed package, as package.module:name;"
            f" got {target!r}."
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(f"task.{key}: {module} cannot be imported: {_said(error)}") from error
    if not callable(found):
        raise ValueError(f"task.{key}: {module} has no function {name}.")
    if str(getattr(found, "__module__", "")).split(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"task.{key}: {target} comes from Python's standard library. Name a function of your own.")
    return found


def read_function(target: str) -> Iterator[Row]:
    """Each mapping that the function gives, as a row with its number, counted from 0."""
    made = function(target, "path")
    for number, values in enumerate(_given(made, target)):
        place = f"{target}, row {number}"
        if not isinstance(values, Mapping):
            raise ValueError(
                f"{place}: the function must give mappings, such as {{'prompt': '...'}}; got {repr(values)[:60]}."
            )
        if number >= MOST_ROWS:
            raise ValueError(f"{target} gives more than {MOST_ROWS} rows. End it earlier.")
        yield plain_row(values, place)


def _given(made: Callable[..., Any], target: str) -> Iterator[Any]:
    """What the function gives. Its errors become sentences with its own line."""
    number = 0
    try:
        for values in made():
            yield values
            number += 1
    except Exception as error:  # as above
        raise ValueError(f"{target}, row {number}: {_said(error)}") from error


def keeps(target: str) -> Callable[[Row], bool]:
    """The function of a row's cells that says whether the row stays."""
    chosen = function(target, "filter")

    def stays(row: Row) -> bool:
        try:
            answer = chosen(dict(row.values))
        except Exception as error:  # as above
            raise ValueError(f"{row.place}: task.filter {target} failed: {_said(error)}") from error
        if not isinstance(answer, bool):
            raise ValueError(f"{row.place}: task.filter {target} must return True or False; got {repr(answer)[:60]}.")
        return answer

    return stays


def _said(error: Exception) -> str:
    """An error of the user's code with the last line of it that was reached."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}: {type(error).__name__}: {error}"
