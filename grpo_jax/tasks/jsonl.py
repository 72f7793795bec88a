"""Your own questions, one JSON object a line.

The file is read here and not by a data set library, because those do not say which line of a file is wrong.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_jax.rewards.answers import exact
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.task import Task, messages, with_instruction

# A pair of surrogates, or half of one (group 1), or any other escape; and strings and numbers, NaN among them.
_ESCAPES = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(u[dD][89a-fA-F]..)|\\.")
_TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|-?(?:NaN|Infinity|[0-9][0-9.eE+-]*)')


def jsonl(
    path: str,
    prompt: str = "prompt",  # column with a string, or with a list of messages
    answer: str | None = "answer",  # column with a string or a number; null if no reward needs an answer
    held_out: str | None = None,  # path of a second file, for evaluation
    instruction: str = "",
    system: str | None = None,
) -> Task:
    """The lines of a file, with a reward for the exact answer; rewards get all columns.

    A prompt that is a string stays plain text unless there is a `system` message, which makes it a chat. Prompts that
    are messages are used unchanged.
    """
    examples = _examples(Path(path).expanduser(), prompt, answer, instruction, system)
    tests = _examples(Path(held_out).expanduser(), prompt, answer, instruction, system) if held_out is not None else ()
    return Task(examples, tests, Mix(((exact, 1.0),)))


def _examples(path: Path, prompt: str, answer: str | None, instruction: str, system: str | None) -> tuple[Example, ...]:
    examples = tuple(
        Example(
            _asked(_prompt(row, prompt, location), instruction, system, location),
            "" if answer is None else _answer(row, answer, location),
            row,
            location,
        )
        for location, row in _rows(path)
    )
    if not examples:
        raise ValueError(f"{path}:1: the file is empty. It needs one JSON object a line.")
    return examples


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its location, `file:line`. Blank lines and a byte order mark are skipped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file. Relative paths start from {Path.cwd()}.")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            location = f"{path}:{number}"
            text = _decoded(line, location)
            if text.strip():
                yield location, _row(text, location)


def _decoded(line: bytes, location: str) -> str:
    if b"\0" in line:
        raise ValueError(f"{location}: the line holds a NUL byte. Save the file as UTF-8 text.")
    try:
        return line.decode("utf-8-sig" if location.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8 text.") from error


def _row(text: str, location: str) -> dict[str, Any]:
    surrogate = next((found for found in _ESCAPES.finditer(text) if found[1]), None)
    if surrogate:
        raise ValueError(
            f"{location}:{surrogate.start() + 1}: {surrogate[0]} is half a surrogate pair, which no text can hold."
            " Write the character itself, or both halves."
        )
    try:
        row = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except OverflowError as error:
        found = next(token for token in _TOKENS.finditer(text) if token[0] == str(error))
        raise ValueError(
            f"{location}:{found.start() + 1}: {error} is not a finite number, and so no JSON. Write null where a value"
            " is missing."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{location}:{error.colno}: not JSON: {error.msg}. Each line is one JSON object.") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or very deep nesting
        raise ValueError(f"{location}: not readable as JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{location}: expected a JSON object, got {_type_name(row)}. Each line is like {{'prompt': '...'}}."
        )
    return row


def _finite(text: str) -> float:
    """The number that a text stands for; `json` gives NaN, Infinity and numbers with a point or an exponent."""
    value = float(text)
    if not math.isfinite(value):
        raise OverflowError(text)
    return value


def _prompt(row: dict[str, Any], column: str, location: str) -> str | list[Message]:
    value = _cell(row, column, "prompt", location)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(_is_message(message) for message in value):
        return value
    raise ValueError(
        f"{location}: column {column!r} must be a string that is not blank, or a list of messages with role and"
        f" content; got {_type_name(value)}: {str(value)[:60]!r}."
    )


def _answer(row: dict[str, Any], column: str, location: str) -> str:
    value = _cell(row, column, "answer", location)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{location}: column {column!r} must be a string or a number; got {_type_name(value)}.")


def _cell(row: dict[str, Any], column: str, parameter: str, location: str) -> Any:
    if column not in row:
        raise ValueError(
            f"{location}: no column {column!r}; the line has {', '.join(row) or 'none'}."
            f" Name the one to use in task.{parameter}."
        )
    return row[column]


def _asked(prompt: str | list[Message], instruction: str, system: str | None, location: str) -> str | list[Message]:
    if isinstance(prompt, str):
        return with_instruction(prompt, instruction) if system is None else messages(prompt, instruction, system)
    if instruction or system is not None:
        raise ValueError(f"{location}: instruction and system are for prompts that are strings; this one is messages.")
    return prompt


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
