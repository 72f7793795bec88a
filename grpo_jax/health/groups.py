"""What the checks of a whole run see of the answers: groups, each with the rewards and lengths of its responses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

SAME = 1e-6  # rewards that differ by less are equal
DIFFERING, PAIRS = 4, 16  # groups and responses, at least, that a correlation is computed from


@dataclass(frozen=True)
class Group:
    """The responses to one prompt. `rewards` are totals, NaN without a score; `cut` says which were cut off.

    `gold` says which have the expected answer in them; it is empty where none is known.
    """

    rewards: tuple[float, ...]
    lengths: tuple[float, ...]
    cut: tuple[bool, ...] = ()
    gold: tuple[bool, ...] = ()

    @property
    def scored(self) -> list[float]:
        """The rewards of the responses that have one."""
        return [reward for reward in self.rewards if math.isfinite(reward)]

    @property
    def agrees(self) -> bool:
        """Whether all responses earned the same."""
        scored = self.scored
        return bool(scored) and max(scored) - min(scored) <= SAME * max(1.0, abs(scored[0]))


Groups = Mapping[int, Sequence[Group]]  # by step, of the steps whose answers were read


@dataclass(frozen=True)
class Agreement:
    """Which part of some groups agrees: on the best reward that was seen (right), the worst (wrong), or another one."""

    right: float
    wrong: float
    other: float
    reward: float  # the mean of the groups that agree

    @property
    def total(self) -> float:
        """The part of the groups in which all responses earned the same."""
        return self.right + self.wrong + self.other


def agreement(groups: Sequence[Group], low: float, high: float) -> Agreement | None:
    """How groups agree, where `low` and `high` are the worst and the best reward of the run; None without scores."""
    known = [group for group in groups if group.scored]
    if not known:
        return None
    values = [fmean(group.scored) for group in known if group.agrees]
    near = SAME * max(1.0, abs(low), abs(high))
    right = sum(value >= high - near for value in values if high > low or value > 0)
    wrong = sum(value <= low + near for value in values if high > low or value <= 0)
    count = len(known)
    return Agreement(
        right / count, wrong / count, (len(values) - right - wrong) / count, fmean(values) if values else math.nan
    )


def extremes(groups: Groups) -> tuple[float, float]:
    """The lowest and the highest reward of the answers that were read; 0 and 0 if none has one."""
    scored = [reward for each in groups.values() for group in each for reward in group.scored]
    return (min(scored), max(scored)) if scored else (0.0, 0.0)


def follows(groups: Sequence[Group]) -> float:
    """The correlation of reward and length within groups, from -1 to 1; NaN where there is too little to tell.

    Where short responses earn more, those that were cut off do not count: they lack their end, not only brevity.
    """
    found = _correlation(groups, whole=False)
    return _correlation(groups, whole=True) if found < 0 else found


def _correlation(groups: Sequence[Group], whole: bool) -> float:
    pairs, differing = [], 0
    for group in groups:
        cut = group.cut or (False,) * len(group.rewards)
        triples = zip(group.rewards, group.lengths, cut, strict=True)
        own = [(r, length) for r, length, c in triples if math.isfinite(r) and not (whole and c)]
        if len(own) < 2:
            continue
        mean_r, mean_length = fmean(r for r, _ in own), fmean(length for _, length in own)
        pairs += [(r - mean_r, length - mean_length) for r, length in own]
        differing += any(abs(r - mean_r) > SAME for r, _ in own)
    spread = math.sqrt(sum(r * r for r, _ in pairs) * sum(length * length for _, length in pairs))
    if not spread or differing < DIFFERING or len(pairs) < PAIRS:
        return math.nan
    return sum(r * length for r, length in pairs) / spread
