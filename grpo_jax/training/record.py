"""A run directory: settings, metrics, answers and checkpoints, as they are written. `RunDirectory` reads them.

config.yaml                 every setting, and where it came from; config.2.yaml, ... are those of later resumes that
                            changed some
run.json                    the name of the run, and what it was made of (training/resuming.py)
lock                        the process that writes here (training/lock.py)
saved                       empty; there once a step has been saved whole
metrics.jsonl               one line a step, written when the step ends
completions/step_000012.jsonl   every answer of a step with its rewards and advantage (of several hosts, each writes
                            those it gave: step_000012.host_1.jsonl)
completions/held_out_000012.jsonl   every answer of the evaluation after a step (000000: before the first)
health.json, warnings.jsonl what the checks of its health have to know, and the warnings (grpo_jax/health/kept.py)
report.html                 all of this as a page for people (training/reporting.py)
retired.jsonl               the examples that are not asked any more, by the step that found them solved
events/, trackers/          the same metrics for TensorBoard, and what other trackers need (training/trackers/)
profile/                    the trace of some steps (training/profiling.py)
checkpoints/                the train state (training/checkpoint.py); unusable/ has those that were skipped
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.saved.directory import CONFIG, METRICS, RETIRED, RUN, RunDirectory, answer_files, settings_of
from grpo_jax.saved.plain import without_nan
from grpo_jax.training.trackers.feed import Feed, close_all


@dataclass(frozen=True)
class Run:
    """The name of a run, and the folder of all runs. A second run of the same name is `name-2`, then `name-3`.

    The name is kept in the directory, so `name-2` may as well be the first run of another name.
    """

    name: str = "grpo"
    root: str = "runs"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"A run is named by letters, digits, '_', '.' and '-'; got {self.name!r}.")
        if "://" in self.root:
            raise ValueError(
                f"run.root must be a folder; got {self.root!r}. Mount the bucket, and give the folder where it is."
            )

    @property
    def folder(self) -> Path:
        """The folder of all runs. It stays the same when the program changes its current folder."""
        return Path(self.root).expanduser().absolute()

    def create(self) -> Path:
        """A new directory for a run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max(self._numbers(), default=0) + 1
        while True:
            try:
                self._path(number).mkdir()
            except FileExistsError:  # a run of another name, or one that has just been started
                number += 1
            else:
                path = self._path(number)
                (path / RUN).write_text(json.dumps({"name": self.name}) + "\n", encoding="utf-8")
                return path

    def latest(self) -> Path:
        """The directory of the newest run of this name."""
        numbers = self._numbers()
        if not numbers:
            raise FileNotFoundError(
                f"There is no run {self.name} in {self.root}/ to resume. Leave out --resume to start one."
            )
        path = self._path(max(numbers))
        check_inside(path, self.folder)
        return path

    def _numbers(self) -> list[int]:
        """The numbers of the directories of this name."""
        pattern = re.compile(re.escape(self.name) + r"(?:-([1-9]\d*))?")
        found = [(path, pattern.fullmatch(path.name)) for path in self.folder.glob("*") if path.is_dir()]
        numbers = [(path, int(match[1] or 1)) for path, match in found if match]
        return [number for path, number in numbers if self._owns(path, number)]

    def _owns(self, path: Path, number: int) -> bool:
        """Whether a directory is one of this run's. Without a name in it, only the first one is."""
        name = RunDirectory(path).name()
        return number == 1 if name is None else name == self.name

    def _path(self, number: int) -> Path:
        return self.folder / (self.name if number == 1 else f"{self.name}-{number}")


