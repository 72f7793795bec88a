"""Rows of CSV and TSV: the first line names the columns, and every cell is a string."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from grpo_jax.tasks.tables.content import read_text
from grpo_jax.tasks.tables.row import Row

_JSON = re.compile(r"\s*(?:\[\s*$|\[?\s*\{)")  # the beginning of a file of JSON
LARGEST_CELL = 2**31 - 1  # characters; the csv module refuses cells of more than 128 KiB unless it is told


def read_csv(path: Path, separator: str) -> Iterator[Row]:
    """Each record as a row, whose place is the line that it begins in. Blank lines are skipped."""
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        records = list(_records(path, separator))
    finally:
        csv.field_size_limit(before)
    if not records:
        return
    (place, names), *rows = records
    _check_names(names, place, separator)
    for place, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"{place}: the row has {len(cells)} cells, and the header {len(names)}: {', '.join(names)}. Put cells"
                ' that hold a separator or a line end into double quotes, and write "" for a double quote in them.'
            )
        yield Row(dict(zip(names, cells, strict=True)), place)


def _records(path: Path, separator: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of each record, with its place."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield f"{path}:{line}", cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}:{line}: the record that begins here is not CSV: {error}. A cell in double quotes ends with one,"
            ' directly before the separator; write "" for a double quote in it.'
        ) from error


def _check_names(names: list[str], place: str, separator: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    blank = [number for number, name in enumerate(names, start=1) if not name.strip()]
    if blank:
        raise ValueError(f"{place}: column {blank[0]} of the header has no name. Write one.")
    if twice is not None:
        raise ValueError(f"{place}: the header names the column {twice!r} twice. Rename one of them.")
    other = next((other for other in ";\t,|" if other != separator and other in names[0]), None)
    if _JSON.match(names[0]):
        raise ValueError(
            f"{place}: the file begins as JSON does, with {names[0][:60]!r}. Set task.format: jsonl or json."
        )
    if len(names) == 1 and other is not None:
        raise ValueError(
            f"{place}: the header is one column, {names[0][:60]!r}, and looks as if {other!r} separated them. Save the"
            " file with commas, or set task.format: tsv if its columns are separated by tabs."
        )
