"""Which rows stay: by the values of columns, or by a function of the user."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from grpo_jax.tasks.tables.row import Row, cell, type_name

SHOWN = 3  # places in a message about many rows
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "least": lambda value, bound: value >= bound,
    "most": lambda value, bound: value <= bound,
    "matches": lambda value, pattern: re.search(pattern, value) is not None,
    "not": lambda value, others: value not in (others if isinstance(others, list) else [others]),
}


def check_where(where: Mapping[str, Any]) -> None:
    """Refuses conditions that no row could be compared with."""
    for column, wanted in where.items():
        for name, value in wanted.items() if isinstance(wanted, Mapping) else ():
            if name not in TESTS:
                raise ValueError(
                    f"task.where.{column} has {name!r}; a condition is a value, a list of values, or one of"
                    f" {', '.join(TESTS)}."
                )
            if name == "matches":
                _check_pattern(column, value)
            if name in ("least", "most") and not _is_number(value):
                raise ValueError(f"task.where.{column}.{name} must be a number; got {value!r}.")


def stays(row: Row, where: Mapping[str, Any]) -> bool:
    """Whether a row meets every condition: the name of a column, and what its value must be."""
    return all(_meets(cell(row, column, "where"), wanted, row, column) for column, wanted in where.items())


def _meets(value: Any, wanted: Any, row: Row, column: str) -> bool:
    if not isinstance(wanted, Mapping):
        return value in wanted if isinstance(wanted, list | tuple) else value == wanted
    for name in wanted:
        if name in ("least", "most") and not _is_number(value):
            raise _mismatch(row, column, name, "a number", value)
        if name == "matches" and not isinstance(value, str):
            raise _mismatch(row, column, name, "a string", value)
    return all(TESTS[name](value, bound) for name, bound in wanted.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_pattern(column: str, pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"task.where.{column}.matches must be a regular expression; got {pattern!r}: {error}."
        ) from error


def _mismatch(row: Row, column: str, name: str, kind: str, value: Any) -> ValueError:
    return ValueError(
        f"{row.place}: task.where.{column}.{name} needs {kind} in column {column!r}; got {type_name(value)}:"
        f" {str(value)[:60]!r}."
    )


def chosen(rows: Iterable[Row], keep: Callable[[Row], bool], setting: str) -> list[Row]:
    """The rows that stay. How many do not is told."""
    kept, left_out = [], []
    for row in rows:
        (kept if keep(row) else left_out).append(row)
    if left_out:
        total = len(kept) + len(left_out)
        tell("%s leaves out %d of %d rows: %s", setting, len(left_out), total, places([row.place for row in left_out]))
    return kept


def places(found: Sequence[str]) -> str:
    """The first places of many, for a message."""
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def tell(message: str, *values: object) -> None:
    """Logs what was left out or counted."""
    logging.getLogger("grpo_jax").warning(message, *values)
