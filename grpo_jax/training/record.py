"""A run directory: settings, metrics, answers and checkpoints, as they are written and as they are read.

config.yaml                 every setting, and where it came from
metrics.jsonl               one line a step, written when the step ends
completions/step_000012.jsonl   every answer of a step with its rewards and advantage (of several hosts, each writes
                            those it gave: step_000012.host_1.jsonl)
retired.jsonl               the examples that are not asked any more, by the step that found them solved
events/                     the same metrics for TensorBoard
checkpoints/                the train state (training/checkpoint.py)
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.training.events import Events

CONFIG, METRICS, RETIRED = "config.yaml", "metrics.jsonl", "retired.jsonl"


@dataclass(frozen=True)
class Run:
    """The name of a run, and the folder of all runs. A second run of the same name is `name-2`, then `name-3`."""

    name: str = "grpo"
    root: str = "runs"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"A run is named by letters, digits, '_', '.' and '-'; got {self.name!r}.")

    def create(self) -> Path:
        """A new directory for a run."""
        numbers = self._numbers()
        path = self._path(max(numbers) + 1 if numbers else 1)
        path.mkdir(parents=True)
        return path

    def latest(self) -> Path:
        """The directory of the newest run of this name."""
        numbers = self._numbers()
        if not numbers:
            raise FileNotFoundError(
                f"There is no run {self.name} in {self.root}/ to resume. Leave out --resume to start one."
            )
        return self._path(max(numbers))

    def _numbers(self) -> list[int]:
        pattern = re.compile(re.escape(self.name) + r"(?:-(\d+))?")
        names = [path.name for path in Path(self.root).expanduser().glob("*") if path.is_dir()]
        return [int(match[1] or 1) for match in map(pattern.fullmatch, names) if match]

    def _path(self, number: int) -> Path:
        return Path(self.root).expanduser() / (self.name if number == 1 else f"{self.name}-{number}")


class RunDirectory:
    """Reads a run directory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each step, in order; step 0 is the evaluation before the first one."""
        return _read(self.path / METRICS)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """The steps in which a metric was measured, and its values."""
        known = [(row["step"], row[name]) for row in self.metrics() if row.get(name) is not None]
        return [step for step, _ in known], [value for _, value in known]

    def answers(self, step: int) -> list[dict[str, Any]]:
        """Every answer of a step with its rewards and advantage, from the files of all hosts."""
        files = sorted((self.path / "completions").glob(f"step_{step:06d}*.jsonl"))
        return [row for file in files for row in _read(file)]

    def retired(self) -> list[dict[str, Any]]:
        """The indices of the examples that a step found solved, one row for each such step."""
        return _read(self.path / RETIRED)

    def config(self) -> str:
        """The text of config.yaml: every setting, and where it came from."""
        return (self.path / CONFIG).read_text()


class Record:
    """Writes what happens into a run directory, after `step` steps that are already there.

    On several hosts the first one `writes`; all of them keep the same history, and each writes the answers it has.
    """

    def __init__(self, path: Path, step: int = 0, writes: bool = True):
        found = RunDirectory(path)
        self.path, self.writes = path, writes
        self.file, self.solved = path / METRICS, path / RETIRED
        self.history = [row for row in found.metrics() if row["step"] <= step]
        kept = [row for row in found.retired() if row["step"] <= step]
        self.retired = [index for row in kept for index in row["examples"]]
        self.events = None
        if writes:
            _replace(self.file, self.history)
            if kept or self.solved.exists():
                _replace(self.solved, kept)
            self.events = Events(path / "events", step)

    def write_config(self, text: str) -> None:
        """Keeps the text of a config; a run that was started from Python may have none."""
        if text:
            (self.path / CONFIG).write_text(text)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line of numbers. A number that is not finite becomes null, as JSON has no other word for it."""
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {"step": step} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.history.append(finite)
        if self.events is None:
            return
        with self.file.open("a") as file:
            file.write(json.dumps(finite) + "\n")
        self.events.write(step, numbers)

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Adds to the metrics of the last step: those of an evaluation that was due when the run was stopped."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self.history[-1] |= finite
        if self.events is not None:
            _replace(self.file, self.history)
            self.events.write(self.history[-1]["step"], metrics)

    def retire(self, step: int, examples: Sequence[int]) -> None:
        """Writes one line with the indices of training examples that are not asked any more."""
        if examples and self.writes:
            with self.solved.open("a") as file:
                file.write(json.dumps({"step": step, "examples": list(examples)}) + "\n")

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]], host: int | None = None) -> None:
        """Writes one line for each answer of a step. Each of several hosts has its own file, by its number `host`."""
        folder = self.path / "completions"
        folder.mkdir(exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        part = "" if host is None else f".host_{host}"
        (folder / f"step_{step:06d}{part}.jsonl").write_text("".join(lines), encoding="utf-8")

    def close(self) -> None:
        """Closes the files."""
        if self.events is not None:
            self.events.close()


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _replace(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a file by these rows in one step, so that a reader never sees a part of it."""
    new = file.with_suffix(".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(file)
