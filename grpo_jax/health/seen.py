"""What a check sees of a run, and the bounds from where on it warns.

A check is a pure function of what is `Seen`. It gives one line that names the cause and the setting to change, or None
where nothing is wrong or too little is known. The bounds are wide: a warning about a training that learns would teach
people not to read warnings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pvariance
from typing import Any, Protocol, runtime_checkable

Row = Mapping[str, Any]  # numbers by their names; None for one that is not finite


@dataclass(frozen=True)
class Limits:
    """From where on a check warns. Steps are consecutive ones, up to the last."""

    failed: float = 0.5  # fraction of conversations that end by an error of their environment
    unscored: int = 3  # steps without any score
    equal: int = 5  # steps in which all rewards are one number
    agreeing: int = 10  # steps in which no group differs
    no_gradient: int = 3  # steps
    cut_off: float = 0.99  # fraction of responses
    cut_off_steps: int = 5
    recent: int = 3  # steps whose mean is compared
    before: int = 10  # steps that count as the start, or as the time before
    flat: float = 0.01  # a reward that rises by less, relative to its largest size, does not rise
    chance: float = 0.0  # standard errors by which a reward has to rise as well; reports, which look once, take 3
    entropy: float = 0.02  # nats; DAPO (arXiv:2503.14476, section 3.1) calls it entropy collapse
    entropy_fell: float = 0.1  # fraction of the start
    entropy_rose: float = 2.0  # times the start
    sample_size: float = 0.8  # effective, as a fraction of the tokens
    ratio: float = 2.0  # of trainer to sampler, that one token in a hundred exceeds, or its inverse
    k3_grew: float = 20.0  # times the start
    k3: float = 0.001  # nats, below which growth does not matter
    k3_most: float = 0.01  # nats, as of ratios that are all off by a seventh
    kl: float = 1.0  # nats a token
    kl_grew: float = 10.0  # times the time before
    kl_small: float = 0.1  # nats, below which growth does not matter
    length_grew: float = 2.0  # times the time before
    length_fell: float = 0.1  # fraction of the start
    empty: float = 1.05  # tokens a response, its end token included
    clipped: float = 0.5  # fraction of all tokens
    loss_rose: float = 1.05  # times the lowest loss of held-out answers
    spike: float = 50.0  # times the median gradient norm
    straggler: float = 4.0  # times the median time of a step
    straggler_seconds: float = 5.0  # above the median; a shorter delay costs nothing
    deviations: float = 2.0  # of the mean of 0-or-1 rewards, that the held-out reward falls by


@dataclass(frozen=True)
class Setup:
    """What the checks need to know of a run besides its metrics. `rewards` are the names of those that count."""

    steps: int
    rewards: tuple[str, ...] = ()
    responses: int | None = None  # to each prompt; None if an engine does not tell
    held_out: int = 0  # prompts
    cut_off_earns_nothing: bool = False
    only_rewards_teach: bool = True  # no KL or other term has a gradient of its own
    bounds: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # of coefficients: the largest value, and the
    # metric that it follows, by term


@dataclass(frozen=True)
class Seen:
    """The metrics of a run so far, up to the step that is looked at."""

    history: Sequence[Row]
    setup: Setup
    limits: Limits = Limits()

    def rows(self, count: int) -> Sequence[Row]:
        """The rows of the last `count` steps; none if there were fewer."""
        rows = [row for row in self.history[-count:] if is_step(row)]
        return rows if len(rows) == count else []

    def last(self, name: str, count: int) -> list[float]:
        """A metric in the last `count` steps; empty if it is not known in all of them."""
        return known(self.rows(count), name)

    def first(self, name: str, count: int) -> list[float]:
        """A metric in the first `count` steps of the run; empty if it is not known in all of them."""
        rows = [row for row in self.history[: count + 1] if is_step(row)][:count]
        return known(rows, name) if len(rows) == count else []

    @property
    def rises(self) -> bool:
        """Whether the reward of the last steps is above that of the steps before; also where it is not known."""
        steps = sum(map(is_step, self.history[:1])) + len(self.history) - 1
        count = min(self.limits.before, steps // 2)
        rewards = self.last("reward", 2 * count)
        if not rewards:
            return True
        before, now = rewards[:count], rewards[count:]
        error = math.sqrt((pvariance(before) + pvariance(now)) / count)
        return self.above(fmean(now), fmean(before)) and fmean(now) - fmean(before) >= self.limits.chance * error

    def above(self, reward: float, other: float) -> bool:
        """Whether a reward is above another one by more than nothing."""
        return reward - other > self.limits.flat * max(abs(reward), abs(other))


@runtime_checkable
class Check(Protocol):
    """A function that looks at a run and gives a warning or None. Its name is that of the cause."""

    __name__: str

    def __call__(self, seen: Seen, /) -> str | None:
        """The warning; None where nothing is wrong."""
        ...


def is_step(row: Row) -> bool:
    """Whether a row is of a step, and not of the evaluation before the first one. Given answers have no reward."""
    return "reward" in row or "loss" in row


def known(rows: Sequence[Row], name: str) -> list[float]:
    """A metric in these rows; empty if one does not have it."""
    values = [float(value) for row in rows if (value := row.get(name)) is not None]
    return values if len(values) == len(rows) else []


def share(fraction: float) -> str:
    """A fraction of things, in words."""
    return "all" if fraction > 0.999 else f"{fraction:.0%} of the"
