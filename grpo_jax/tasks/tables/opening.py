"""Where rows come from: a path and a format, or one that is found from the path."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from grpo_jax.tasks.tables.csv_rows import read_csv
from grpo_jax.tasks.tables.functions import is_named, read_function
from grpo_jax.tasks.tables.json_rows import is_array, read_array, read_lines
from grpo_jax.tasks.tables.libraries import REPOSITORY, Rows, by_builder, by_datasets, is_builder
from grpo_jax.tasks.tables.parquet_rows import is_parquet, read_parquet
from grpo_jax.tasks.tables.row import Row, plain_row

Format = Literal[
    "auto", "jsonl", "json", "csv", "tsv", "parquet", "datasets", "tensorflow-datasets", "function", "reasoning-gym"
]
LIBRARIES = ("datasets", "tensorflow-datasets")
PUZZLES = "reasoning-gym"
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def format_of(path: str, otherwise: Format | None = None) -> Format:
    """The format of what is at a path; `otherwise` is that of a file whose name does not tell it."""
    file = Path(path).expanduser()
    if is_named(path) and not file.exists():
        return "function"
    if file.is_dir():
        return "tensorflow-datasets" if is_builder(file) else "datasets"
    if is_parquet(file):
        return "parquet"
    found = SUFFIXES.get(_suffix(file), otherwise)
    if found == "json" and file.is_file() and not is_array(file):
        return "jsonl"
    if found is None:
        raise _unknown(path, file)
    return found


def _suffix(file: Path) -> str:
    """The last suffix of a name, without the one of gzip."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz").removesuffix(".gzip")).suffix


def _unknown(path: str, file: Path) -> Exception:
    if file.exists():
        return ValueError(
            f"task.format has to be given for {path}, as its name does not tell it: a name ends in"
            f" {', '.join(SUFFIXES)}, with or without .gz."
        )
    hub = REPOSITORY.fullmatch(path) and path.count("/") == 1
    way_out = " If it is a data set on the Hugging Face hub, set task.format: datasets." if hub else ""
    return FileNotFoundError(
        f"{path} is not a file. Relative paths start from {Path.cwd()}, or from the config's folder.{way_out}"
    )


def read_file(path: Path, format: str, columns: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a file; `columns` are those to keep, and none keeps all."""
    if format == "parquet":
        return read_parquet(path, columns)
    readers: dict[str, Callable[[], Iterator[Row]]] = {
        "jsonl": lambda: read_lines(path),
        "json": lambda: read_array(path),
        "csv": lambda: read_csv(path, ","),
        "tsv": lambda: read_csv(path, "\t"),
    }
    return (only(row, columns) for row in readers[format]())


def read_split(path: str, format: str, subset: str | None, split: str, columns: Collection[str]) -> Iterator[Row]:
    """The rows of one split of a data set that a library reads."""
    splits = by_datasets(path, subset) if format == "datasets" else by_builder(path)
    if split not in splits:
        raise ValueError(
            f"{path} has no split {split!r}; it has {', '.join(splits)}. Set task.split and task.held_out."
        )
    return numbered(splits[split], f"{path}, {split}", columns)


def numbered(rows: Rows, origin: str, columns: Collection[str] = ()) -> Iterator[Row]:
    """Rows of a library, each with its number, counted from 0."""
    return (plain_row(values, f"{origin}, row {number}", columns) for number, values in enumerate(_each(rows, origin)))


def _each(rows: Rows, origin: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a library, whose errors become sentences."""
    number, iterator = 0, iter(rows)
    while True:
        try:
            values = next(iterator, None)
        except Exception as error:  # of a damaged file, each library raises another class
            raise ValueError(
                f"{origin}, row {number} cannot be read: {type(error).__name__}: {error}. Copy the data set again."
            ) from error
        if values is None:
            return
        yield values
        number += 1


def read_named(path: str, columns: Collection[str]) -> Iterator[Row]:
    """The rows that a Python function gives."""
    return (only(row, columns) for row in read_function(path))


def only(row: Row, columns: Collection[str]) -> Row:
    """The row with these columns; with all of them, if none is named."""
    return Row({name: value for name, value in row.values.items() if name in columns}, row.place) if columns else row
