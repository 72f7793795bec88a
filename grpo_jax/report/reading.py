"""Reads a run directory as far as it can be read: a report is made of what is there, and says what is not."""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.health.groups import Group, Groups
from grpo_jax.health.kept import WARNINGS, read_setup, setup_from
from grpo_jax.health.seen import Limits, Seen, Setup
from grpo_jax.health.whole import evenly
from grpo_jax.report.rows import History, first_rows, number_of, rows_of
from grpo_jax.saved.directory import METRICS, RunDirectory, settings_of

CHANCE = 3.0  # standard errors, by which a reward rises more than by chance
FAINT = 0.05  # nats, below which the entropy is gone; warnings, which do not see whether a run has learned, take less
STEPS_READ = 12  # whose answers are read
MOST_BYTES = 2_000_000  # of a file of answers, which may be far larger
EVALUATION_BYTES = 10 * MOST_BYTES  # of the first and of the last evaluation, which are compared
Answer = dict[str, Any]
Rows = list[Answer]


@dataclass(frozen=True)
class Found:
    """What a run directory holds. `answers` and `held_out` are those of some steps, in groups that share a prompt.

    `settings` have their texts and where they were written; `problems` are sentences on what could not be read.
    """

    path: Path
    name: str
    history: History
    setup: Setup
    settings: Mapping[str, tuple[str, str]]
    targets: Mapping[str, str]  # the owner of each section of the config
    warnings: Sequence[Mapping[str, Any]]
    answers: Mapping[int, Sequence[Sequence[Answer]]]
    held_out: Mapping[int, Sequence[Sequence[Answer]]]
    lacking: Collection[int]  # evaluations of which not all answers were read
    problems: Sequence[str]

    @property
    def seen(self) -> Seen:
        """The run as the checks of its health see it."""
        return Seen(self.history, self.setup, Limits(chance=CHANCE, entropy=FAINT))

    @property
    def groups(self) -> Groups:
        """The groups as the checks of a whole run see them."""
        weights = self.weights
        return {step: [_group(rows, weights) for rows in each] for step, each in self.answers.items()}

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each reward by its name in the rows, for rows without a total; empty where nothing tells it.

        A config tells those of its rewards. Those of a task's rewards and of criteria follow from the metrics.
        """
        rows = [group[0] for each in self.answers.values() for group in each]
        names = list(dict.fromkeys(name for row in rows for name in parts_of(row)))
        keys = [key for key in self.settings if re.fullmatch(r"rewards\[\d+\].weight", key)]
        written = [_number(self.settings[key][0]) for key in keys]
        if any("/" in name for name in names) or len(names) not in (1, len(written)):
            return weights_from(self.history, names)
        return dict(zip(names, written if len(names) == len(written) else [1.0], strict=True))


def read_run(path: Path) -> Found:
    """Reads a run directory. One without metrics, answers or config gives a `Found` that lacks these."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the directory of a run, such as runs/quickstart.")
    problems: list[str] = []
    if not (path / METRICS).exists():
        problems.append(f"there is no {METRICS}: no step has ended yet, or this is not the directory of a run")
    history = History(rows_of(path / METRICS, problems) if (path / METRICS).exists() else iter(()), problems)
    text = _config(path, problems)
    settings = settings_of(text)
    parts = [match[1] for name in history.values if (match := re.fullmatch(r"rewards/(.*)/mean", name))]
    setup = read_setup(path) or setup_from({key: value for key, (value, _) in settings.items()}, tuple(parts))
    kept = rows_of(path / WARNINGS, problems) if (path / WARNINGS).exists() else iter(())
    wanted = {"step": int, "warning": str, "text": str}
    warnings = [row for row in kept if all(type(row.get(name)) is kind for name, kind in wanted.items())]
    targets = dict(re.findall(r"^(\w+):  # (\S+:\w+)$", text, re.MULTILINE))
    last = int(history.steps[-1]) if len(history) else None
    answers, _ = _answers(path, "step", last, problems)
    held_out, lacking = _answers(path, "held_out", last, problems)
    found = (history, setup, settings, targets, warnings, answers, held_out, lacking, problems)
    return Found(path, _name(path, problems), *found)


def _config(path: Path, problems: list[str]) -> str:
    try:
        return RunDirectory(path).config()
    except (OSError, ValueError) as error:
        problems.append(f"its config cannot be read ({type(error).__name__}), so settings are not shown")
        return ""


def _name(path: Path, problems: list[str]) -> str:
    try:
        name = RunDirectory(path).name()
    except (OSError, ValueError):
        problems.append("run.json cannot be read, so the run has the name of its folder here")
        name = None
    folder = path.absolute().name
    return folder if name is None or folder.startswith(name) else f"{name} ({folder})"


