"""Several runs beside one another. Runs whose settings differ in their seeds alone are one side, with a band."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from grpo_jax.report.curves import Curve, Line, thin, whole_curves
from grpo_jax.report.diagnosis import diagnoses
from grpo_jax.report.headline import Headline, headline
from grpo_jax.report.reading import Found
from grpo_jax.report.text import clean

SEEDS = ("train.seed", "task.seed", "evaluation.seed")  # which may differ between the runs of one side


@dataclass(frozen=True)
class Side:
    """Runs that differ in nothing but their seed: their mean is a line, and their range a band."""

    label: str
    runs: Sequence[Found]

    @property
    def headlines(self) -> list[Headline]:
        """The headline of each run."""
        return [headline(run) for run in self.runs]

    @property
    def causes(self) -> list[str]:
        """What is wrong with these runs, each title once, with the number of runs if it is not all."""
        titles = [diagnosis.title for run in self.runs for diagnosis in diagnoses(run)]
        counts = {title: titles.count(title) for title in titles}
        total = len(self.runs)
        return [title if count == total else f"{title} ({count} of {total} runs)" for title, count in counts.items()]


@dataclass(frozen=True)
class Compared:
    """A line of the table: a value for each side."""

    name: str
    values: Sequence[str]


def sides_of(found: Sequence[Found]) -> list[Side]:
    """The sides of a comparison, in the order of their first runs. A run without a config is a side of its own."""
    groups: dict[str, list[Found]] = {}
    for index, run in enumerate(found):
        known = [(key, value) for key, (value, _) in run.settings.items() if not _varies(key)]
        groups.setdefault(repr(known) if known else f"run {index}", []).append(run)
    return [Side(_label(runs), runs) for runs in groups.values()]


def _varies(key: str) -> bool:
    return key.startswith("run.") or key in SEEDS


def _label(runs: Sequence[Found]) -> str:
    first = clean(runs[0].name)
    return first if len(runs) == 1 else f"{first} ({len(runs)} seeds)"


def rows_of_sides(sides: Sequence[Side]) -> list[Compared]:
    """The table: rewards before and after, what is wrong, and the settings in which the sides differ."""
    return [
        Compared("measured by", [side.headlines[0].name or "nothing" for side in sides]),
        Compared("before", [_levels(side, "first") for side in sides]),
        Compared("after", [_levels(side, "last") for side in sides]),
        Compared("state", [side.headlines[0].state for side in sides]),
        Compared("diagnosis", ["; ".join(side.causes) or "nothing is wrong" for side in sides]),
        *_differences(sides),
    ]


def _levels(side: Side, which: str) -> str:
    levels = [level for each in side.headlines if (level := getattr(each, which)) is not None]
    if not levels:
        return "not measured"
    if len(levels) == 1:
        return str(levels[0])
    values = [level.value for level in levels]
    return f"{fmean(values):.3f} (range {min(values):.3f} to {max(values):.3f} of {len(values)} runs)"


def _differences(sides: Sequence[Side]) -> Iterator[Compared]:
    settings = [{key: value for key, (value, _) in side.runs[0].settings.items()} for side in sides]
    for key in dict.fromkeys(key for each in settings for key in each):
        values = [each.get(key, "not there") for each in settings]
        if len(set(values)) > 1 and not _varies(key):
            yield Compared(clean(key), [clean(value) for value in values])


def compared(sides: Sequence[Side]) -> list[Curve]:
    """The curves of all runs, one picture for each metric: a line for each side, with the range of its runs."""
    made = {run.path: {curve.title: curve for curve in whole_curves(run)} for side in sides for run in side.runs}
    titles = dict.fromkeys(title for each in made.values() for title in each)
    pictures = []
    for title in titles:
        example = next(each[title] for each in made.values() if title in each)
        for label in dict.fromkeys(line.label for each in made.values() if title in each for line in each[title].lines):
            lines = [line for side in sides if (line := _together(side, made, title, label)) is not None]
            name = title if len(example.lines) == 1 else f"{title}: {label}"
            if lines:
                pictures.append(Curve(name, example.says, example.unit, lines, example.log))
    return pictures


def _together(side: Side, made: dict, title: str, label: str) -> Line | None:
    """The mean of the lines of a side, and the range; a single run is itself."""
    found = [made[run.path][title] for run in side.runs if title in made[run.path]]
    lines = [line for curve in found for line in curve.lines if line.label == label]
    if len(lines) < 2:
        return thin(Line(side.label, lines[0].steps, lines[0].values, points=lines[0].points)) if lines else None
    start, end = max(line.steps[0] for line in lines), min(line.steps[-1] for line in lines)
    steps = np.unique(np.concatenate([line.steps for line in lines]))
    steps = steps[(steps >= start) & (steps <= end)]
    if not len(steps):
        return None
    values = np.stack([np.interp(steps, line.steps, line.values) for line in lines])
    low, high = values.min(axis=0), values.max(axis=0)
    return thin(Line(side.label, steps, values.mean(axis=0), low, high, points=lines[0].points))