def check_inside(path: Path, root: Path) -> None:
    """Refuses a run directory that is a link to another place, or holds one: files there would be written over."""
    for entry in (path, *path.iterdir()):
        if not entry.resolve().is_relative_to(root.resolve() if entry == path else path.resolve()):
            raise ValueError(
                f"{entry} is a symbolic link to {entry.resolve()}, and a run is resumed only where its files are."
                " Replace the link by what it leads to."
            )


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
        self.feeds: Sequence[Feed] = ()
        self.earlier = {kind: answer_files(path / "completions", kind) for kind in ("step", "held_out")}
        self.failed = False  # whether the run ends by an error, which trackers are told
        if writes:
            _replace(self.file, self.history)
            if kept or self.solved.exists():
                _replace(self.solved, kept)

    def hand_to(self, feeds: Sequence[Feed]) -> None:
        """Hands all metrics from now on to these trackers, too, until `close`."""
        self.feeds = feeds

    def write_config(self, text: str) -> None:
        """Keeps the text of a config, beside those before it if a setting differs. A run from Python may have none."""
        found = RunDirectory(self.path)
        if not text:
            return
        files = [file for file in found.configs() if file.exists()]
        before = settings_of(files[-1].read_text(encoding="utf-8")) if files else {}
        if {key: value for key, (value, _) in before.items()} != {key: v for key, (v, _) in settings_of(text).items()}:
            name = CONFIG if not files else f"config.{len(files) + 1}.yaml"
            (self.path / name).write_text(text, encoding="utf-8")

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line of numbers. A number that is not finite becomes null, as JSON has no other word for it."""
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {"step": step} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.history.append(finite)
        if not self.writes:
            return
        with self.file.open("a") as file:
            file.write(json.dumps(finite) + "\n")
        for feed in self.feeds:
            feed.write(step, numbers)

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Adds to the metrics of the last step: those of an evaluation that was due when the run was stopped."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self.history[-1] |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if self.writes:
            _replace(self.file, self.history)
        for feed in self.feeds:
            feed.write(self.history[-1]["step"], numbers, amends=True)

    def lacks(self, step: int, name: str) -> bool:
        """Whether the last row is that of `step`, without a metric. It is not if its line was cut off."""
        return bool(self.history) and self.history[-1]["step"] == step and name not in self.history[-1]

    def best(self, name: str | None) -> int | None:
        """The first step in which a metric had its largest value so far; None before it was measured."""
        known = [
            (row[name], -row["step"]) for row in self.history if name and row.get(name) is not None and row["step"]
        ]
        return -max(known)[1] if known else None

    def retire(self, step: int, examples: Sequence[int]) -> None:
        """Writes one line with the indices of training examples that are not asked any more."""
        if examples and self.writes:
            with self.solved.open("a") as file:
                file.write(json.dumps({"step": step, "examples": list(examples)}) + "\n")

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]], host: int = 0, hosts: int = 1) -> None:
        """Writes one line for each answer of a step. Each of several hosts writes those it has."""
        write_answers(self.path / "completions", "step", step, rows, self.earlier["step"], host, hosts)

    def held_out(self, step: int, rows: Sequence[Mapping[str, Any]], host: int = 0, hosts: int = 1) -> None:
        """Writes one line for each answer of the evaluation after a step, in place of those of an earlier one."""
        write_answers(self.path / "completions", "held_out", step, rows, self.earlier["held_out"], host, hosts)

    def close(self) -> None:
        """Waits for the trackers, for some seconds at most."""
        close_all(self.feeds, self.failed)


def write_answers(
    folder: Path,
    kind: str,
    step: int,
    rows: Sequence[Mapping[str, Any]],
    earlier: Mapping[int, Mapping[int | None, Path]],
    host: int = 0,
    hosts: int = 1,
) -> None:
    """Writes the answers of a step that this host has: each of several has a file of its own, by its number.

    Of the files that were there `earlier`, those that another number of hosts wrote for this step are removed, as
    readers join the files of all hosts.
    """
    numbers = [None] if hosts == 1 else range(hosts)
    part = "" if hosts == 1 else f".host_{host}"
    write_rows(folder / f"{kind}_{step:06d}{part}.jsonl", rows)
    for number, file in earlier.get(step, {}).items():
        if number not in numbers:
            file.unlink(missing_ok=True)  # each host removes all of them, as they may see folders of their own


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one line for each row, in one step: a reader sees all of them, or the file as it was before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text("".join(map(_line, rows)), encoding="utf-8")
    new.replace(file)


def _line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON, which has no word for NaN (null instead) and escapes for half a surrogate pair."""
    finite = without_nan(dict(row))
    text = json.dumps(finite, ensure_ascii=False, allow_nan=False, default=str)
    whole = all(not "\ud800" <= character <= "\udfff" for character in text)
    return (text if whole else json.dumps(finite, allow_nan=False, default=str)) + "\n"


def _replace(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a file by these rows in one step, so that a reader never sees a part of it."""
    new = file.with_suffix(".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(file)
