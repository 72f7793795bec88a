"""Reads lines of JSON that may be torn, and metrics as one column each, so that 100,000 steps fit in memory."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from grpo_jax.health import Row

LARGEST = 2**53  # step; no run has so many
AT_ONCE = 1000  # lines that are decoded together


def rows_of(file: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file that can be read. What cannot is added to `problems`."""
    return _rows(file, _lines(file, problems), problems)


def first_rows(file: Path, problems: list[str], most: int) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a file that can be read, of its first `most` bytes, and whether there are more."""
    lines = _lines(file, problems, most)
    is_cut = bool(lines) and sum(map(len, lines)) < file.stat().st_size
    if is_cut:
        problems.append(f"{file.name} is larger than {most:,} bytes: only its first {len(lines)} answers are read")
    return list(_rows(file, lines, problems)), is_cut


def _lines(file: Path, problems: list[str], most: int = -1) -> list[bytes]:
    try:
        with file.open("rb") as opened:
            return opened.readlines(most)
    except OSError as error:
        problems.append(f"{file.name} cannot be read ({error.strerror})")
        return []


def _rows(file: Path, lines: Sequence[bytes], problems: list[str]) -> Iterator[dict[str, Any]]:
    torn = []
    for start in range(0, len(lines), AT_ONCE):
        for number, row in enumerate(_decoded(lines[start : start + AT_ONCE]), start + 1):
            if isinstance(row, dict):
                yield row
            elif row is not None:
                torn.append(number)
    if torn:
        shown = ", ".join(map(str, torn[:5])) + (" and others" if len(torn) > 5 else "")
        problems.append(f"{file.name} has {len(torn)} line(s) that cannot be read and are left out (line {shown})")


def _decoded(lines: Sequence[bytes]) -> list[Any]:
    """The value of each line; None for a blank one, False for one that cannot be read."""
    try:  # names are shared by all rows that are decoded at once
        return json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return [_one(line) for line in lines]


def _one(line: bytes) -> Any:
    if not line.strip(b"\0 \t\r\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return row if isinstance(row, dict) else False


class StepRow(Mapping[str, Any]):
    """The metrics of one step, looked up in the columns: most of what looks at a row needs one of them."""

    __slots__ = ("history", "index")

    def __init__(self, history: "History", index: int):
        self.history, self.index = history, index

    def __getitem__(self, name: str) -> Any:
        """A metric; None if it was not finite."""
        if name == "step":
            return int(self.history.steps[self.index])
        if not self.history.there[name][self.index]:
            raise KeyError(name)
        value = float(self.history.values[name][self.index])
        return value if math.isfinite(value) else None

    def __contains__(self, name: object) -> bool:
        """Whether the step has the metric, be it finite or not."""
        return name == "step" or (name in self.history.there and bool(self.history.there[str(name)][self.index]))

    def __iter__(self) -> Iterator[str]:
        """The metrics that the step has."""
        yield "step"
        yield from (name for name, there in self.history.there.items() if there[self.index])

    def __len__(self) -> int:
        """How many there are, the number of the step among them."""
        return sum(1 for _ in self)


class History(Sequence[Row]):
    """The metrics of all steps, kept in columns and given as rows. A number that was not finite is None in its row."""

    def __init__(self, rows: Iterator[dict[str, Any]], problems: list[str]):
        steps: list[int] = []
        columns: dict[str, tuple[list[int], list[float]]] = {}
        strays = 0
        for row in rows:
            step = row.get("step")
            if type(step) is not int or abs(step) > LARGEST or (steps and step < steps[-1]):
                strays += 1
                continue
            index = len(steps)
            for name, value in row.items():
                kind = type(value)  # a call for each of millions of numbers would take as long as reading them
                if (kind is float or kind is int or value is None) and name != "step":
                    column = columns.get(name)
                    if column is None:
                        column = columns[name] = ([], [])
                    column[0].append(index)
                    column[1].append(value if kind is float else number_of(value))
            steps.append(step)
        if strays:
            problems.append(f"metrics.jsonl has {strays} row(s) without a step, or before the one above, left out")
        self.steps = np.array(steps, dtype=int)
        self.values = {name: _filled(len(steps), *column) for name, column in columns.items()}
        self.there = {name: _there(len(steps), places) for name, (places, _) in columns.items()}

    def __len__(self) -> int:
        """The number of rows: one a step, and one before the first if that was evaluated."""
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        """A row, or those of a slice."""
        if isinstance(index, slice):
            return [StepRow(self, each) for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} rows; got {index}.")
        return StepRow(self, index % len(self))

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps in which a metric is a finite number, and its values; empty if there are none."""
        values = self.values.get(name, np.full(len(self), np.nan))
        known = np.isfinite(values)
        return self.steps[known], values[known]

    def names(self) -> list[str]:
        """The metrics that have a finite number in some step, in the order in which they came."""
        return [name for name, values in self.values.items() if np.isfinite(values).any()]


def number_of(value: Any) -> float:
    """A number of JSON; NaN for anything else, and for a whole number that is too large for a float."""
    try:
        return float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        return math.nan


def _filled(size: int, places: list[int], values: list[float]) -> np.ndarray:
    column = np.full(size, np.nan)
    column[places] = values
    return column


def _there(size: int, places: list[int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[places] = True
    return mask
