"""What an evaluation found, and what changed between two of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grpo_jax.evaluation.intervals import Interval, interval

DECIDED = ("pass@", "maj@")  # the names of what lies between 0 and 1


@dataclass(frozen=True, eq=False)
class Evaluated(Mapping[str, float]):
    """The metrics of an evaluation by their names, as a mapping: `reward`, `rewards/NAME/mean`, `pass@4`, ...

    `of_prompts` has the numbers of each prompt that a metric is the mean of, and `intervals` the confidence intervals,
    at the level `confidence`. `answers` has a row for each answer that this host scored, and `prompts` a text for each
    prompt. `left_out` says of a metric why it could not be measured.
    """

    metrics: Mapping[str, float]
    of_prompts: Mapping[str, np.ndarray]
    intervals: Mapping[str, Interval]
    answers: Sequence[Mapping[str, Any]] = ()
    prompts: Sequence[str] = ()
    confidence: float = 0.95
    left_out: Mapping[str, str] = field(default_factory=dict)
    responses: int = 1  # answers to each prompt

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __repr__(self) -> str:
        return repr(dict(self.metrics))


@dataclass(frozen=True)
class Change:
    """How much larger the mean of a metric is in the second of two evaluations, and the interval of that."""

    mean: float
    interval: Interval | None


def changes(before: Evaluated, after: Evaluated) -> dict[str, Change]:
    """The change of each metric from one evaluation to another of the same prompts, which are compared in pairs.

    Pairs leave out how prompts differ in difficulty, so the interval is narrower than those of both would suggest.
    """
    if list(before.prompts) != list(after.prompts):
        raise ValueError(
            f"Two evaluations are compared prompt by prompt, so they must have the same; got {len(before.prompts)} and"
            f" {len(after.prompts)} prompts, of which some differ. Evaluate both on the same examples."
        )
    found = {}
    for name in (name for name in before.of_prompts if name in after.of_prompts):
        difference_P = after.of_prompts[name].astype(float) - before.of_prompts[name]
        known = difference_P[~np.isnan(difference_P)]
        ends = (-1.0, 1.0) if name.startswith(DECIDED) else (None, None)
        mean = float(known.mean()) if known.size else float("nan")
        found[name] = Change(mean, interval(difference_P, after.confidence, *ends))
    return found


def intervals_of(values: Mapping[str, np.ndarray], confidence: float) -> dict[str, Interval]:
    """The interval of each metric that has one."""
    found = {}
    for name, values_P in values.items():
        ends = (0.0, 1.0) if name.startswith(DECIDED) else (None, None)
        found[name] = interval(values_P, confidence, *ends)
    return {name: each for name, each in found.items() if each is not None}


def with_ends(metrics: Mapping[str, float], intervals: Mapping[str, Interval]) -> dict[str, float]:
    """The metrics, with the ends of intervals as `reward/low` and `reward/high`. Parts of the reward have none here."""
    told = {name: each for name, each in intervals.items() if not name.startswith("rewards/")}
    lows = {f"{name}/low": each.low for name, each in told.items()}
    return dict(metrics) | lows | {f"{name}/high": each.high for name, each in told.items()}