def _answers(path: Path, kind: str, last: int | None, problems: list[str]) -> tuple[dict[int, list[Rows]], set[int]]:
    """The answers of some steps up to the `last`, from the files of all hosts, in groups; and which steps lack some.

    A step writes its answers before its metrics. Those of still later steps are from before the run was resumed.
    """
    files = _files(path, kind)
    if late := [step for step in files if last is not None and step > last + 1]:
        problems.append(f"answers of {len(late)} step(s) after step {last} are left out: no metrics belong to them")
    steps = evenly([step for step in sorted(files) if last is None or step <= last], STEPS_READ)
    found, lacking = {}, set()
    for step in steps:
        most = EVALUATION_BYTES if kind == "held_out" and step in (steps[0], steps[-1]) else MOST_BYTES
        groups = []
        for file in files[step]:
            rows, is_cut = first_rows(file, problems, most)
            whole = grouped(row for row in rows if isinstance(row.get("completion"), str) and "prompt" in row)
            groups += whole[:-1] if is_cut else whole  # the last one lacks answers
            lacking |= {step} if is_cut else set()
        if groups:
            found[step] = groups
    return found, lacking


def _files(path: Path, kind: str) -> dict[int, list[Path]]:
    """The files of answers by their steps."""
    files: dict[int, list[Path]] = {}
    folder = path / "completions"
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = re.fullmatch(rf"{kind}_(\d+)(\.host_\d+)?\.jsonl", file.name)
        if match is not None:
            files.setdefault(int(match[1]), []).append(file)
    return files


def grouped(rows: Iterable[Answer]) -> list[list[Answer]]:
    """Rows that follow one another and have the same prompt and answer, as groups."""
    return [list(group) for _, group in groupby(rows, key=question_of)]


def question_of(row: Answer) -> str:
    """What two answers to the same question have in common."""
    return json.dumps([row["prompt"], row.get("answer")], sort_keys=True, default=str)


def parts_of(row: Answer) -> dict[str, float]:
    """The rewards of an answer by name; NaN for one that gave no score."""
    parts = {name[len("rewards/") :]: value for name, value in row.items() if name.startswith("rewards/")}
    return {name: _number(value) for name, value in parts.items()}


def weights_from(history: History, names: Sequence[str]) -> dict[str, float]:
    """The weights with which the means of these rewards add up to the mean total of every step; empty if none do.

    None do where a criterion is a gate, and where too few steps differ to tell one reward from another.
    """
    columns = [history.values.get(name) for name in ("reward", *(f"rewards/{name}/mean" for name in names))]
    if not names or any(column is None for column in columns):
        return {}
    table = np.stack([column for column in columns if column is not None], axis=1)
    table = table[np.isfinite(table).all(axis=1)]
    totals, means = table[:, 0], table[:, 1:]
    if np.linalg.matrix_rank(means) < len(names):
        return {}
    weights = np.linalg.lstsq(means, totals)[0]
    fits = len(table) > len(names) and bool(np.allclose(means @ weights, totals, rtol=1e-4, atol=1e-5))
    return dict(zip(names, weights.tolist(), strict=True)) if fits else {}


def total_of(row: Answer, weights: Mapping[str, float]) -> float:
    """The total reward of an answer: as it was written, else the weighted sum of its parts.

    NaN without a score, and where a weight is not known.
    """
    if "reward" in row:
        return _number(row["reward"])
    parts = {name: value for name, value in parts_of(row).items() if math.isfinite(value)}
    return sum(weights.get(name, math.nan) * value for name, value in parts.items()) if parts else math.nan


def advantage_of(row: Answer) -> float:
    """The advantage of an answer: the mean over its tokens where each has its own; NaN if it is not known."""
    value = row.get("advantage")
    if isinstance(value, list):
        known = [number for item in value if math.isfinite(number := _number(item)) and number != 0]
        return sum(known) / len(known) if known else 0.0
    return _number(value)


def length_of(row: Answer) -> float:
    """The length of an answer in tokens, or in characters for a run that did not write it."""
    length = _number(row.get("length"))
    return length if math.isfinite(length) else float(len(row["completion"]))


def _group(rows: Sequence[Answer], weights: Mapping[str, float]) -> Group:
    answer = rows[0].get("answer")
    gold = str(answer).strip() if isinstance(answer, str | int | float) and not isinstance(answer, bool) else ""
    known = [_holds(row["completion"], gold) for row in rows] if gold else []
    return Group(
        tuple(total_of(row, weights) for row in rows),
        tuple(length_of(row) for row in rows),
        tuple(row.get("truncated") is True for row in rows),
        tuple(known),
    )


def _holds(completion: str, gold: str) -> bool:
    """Whether a text has the expected answer in it, and not as a part of a longer number or word."""
    return re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", completion) is not None


def _number(value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return math.nan
    return number_of(value)
