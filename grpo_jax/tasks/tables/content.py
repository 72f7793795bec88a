"""The bytes of a file of data, compressed by gzip or not. Those of another kind of file are refused by its name."""

import gzip
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, cast

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
KINDS = {  # the first bytes of files that are no text
    PARQUET: "a Parquet file; set task.format: parquet",
    b"PK\x03\x04": "a zip archive, as Excel writes too; unpack it, or save the table as CSV",
    b"BZh": "compressed by bzip2; unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or compress it by gzip",
    b"ARROW1": "an Arrow file; save the table as Parquet",
    b"\xff\xfe": "text in UTF-16; save the file as UTF-8 text",
    b"\xfe\xff": "text in UTF-16; save the file as UTF-8 text",
    b"version https://git-lfs": "a git-lfs pointer and not the data; run `git lfs pull`",
}


def require_file(path: Path) -> None:
    """Refuses a path that is no file."""
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder, not a file.{_contents(path)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file. Relative paths start from {Path.cwd()}, or from the config's folder."
            f"{_similar(path)}"
        )


def _contents(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir() if each.is_file())[:5]
    return f" Name one of its files: {', '.join(names)}." if names else ""


def _similar(path: Path) -> str:
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, 1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """The bytes of a file, unpacked if they are compressed by gzip."""
    require_file(path)
    packed = begins(path) == GZIP
    if path.suffix.lower() in (".gz", ".gzip") and not packed:
        raise ValueError(f"{path} is named as if it were compressed by gzip, and is not. Rename it, or compress it.")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path} cannot be unpacked: {reason}. It is cut off or damaged: copy it again.") from error


def begins(path: Path, count: int = 2) -> bytes:
    """The first bytes of a file, as they are stored."""
    with path.open("rb") as file:
        return file.read(count)


def check_text(path: Path, start: bytes) -> None:
    """Refuses the bytes that a file starts with if they are those of no text."""
    for magic, kind in KINDS.items():
        if start.startswith(magic):
            raise ValueError(f"{path}:1: the file is {kind}.")


def decoded(content: bytes, location: str, first: bool = False) -> str:
    """Text in UTF-8. Only the `first` piece of a file may begin with a byte order mark."""
    if b"\0" in content:
        raise ValueError(f"{location}: the line holds a NUL byte. Save the file as UTF-8 text.")
    try:
        return content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8 text.") from error


def read_text(path: Path) -> str:
    """The whole text of a file, without a byte order mark. An error names the line."""
    with opened(path) as file:
        content = file.read()
    check_text(path, content[:32])
    lines = content.split(b"\n")
    return "\n".join(decoded(line, f"{path}:{number}", number == 1) for number, line in enumerate(lines, start=1))
