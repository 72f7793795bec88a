"""What a run has learned, from what to what, in sentences that stand at the top."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from grpo_jax.evaluation.intervals import interval
from grpo_jax.report.diagnosis import is_solved
from grpo_jax.report.reading import Answer, Found, question_of, total_of

FEW = 3  # steps whose mean is compared
HELD_OUT, TRAINING, LOSS = "eval/reward", "reward", "loss"
CONFIDENCE = 0.95  # of a difference, for a run whose config does not tell
CHANCE = "no more than chance"


@dataclass(frozen=True)
class Level:
    """A reward at some step, and the interval in which the true mean lies; NaN bounds where none is known."""

    step: int
    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        bounds = f" ({_short(self.low)} to {_short(self.high)})" if math.isfinite(self.low) else ""
        return f"{_short(self.value)}{bounds}"


@dataclass(frozen=True)
class Change:
    """How much more the answers of the last evaluation earn than those of the first, prompt by prompt."""

    mean: float
    low: float
    high: float
    prompts: int

    def __str__(self) -> str:
        bounds = f"{self.low:+.3f} to {self.high:+.3f}"
        return f"a difference of {self.mean:+.3f} ({bounds}) over {self.prompts} prompts, compared in pairs"


@dataclass(frozen=True)
class Headline:
    """The first and the last level of the best-known reward. `name` is empty where nothing was measured."""

    name: str
    first: Level | None
    last: Level | None
    state: str  # how far the run has come
    interval: str  # what the bounds are
    notes: Sequence[str]
    change: Change | None = None  # where both evaluations have written their answers

    @property
    def verdict(self) -> str:
        """Whether the reward rose, in words: by more than its intervals allow, or not."""
        if self.first is None or self.last is None:
            return "nothing has been measured yet"
        if self.change is not None:
            rose, fell = self.change.low > 0, self.change.high < 0
            return "it rose by more than chance" if rose else "it fell by more than chance" if fell else CHANCE
        gap = self.last.value - self.first.value
        bounds = (self.first.low, self.first.high, self.last.low, self.last.high)
        if not all(map(math.isfinite, bounds)):
            return "it rose" if gap > 0 else "it fell" if gap < 0 else "it did not change"
        noise = math.hypot((self.first.high - self.first.low) / 2, (self.last.high - self.last.low) / 2)
        if abs(gap) <= noise:
            return CHANCE
        return "it rose by more than chance" if gap > 0 else "it fell by more than chance"


def headline(found: Found) -> Headline:
    """What was learned: the held-out reward before and after where it was measured, else the training reward."""
    steps, values = found.history.column(HELD_OUT)
    notes = _notes(found)
    if len(steps) >= 2:
        places = (0, int(values.argmax()), len(values) - 1)
        first, best, last = (_held_out(found, int(steps[place]), float(values[place])) for place in places)
        if best.value > last.value:
            notes = [f"the best evaluation was at step {best.step}: {best}", *notes]
        change, what = _change(found, first.step, last.step), _interval(found, last)
        return Headline("held-out reward", first, last, _state(found), what, notes, change)
    name = TRAINING if len(found.history.column(TRAINING)[0]) else LOSS  # given answers have no reward
    values = found.history.column(name)
    if not len(values[0]):
        return Headline("", None, None, _state(found), "", notes)
    few = min(FEW, len(values[0]) // 2) or len(values[0])  # no step is in both, unless there is one only
    first, last = _level(values, slice(0, few)), _level(values, slice(len(values[0]) - few, None))
    what = f"the means of the first and of the last {few} step(s); held-out prompts tell more (train.evaluate_every)"
    return Headline(f"training {name}", first, last, _state(found), what, notes)


def _level(column: tuple[np.ndarray, np.ndarray], where: slice) -> Level:
    steps, values = column[0][where], column[1][where].tolist()
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 2 else math.nan
    return Level(int(steps[-1]), fmean(values), fmean(values) - 2 * error, fmean(values) + 2 * error)


def _held_out(found: Found, step: int, value: float) -> Level:
    """An evaluation with its interval: as measured, or two standard errors of the answers, or of 0-or-1 rewards."""
    bounds = [_at(found, f"{HELD_OUT}/{side}", step) for side in ("low", "high")]
    if all(map(math.isfinite, bounds)):
        return Level(step, value, *bounds)
    means = [mean for mean in _means(found.held_out.get(step, ()), found.weights) if not math.isnan(mean)]
    count = len(means) or found.setup.held_out
    if len(means) > 1:
        error = stdev(means) / math.sqrt(count)
    elif count and _is_share(found):
        error = math.sqrt(value * (1 - value) / count)  # the largest that numbers from 0 to 1 can have
    else:
        return Level(step, value)
    return Level(step, value, value - 2 * error, value + 2 * error)


def _interval(found: Found, level: Level) -> str:
    if f"{HELD_OUT}/low" in found.history.names():
        return "with the interval of the evaluation"
    return "with two standard errors to each side" if math.isfinite(level.low) else ""


def _change(found: Found, first: int, last: int) -> Change | None:
    """The difference of two evaluations whose answers were written; None where some lack, or there are too few, or all
    are alike.
    """
    if {first, last} & {*found.lacking}:
        return None  # the prompts that were read first are not all prompts
    earned = []
    for step in (first, last):
        groups = found.held_out.get(step, ())
        means = zip(groups, _means(groups, found.weights), strict=True)
        earned.append({question_of(group[0]): mean for group, mean in means})
    values = np.array([mean - earned[0][key] for key, mean in earned[1].items() if key in earned[0]])
    written = found.settings.get("evaluation.confidence", ("", ""))[0]
    confidence = float(written) if re.fullmatch(r"0\.\d*[1-9]\d*", written) else CONFIDENCE
    known = values[np.isfinite(values)]
    ends = interval(known, confidence) if len(known) > 1 else None
    if ends is None or not math.isfinite(ends.low) or not math.isfinite(ends.high):
        return None
    return Change(float(known.mean()), ends.low, ends.high, len(known))


def _means(groups: Sequence[Sequence[Answer]], weights: Mapping[str, float]) -> list[float]:
    """The mean total of each prompt; NaN for one without."""
    totals = [[total for row in group if math.isfinite(total := total_of(row, weights))] for group in groups]
    return [fmean(each) if each else math.nan for each in totals]


def _at(found: Found, name: str, step: int) -> float:
    steps, values = found.history.column(name)
    return next((float(value) for at, value in zip(steps, values, strict=True) if at == step), math.nan)


def _is_share(found: Found) -> bool:
    """Whether all rewards that are known lie from 0 to 1."""
    values = np.concatenate([found.history.column(name)[1] for name in (HELD_OUT, TRAINING)])
    totals = [reward for each in found.groups.values() for group in each for reward in group.scored]
    every = [*values.tolist(), *totals]
    return bool(every) and min(every) >= 0 and max(every) <= 1


def _state(found: Found) -> str:
    done = int(found.history.steps[-1]) if len(found.history) else 0
    if not found.setup.steps:
        return f"{done:,} steps"
    return f"step {done:,} of {found.setup.steps:,}" + (", complete" if done >= found.setup.steps else "")


def _notes(found: Found) -> list[str]:
    notes = []
    seconds = found.history.column("step_time")[1]
    if len(seconds):
        hours = float(seconds.sum()) / 3600
        length = f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.2g} minutes"
        notes.append(f"{length} of steps, {float(np.median(seconds)):.3g} s each in the median")
    of_given = found.history.column("eval/loss")[1]
    if len(of_given) > 1:
        notes.append(f"loss of held-out answers from {of_given[0]:.3f} to {of_given[-1]:.3f} nats a token")
    if is_solved(found):
        notes.append("nearly all groups of the last steps are right: more steps on these prompts would teach little")
    return notes


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
