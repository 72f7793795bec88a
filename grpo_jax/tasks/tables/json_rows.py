"""Rows of JSON: an object a line, or an array of objects.

The files are read here and not by a data set library, because those do not say which line of a file is wrong.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_jax.tasks.tables.content import check_text, decoded, opened, read_text
from grpo_jax.tasks.tables.row import Row, type_name

# A pair of surrogates, or half of one (group 1), or any other escape; and strings and numbers, NaN among them.
_ESCAPES = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(u[dD][89a-fA-F]..)|\\.")
_TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|-?(?:NaN|Infinity|[0-9][0-9.eE+-]*)')
_BLANK = re.compile(r"[ \t\r\n]*")
WAY_OUT = "Each line is one JSON object."
ARRAY = " For a file that is one array, set task.format: json."


class Twice(ValueError):
    """A key that an object of JSON has more than once."""


def read_lines(path: Path) -> Iterator[Row]:
    """Each line as a row. Blank lines and a byte order mark are skipped."""
    with opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            location = f"{path}:{number}"
            if number == 1:
                check_text(path, line[:32])
            text = decoded(line, location, number == 1)
            if text.strip():
                yield Row(_object(_value(text, location, WAY_OUT), location, WAY_OUT + ARRAY), location)


def read_array(path: Path) -> Iterator[Row]:
    """Each object of an array as a row, whose place is the line that it begins in."""
    text = read_text(path)
    position, line = _after_blank(text, 0), 1 + text[: _after_blank(text, 0)].count("\n")
    if text[position : position + 1] != "[":
        raise ValueError(
            f"{path}:{line}: expected an array of objects, [{{...}}, {{...}}]. If each line is an object, set"
            " task.format: jsonl."
        )
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
    start, position = position, _after_blank(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", start, position)
        start, location = position, f"{path}:{line}"
        value, position = _next(decoder, text, position, location)
        yield Row(_object(value, location, "Each item of the array is one."), location)
        position = _next_item(text, position, location)
    if _after_blank(text, position + 1) < len(text):
        line += text.count("\n", start, position)
        raise ValueError(f"{path}:{line}: there is more text after the end of the array. Keep one array in a file.")


def is_array(path: Path) -> bool:
    """Whether the first character of a file is the bracket that opens an array."""
    with opened(path) as file:
        return file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def parsed(text: str, location: str) -> Any:
    """The value of a cell that is written as JSON."""
    return _value(text, location, "The cell has to be JSON, as task.json_columns says.")


def _value(text: str, location: str, way_out: str) -> Any:
    """The value that a text is, with the column of whatever is wrong in it."""
    _check_surrogates(text, location)
    try:
        return json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
    except OverflowError as error:
        raise _not_finite(text, 0, location, error) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{location}:{error.colno}: not JSON: {error.msg}. {way_out}") from error
    except Twice as error:
        raise ValueError(f"{location}: {error}") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or very deep nesting
        raise _unreadable(location, error) from error


def _next(decoder: json.JSONDecoder, text: str, position: int, location: str) -> tuple[Any, int]:
    """The value that begins at a position, and where it ends."""
    try:
        value, end = decoder.raw_decode(text, position)
    except OverflowError as error:
        raise _not_finite(text, position, location, error) from error
    except json.JSONDecodeError as error:
        file = location.rpartition(":")[0]
        raise ValueError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}.") from error
    except Twice as error:
        raise ValueError(f"{location}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(location, error) from error
    _check_surrogates(text[position:end], location)
    return value, end


def _next_item(text: str, position: int, location: str) -> int:
    """Where the next item of an array begins, or the bracket that closes it."""
    position = _after_blank(text, position)
    if text[position : position + 1] == ",":
        after = _after_blank(text, position + 1)
        if text[after : after + 1] not in ("", "]"):
            return after
    elif text[position : position + 1] == "]":
        return position
    raise ValueError(
        f"{location}: after this object a comma and another one, or the end of the array, has to follow. The file may"
        " be cut off: copy it again."
    )


def _after_blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return position if found is None else found.end()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys have to differ: which of two values counts is nowhere said."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Twice(f"the key {twice!r} is given twice in one object. Keep one of them.")
    return found


def _finite(text: str) -> float:
    """The number that a text stands for; `json` gives NaN, Infinity and numbers with a point or an exponent."""
    value = float(text)
    if not math.isfinite(value):
        raise OverflowError(text)
    return value


def _not_finite(text: str, position: int, location: str, error: OverflowError) -> ValueError:
    found = next(token for token in _TOKENS.finditer(text, position) if token[0] == str(error))
    column = found.start() - text.rfind("\n", 0, found.start())
    file, _, line = location.rpartition(":")
    place = (
        f"{file}:{int(line) + text.count(chr(10), position, found.start())}:{column}" if line.isdecimal() else location
    )
    return ValueError(f"{place}: {error} is not a finite number, and so no JSON. Write null where a value is missing.")


def _unreadable(location: str, error: Exception) -> ValueError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
    return ValueError(f"{location}: not readable as JSON: {reason}. Write that part as a string.")


def _check_surrogates(text: str, location: str) -> None:
    found = next((found for found in _ESCAPES.finditer(text) if found[1]), None)
    if found:
        raise ValueError(
            f"{location}:{found.start() + 1}: {found[0]} is half a surrogate pair, which no text can hold."
            " Write the character itself, or both halves."
        )


def _object(value: Any, location: str, way_out: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"{location}: expected a JSON object, got {type_name(value)}. One is like {{'prompt': '...'}}. {way_out}"
        )
    return value
