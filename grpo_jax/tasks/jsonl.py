"""Your own questions, one JSON object a line.

The file is read here rather than by a data set library, because those say that a file is wrong but not on which line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_jax.rewards.answers import exact
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.task import Task, messages, with_instruction


def jsonl(
    path: str,
    prompt: str = "prompt",  # column with a string, or with a list of messages
    answer: str | None = "answer",  # column with a string or a number; null if no reward needs an answer
    held_out: str | None = None,  # path of a second file, for evaluation
    instruction: str = "",
    system: str | None = None,
) -> Task:
    """The lines of a file, rewarded for the exact answer; rewards see all columns.

    A prompt that is a string stays plain text unless `system` makes it a chat. Messages are taken as they are.
    """
    examples = _examples(Path(path).expanduser(), prompt, answer, instruction, system)
    tests = _examples(Path(held_out).expanduser(), prompt, answer, instruction, system) if held_out is not None else ()
    return Task(examples, tests, Mix(((exact, 1.0),)))


def _examples(path: Path, prompt: str, answer: str | None, instruction: str, system: str | None) -> tuple[Example, ...]:
    examples = tuple(
        Example(
            _asked(_prompt(row, prompt, place), instruction, system, place),
            "" if answer is None else _answer(row, answer, place),
            row,
        )
        for place, row in _rows(path)
    )
    if not examples:
        raise ValueError(f"{path}:1: the file is empty. It needs one JSON object a line.")
    return examples


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, `file:line`; blank lines are passed over, as is a byte order mark."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file. Relative paths start from {Path.cwd()}.")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}:{number}"
            text = _decoded(line, place)
            if text.strip():
                yield place, _row(text, place)


def _decoded(line: bytes, place: str) -> str:
    if b"\0" in line:
        raise ValueError(f"{place}: the line holds a NUL byte. Save the file as UTF-8 text.")
    try:
        return line.decode("utf-8-sig" if place.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8 text.") from error


def _row(text: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}:{error.colno}: not JSON: {error.msg}. Each line is one JSON object.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise ValueError(f"{place}: not readable as JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, got {_kind(row)}. Each line is like {{'prompt': '...'}}.")
    return row


def _prompt(row: dict[str, Any], column: str, place: str) -> str | list[Message]:
    value = _cell(row, column, "prompt", place)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(_is_message(message) for message in value):
        return value
    raise ValueError(
        f"{place}: column {column!r} must be a string that is not blank, or a list of messages with role and content;"
        f" got {_kind(value)}: {str(value)[:60]!r}."
    )


def _answer(row: dict[str, Any], column: str, place: str) -> str:
    value = _cell(row, column, "answer", place)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{place}: column {column!r} must be a string or a number; got {_kind(value)}.")


def _cell(row: dict[str, Any], column: str, parameter: str, place: str) -> Any:
    if column not in row:
        raise ValueError(
            f"{place}: no column {column!r}; the line has {', '.join(row) or 'none'}."
            f" Name the one to use in task.{parameter}."
        )
    return row[column]


def _asked(prompt: str | list[Message], instruction: str, system: str | None, place: str) -> str | list[Message]:
    if isinstance(prompt, str):
        return with_instruction(prompt, instruction) if system is None else messages(prompt, instruction, system)
    if instruction or system is not None:
        raise ValueError(f"{place}: instruction and system go with prompts that are strings; this one is messages.")
    return prompt


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
