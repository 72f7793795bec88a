"""Reads a run directory: settings, metrics, answers. training/record.py lists its files, and writes them."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG, METRICS, RETIRED, RUN = "config.yaml", "metrics.jsonl", "retired.jsonl", "run.json"
REPORT = "report.html"
_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^"])*?'
SETTING = re.compile(rf'( *)(- )?("(?:[^"\\]|\\.)*"|[^\s:]+):(?: ({_VALUE}))??(?:  # (.*))?')  # as a config writes them


class RunDirectory:
    """Reads a run directory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each step, in order; step 0 is the evaluation before the first one."""
        return _read(self.path / METRICS, step=int)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """The steps in which a metric was measured, and its values."""
        known = [(row["step"], row[name]) for row in self.metrics() if row.get(name) is not None]
        return [step for step, _ in known], [value for _, value in known]

    def identity(self) -> dict[str, Any]:
        """What run.json says of the run: its name, and what it was made of. Nothing if there is no such file."""
        file = self.path / RUN
        if not file.is_file():
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return found | {"name": str(found["name"])}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} cannot be read; put a copy of it there, or move the folder away.") from error

    def name(self) -> str | None:
        """The name of the run, which is not always that of the directory; None if no file of it says."""
        if (self.path / RUN).exists():
            return self.identity()["name"]
        settings = settings_of(self.config()) if (self.path / CONFIG).exists() else {}
        return settings["run.name"][0].strip('"') if "run.name" in settings else None

    def answers(self, step: int) -> list[dict[str, Any]]:
        """Every answer of a step with its rewards and advantage, from the files of all hosts."""
        files = answer_files(self.path / "completions", "step")
        return [row for file in files.get(step, {}).values() for row in _read(file)]

    def answer_steps(self) -> list[int]:
        """The steps whose answers were written, in order."""
        return sorted(answer_files(self.path / "completions", "step"))

    def held_out(self, step: int) -> list[dict[str, Any]]:
        """Every answer of the evaluation after a step, from the files of all hosts; step 0 is before the first one."""
        files = answer_files(self.path / "completions", "held_out")
        return [row for file in files.get(step, {}).values() for row in _read(file)]

    def held_out_steps(self) -> list[int]:
        """The steps after which held-out answers were written, in order."""
        return sorted(answer_files(self.path / "completions", "held_out"))

    def retired(self) -> list[dict[str, Any]]:
        """The indices of the examples that a step found solved, one row for each such step."""
        return _read(self.path / RETIRED, step=int, examples=list)

    def config(self) -> str:
        """The text of the newest config: every setting, and where it came from."""
        return self.configs()[-1].read_text(encoding="utf-8")

    def configs(self) -> list[Path]:
        """config.yaml, and the files of the resumes that changed a setting, in order."""
        later = {int(path.suffixes[0][1:]): path for path in self.path.glob("config.*.yaml") if _is_numbered(path)}
        return [self.path / CONFIG, *(later[number] for number in sorted(later))]


def answer_files(folder: Path, kind: str) -> dict[int, dict[int | None, Path]]:
    """The files of answers in a folder by step, and for each by the number of the host that wrote it, in order; None
    for the file of a run on one host. `kind` is step or held_out.
    """
    found: dict[int, dict[int | None, Path]] = {}
    for path in folder.glob(f"{kind}_*.jsonl"):
        match = re.fullmatch(rf"{kind}_(\d+)(?:\.host_(\d+))?\.jsonl", path.name)
        if match is not None:
            found.setdefault(int(match[1]), {})[None if match[2] is None else int(match[2])] = path
    return {step: dict(sorted(files.items(), key=lambda item: item[0] or 0)) for step, files in found.items()}


def _is_numbered(path: Path) -> bool:
    return re.fullmatch(r"config\.[1-9]\d*\.yaml", path.name) is not None


def settings_of(config: str) -> dict[str, tuple[str, str]]:
    """Each setting in the text of a config, with its value as text and where it was written."""
    found: dict[str, tuple[str, str]] = {}
    section, item = "", -1
    for line in config.splitlines():
        match = SETTING.fullmatch(line)
        if match is None:
            continue
        indent, dash, key, value, source = match.groups()
        if not indent:
            section, item = key, -1
            continue
        item += bool(dash)
        name = f"{section}[{item}].{key}" if item >= 0 else f"{section}.{key}"
        found[name] = ("" if value is None else value, (source or "").partition(" (")[0])
    return found


def _read(file: Path, **needs: type) -> list[dict[str, Any]]:
    """The rows of a file, each with the fields that it `needs`, of these types.

    A last line that was cut off, when the power or the disk failed, is left out with a warning, and so are blank lines
    and zero bytes; any other line that cannot be read is an error.
    """
    if not file.exists():
        return []
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
    blank = [number for number, line in enumerate(lines, 1) if not line.strip(b"\0 \t\r")] if lines != [b""] else []
    found = {number: _row(line, needs) for number, line in enumerate(lines, 1) if number not in blank and line}
    for number in (number for number, row in found.items() if row is None):
        if number != max(found):
            shown = lines[number - 1][:80].decode(errors="replace")
            raise ValueError(f"{file}:{number} is not a row of this file: {shown!r}. Mend the line, or remove it.")
        blank.append(number)
    for number in blank:
        logging.getLogger("grpo_jax").warning("warning: %s:%d is left out: it is blank, or was cut off", file, number)
    return [row for row in found.values() if row is not None]


def _row(line: bytes, needs: Mapping[str, type]) -> dict[str, Any] | None:
    """The row in a line; None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(row, dict) and all(type(row.get(name)) is kind for name, kind in needs.items())
    return row if fits else None
