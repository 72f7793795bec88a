"""What the files of a checkpoint were when it was saved, and whether they still are.

Orbax finds that a file is missing or too short; it restores a flipped bit in silence. So `manifest.json` in the folder
of each step has the size and the SHA-256 sum of every other file of it. It is written last, and replaced in one step:
a folder without it was not saved to its end. It guards against accidents, not against somebody who rewrites it too.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """What the folder of a step turned out to be, and why. `size` is in bytes, `extra` files are not in the manifest.

    A step is unfinished if its folder has no manifest: the save was interrupted, or an early version wrote it. It is
    complete if all files are there with their sizes, and nobody has compared what is in them.
    """

    step: int
    status: Literal["verified", "complete", "damaged", "unfinished"]
    reason: str = ""
    size: int = 0
    extra: tuple[str, ...] = ()


def steps_in(directory: Path) -> list[int]:
    """The steps that have a folder, or a file in its place, in order, whatever is in it."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))


def write_manifest(folder: Path, step: int) -> None:
    """Writes the manifest of a step whose other files are all there."""
    new = folder / f"{MANIFEST}.tmp"
    with new.open("w", encoding="ascii") as file:
        file.write(_text(step, {name: _sum(folder / name) for name in _files(folder)}))
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / MANIFEST)


def list_step(folder: Path) -> Verdict:
    """Looks for every file that the manifest of a step names, and at its size, but not into it."""
    return verify(folder, contents=False)


def verify(folder: Path, contents: bool = True) -> Verdict:
    """Compares every file of a step with the manifest. The step is the name of the folder."""
    step, found = int(folder.name), list(_files(folder))
    size = sum((folder / name).lstat().st_size for name in found)
    if folder.is_symlink():
        return Verdict(step, "damaged", f"{folder} is a symbolic link")
    if not folder.is_dir():
        return Verdict(step, "damaged", f"{folder} is not a folder")
    if (folder / MANIFEST).is_symlink():
        return Verdict(step, "damaged", f"file {MANIFEST} is a symbolic link", size)
    if not (folder / MANIFEST).is_file():
        reason = f"it has no {MANIFEST}, so it was not saved to its end" if found else "its folder is empty"
        return Verdict(step, "unfinished", reason, size)
    try:
        saved, sums = _read(folder)
        if saved != step:
            raise ValueError(f"it is a copy of step {saved}")
        _compare(folder, sums, contents)
    except (ValueError, OSError) as error:
        return Verdict(step, "damaged", str(error), size)
    status = "verified" if contents else "complete"
    return Verdict(step, status, "", size, tuple(name for name in found if name not in sums))


def _compare(folder: Path, sums: dict[str, dict[str, Any]], contents: bool) -> None:
    """Refuses a folder in which a file of the manifest is not what it was. All are read, to say how many are whole."""
    problems = {name: problem for name, known in sums.items() if (problem := _problem(folder, name, known, contents))}
    if problems:
        name, problem = next(iter(problems.items()))
        raise ValueError(f"file {name} {problem}, {len(sums) - len(problems)} of {len(sums)} files match")


def _problem(folder: Path, name: str, known: dict[str, Any], contents: bool) -> str:
    """What is wrong with a file; nothing if it is what it was."""
    path, parts = folder / name, PurePosixPath(name).parts
    if any((folder / PurePosixPath(*parts[: count + 1])).is_symlink() for count in range(len(parts))):
        return "is reached through a symbolic link"
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != known["size"]:
        return f"has {size} bytes, not {known['size']}"
    return "" if not contents or _sum(path) == known else "has other contents"


def _read(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The step and the sums in a manifest, which must read exactly as it was written."""
    text = (folder / MANIFEST).read_bytes()
    try:
        found = json.loads(text)
        step, sums = found["step"], found["files"]
        as_written = _text(step, sums).encode("ascii")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"file {MANIFEST} cannot be read") from error
    if text != as_written or not isinstance(step, int) or not all(isinstance(known, dict) for known in sums.values()):
        raise ValueError(f"file {MANIFEST} is not as it was written")
    for name in sums:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"file {MANIFEST} names {name}, which is outside of {folder}")
    return step, sums


def _text(step: int, sums: dict[str, dict[str, Any]]) -> str:
    content = {"version": VERSION, "step": step, "files": dict(sorted(sums.items()))}
    seal = hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()
    return json.dumps(content | {"sha256": seal}, indent=1) + "\n"


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _files(folder: Path) -> Iterator[str]:
    """The files of a folder and of those in it, except the manifest, by their names in it. Links are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted(names + links):
            path = (Path(place) / name).relative_to(folder).as_posix()
            if path not in (MANIFEST, f"{MANIFEST}.tmp"):
                yield path
