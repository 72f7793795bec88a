"""Rows of a Parquet file."""

import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from grpo_jax.tasks.tables.content import GZIP, PARQUET, begins, check_text, opened, require_file
from grpo_jax.tasks.tables.row import Row, plain_row


def read_parquet(path: Path, columns: Collection[str] = ()) -> Iterator[Row]:
    """Each row with its number, counted from 0. `columns` are those to keep; none keeps all."""
    require_file(path)
    start = begins(path, 32)
    if not start.startswith(PARQUET):
        check_text(path, start)  # of another kind
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path} is a Parquet file, which pyarrow reads: pip install pyarrow") from error
    try:
        yield from _rows(parquet.ParquetFile(_source(path)), path, columns)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{path} cannot be read as Parquet: {reason}. It is cut off, damaged or of another kind: copy it again, or"
            " set task.format."
        ) from error


def _source(path: Path) -> Any:
    """What pyarrow reads: the file itself, or what is unpacked of it."""
    if begins(path) != GZIP:
        return path
    with opened(path) as file:
        return io.BytesIO(file.read())


def _rows(file: Any, path: Path, columns: Collection[str]) -> Iterator[Row]:
    names = file.schema_arrow.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two columns are named {twice!r}. Rename one of them.")
    kept = [name for name in names if not columns or name in columns]
    number = 0
    for batch in file.iter_batches(columns=kept if columns else None):
        for values in batch.to_pylist():
            yield plain_row(values, f"{path}, row {number}")
            number += 1


def is_parquet(path: Path) -> bool:
    """Whether a file begins as one of Parquet does."""
    return path.is_file() and begins(path, len(PARQUET)) == PARQUET
