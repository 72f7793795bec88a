"""A weighted mix of rewards, and the columns that it has.

A reward is a plain function or a callable object. It returns a number, `Steps` if it scores single steps, a mapping
from criteria to numbers, or None if it cannot score the response; `signatures.py` says what it may be called with.
Each reward that returns numbers is one column of the rewards, each criterion of the others one of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from grpo_jax.ranges import check_range
from grpo_jax.rewards.criteria import LARGEST_WEIGHT, Criteria, declared
from grpo_jax.rewards.guarded import innermost

Reward = Callable[..., Any]
LARGEST_REWARD = 1e12  # beyond it, float32 cannot hold the squares that deviations are made of


@dataclass(frozen=True)
class Mix:
    """Rewards, each with its weight in the sum; one with weight zero is only recorded.

    `learned` are the criteria of rewards that do not declare them, from the first answers that were judged: none for a
    reward that returned a number. They never change afterwards.
    """

    parts: tuple[tuple[Reward, float], ...]
    learned: dict[int, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("A Mix needs at least one (reward, weight); got none.")
        if not all(isinstance(part, tuple) and len(part) == 2 for part in self.parts):
            raise ValueError(f"A Mix is a tuple of pairs, such as ((exact, 1.0),); got {self.parts!r}.")
        for reward, weight in self.parts:
            if not callable(reward):
                several = " Give each of its funcs, with its weight." if hasattr(reward, "funcs") else ""
                raise ValueError(
                    f"A reward is a function or a callable object; got a {type(reward).__name__}.{several}"
                )
            check_range(f"The weight of {name(reward)}", weight, least=-LARGEST_WEIGHT, most=LARGEST_WEIGHT)
        _ = self.criteria

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each reward; a name that occurs again gets a number."""
        labels: list[str] = []
        for reward, _ in self.parts:
            labels.append(_numbered(name(reward), labels))
        return tuple(labels)

    @property
    def criteria(self) -> tuple[Criteria, ...]:
        """The criteria of each reward, as far as they are known."""
        pairs = enumerate(zip(self.parts, self.labels, strict=True))
        return tuple(declared(part[0], label, self.learned.get(index, ())) for index, (part, label) in pairs)

    @property
    def undecided(self) -> tuple[int, ...]:
        """The rewards, by index, of which nobody knows yet whether they return numbers or criteria."""
        known = enumerate(self.criteria)
        return tuple(index for index, criteria in known if not criteria.names and index not in self.learned)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each column in metrics: of a reward, or of a reward and its criterion as in `travel/places`."""
        pairs = zip(self.labels, self.criteria, strict=True)
        return tuple(
            full
            for label, criteria in pairs
            for full in ([f"{label}/{name}" for name in criteria.names] if criteria.names else [label])
        )

    @property
    def weights_R(self) -> Float32[np.ndarray, " R"]:
        """The weight of each column. Gates have none, as they multiply: `gated` applies them."""
        weights = [
            weight * factor
            for (_, weight), criteria in zip(self.parts, self.criteria, strict=True)
            for factor in ([criteria.weight(name) for name in criteria.names] if criteria.names else [1.0])
        ]
        return np.array(weights, np.float32)

    def learn(self, found: Mapping[int, tuple[str, ...]]) -> None:
        """Fixes the criteria of rewards that were undecided. On several hosts all have to give the same."""
        for index in self.undecided:
            if index in found:
                self.learned[index] = found[index]
        _ = self.criteria  # refuses weights of criteria that there are not

    def gated(self, rewards_PGR: Float32[np.ndarray, "P G R"]) -> Float32[np.ndarray, "P G R"]:
        """The rewards of which the weighted sum is the total: each criterion times the gates of its reward.

        A gate itself is NaN here, as it is no score: where nothing else could be judged, there is no total.
        """
        result_PGR = rewards_PGR
        for start, criteria in self._columns():
            gates = [start + r for r, name in enumerate(criteria.names) if name in criteria.gates]
            others = [start + r for r, name in enumerate(criteria.names) if name not in criteria.gates]
            if gates:
                result_PGR = result_PGR.copy() if result_PGR is rewards_PGR else result_PGR
                result_PGR[:, :, others] *= rewards_PGR[:, :, gates].prod(axis=2, keepdims=True)
                result_PGR[:, :, gates] = np.nan
        return result_PGR

    def _columns(self) -> Iterator[tuple[int, Criteria]]:
        """The first column of each reward, and its criteria."""
        start = 0
        for criteria in self.criteria:
            yield start, criteria
            start += max(len(criteria.names), 1)


def as_mix(reward: Mix | Reward) -> Mix:
    """The mix itself, or a mix of a single reward with weight one."""
    return reward if isinstance(reward, Mix) else Mix(((reward, 1.0),))


def name(reward: Reward) -> str:
    """The name of the function, or of the class of a callable object."""
    written = innermost(reward)
    return getattr(written, "__name__", type(written).__name__)


def _numbered(label: str, taken: list[str]) -> str:
    candidates = (label if n == 1 else f"{label}_{n}" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)
