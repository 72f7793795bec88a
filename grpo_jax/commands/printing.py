"""How commands print: no wider than the terminal, or as one document of JSON."""

import json
import os
import re
import shutil
import sys
import textwrap
from argparse import Namespace
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from grpo_jax.saved.plain import without_nan

NARROWEST = 20  # columns that text is broken into at least
GAP = "  "  # between columns


class NotRead(BaseException):
    """Nobody reads what a command prints any more, as in `| head`. No command takes it for an error of its work."""


@contextmanager
def stdout_for_json(arguments: Namespace) -> Generator[None]:
    """With --json, standard output is kept for `print_json`: whatever else is printed goes to standard error."""
    if not getattr(arguments, "json", False):
        yield
        return
    arguments.json = sys.stdout
    with redirect_stdout(sys.stderr):
        yield


def print_json(arguments: Namespace, document: Any) -> None:
    """Prints the one document of a command that was given --json. A number that is not finite is null."""
    text = json.dumps(without_nan(document), indent=1, allow_nan=False, default=str)
    with redirect_stdout(arguments.json):
        _print(text)


def is_for_people(arguments: Namespace) -> bool:
    """Whether figures are also printed as text: with --json on standard error, and with --quiet, too, not at all."""
    return not (arguments.json and arguments.quiet)


def show(text: str) -> None:
    """Prints text, broken into lines that fit."""
    _print(wrapped(text, width()))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        raise NotRead from error


def width() -> int | None:
    """The columns of the terminal, or those that the variable COLUMNS asks for; None where there are neither."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return max(shutil.get_terminal_size().columns, NARROWEST) if known else None


def wrapped(text: str, columns: int | None) -> str:
    """Text in which what does not fit in a line goes on below it, further to the right. A long word stays whole."""
    if columns is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _broken(line, columns))


def _broken(line: str, columns: int) -> list[str]:
    if len(line) <= columns:
        return [line]
    label = re.match(r" *\S+ {2,}", line)  # what follows it stays in its column, if there is room
    inside = len(line) - len(line.lstrip()) + 4 if label is None else label.end()
    indent = " " * min(inside, columns // 2)
    return textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def table(rows: Sequence[Sequence[str]], columns: int | None) -> str:
    """Rows in aligned columns, the heading first. Where these do not fit, each other row is a paragraph: its first
    cell, and below it each further cell after its heading.
    """
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(len(rows[0]))]
    if columns is None or sum(widths) + len(GAP) * (len(widths) - 1) <= columns:
        return "\n".join(
            GAP.join(cell.ljust(size) for cell, size in zip(row, widths, strict=False)).rstrip() for row in rows
        )
    heading, *others = rows
    return wrapped("\n".join(_paragraph(heading, row) for row in others), columns)


def _paragraph(heading: Sequence[str], row: Sequence[str]) -> str:
    pairs = [(name, cell) for name, cell in zip(heading[1:], row[1:], strict=False) if cell]
    return "\n".join([row[0], *(f"{GAP}{name}: {cell}" for name, cell in pairs)])
