"""A row of a table, and its cells as plain Python values.

Whatever a table was stored as, its rows hold strings, numbers, booleans, None, lists and dicts, so that the same rows
give the same examples from every source.
"""

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

HALF = re.compile("[\ud800-\udfff]")
SEVERAL = re.compile(r"\{([^{}]+)\}")  # a column in a pattern such as "{document} {question}"


@dataclass(frozen=True)
class Row:
    """The cells of a row by the names of their columns, and where it was read, such as rows.jsonl:12."""

    values: Mapping[str, Any]
    place: str


def plain_row(values: Mapping[Any, Any], place: str, columns: Collection[str] = ()) -> Row:
    """A row whose cells are plain values. `columns` are those to keep; none keeps all."""
    kept = {str(name): value for name, value in values.items() if not columns or str(name) in columns}
    return Row({name: plain(value, place, name) for name, value in kept.items()}, place)


def plain(value: Any, place: str, column: str) -> Any:
    """A cell as a plain value; arrays become lists, dates text. What has no such value is refused."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _characters(str(value), place, column)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{place}: column {column!r} holds {value}, which is not a finite number. Write null where a value is"
                " missing, or leave the column out with task.columns."
            )
        return float(value)
    if isinstance(value, bytes):
        return _text(value, place, column)
    if isinstance(value, Mapping):
        return {str(name): plain(item, place, f"{column}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, place, column) for item in value]
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        return plain(value.tolist(), place, column)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta | uuid.UUID):
        return str(value)
    raise ValueError(
        f"{place}: column {column!r} holds a {type(value).__name__}, and a cell is text, a number, a boolean, null, a"
        " list or a mapping. Leave it out with task.columns."
    )


def _characters(text: str, place: str, column: str) -> str:
    if HALF.search(text):
        raise ValueError(f"{place}: column {column!r} holds half a surrogate pair, which no text can hold.")
    return text


def _text(value: bytes, place: str, column: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: column {column!r} holds bytes that are no UTF-8 text. Leave it out with task.columns."
        ) from error


def cell(row: Row, column: str, parameter: str) -> Any:
    """The value of a column. `a.b` is what the cell `a` has under `b`, and `a.0` its first item, unless there is a
    column with this whole name. `parameter` is the key of a config that names the column.
    """
    if column in row.values:
        return row.values[column]
    value: Any = row.values
    for depth, name in enumerate(column.split(".")):
        value = _inner(row, column, value, name, depth, parameter)
    return value


def has_cell(row: Row, column: str) -> bool:
    """Whether a row has a column, also by a dotted name."""
    try:
        cell(row, column, "")
    except ValueError:
        return False
    return True


def _inner(row: Row, column: str, value: Any, name: str, depth: int, parameter: str) -> Any:
    if isinstance(value, Mapping) and name in value:
        return value[name]
    if isinstance(value, list) and name.isdecimal() and len(name) < 9 and int(name) < len(value):
        return value[int(name)]
    outer = ".".join(column.split(".")[:depth])
    if not outer:
        holds = f"the line has {', '.join(row.values) or 'none'}"
    elif isinstance(value, Mapping):
        holds = f"{outer} has {', '.join(value) or 'nothing'}"
    else:
        holds = f"{outer} is {type_name(value)}" + (f" of {len(value)} items" if isinstance(value, list) else "")
    raise ValueError(
        f"{row.place}: no column {column!r}; {holds}. Name the one to use in task.{parameter}{_nested(row, column)}."
    )


def _nested(row: Row, column: str) -> str:
    """Where else a column of this name is: in another one, or under a name that is nearly the same."""
    found = [
        f"{outer}.{name}"
        for outer, inner in row.values.items()
        if isinstance(inner, Mapping)
        for name in inner
        if name in (column, "ground_truth" if column == "answer" else column)
    ]
    close = get_close_matches(column.strip().casefold(), [name.strip().casefold() for name in row.values], 1)
    found += [repr(name) for name in row.values if name.strip().casefold() in close]
    return f", such as {found[0]}" if found else ""


def type_name(value: Any) -> str:
    """The type of a plain value in words."""
    names = {bool: "a boolean", type(None): "null"}
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "a string" if isinstance(value, str) else names.get(type(value), "a number")
