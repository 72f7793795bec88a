"""The criteria of a reward that returns several numbers, each of which is a part of the whole reward.

A reward returns a mapping from criteria to numbers, and may say beforehand, in attributes of its own, which `criteria`
there are, the `weights` that they have within it (1 unless given), and which of them are `gates`: these are not added,
but multiply the sum of the others.
"""

import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.ranges import check_range
from grpo_jax.rewards.guarded import innermost

LARGEST_WEIGHT = 1e6


@dataclass(frozen=True)
class Criteria:
    """What a reward says of its criteria. `names` are empty while they are not known, and for a single number."""

    names: tuple[str, ...] = ()
    weights: Mapping[str, float] | None = None
    gates: frozenset[str] = frozenset()

    def weight(self, name: str) -> float:
        """The weight of a criterion in the sum: 0 for a gate, which is not added."""
        if name in self.gates:
            return 0.0
        return 1.0 if self.weights is None else float(self.weights.get(name, 1.0))


def declared(reward: Callable[..., Any], label: str, learned: Sequence[str] = ()) -> Criteria:
    """The criteria that a reward declares, or else those that were learned. Refuses what can be no criteria."""
    owner = innermost(reward)
    names = getattr(owner, "criteria", None)
    names = tuple(learned) if names is None else checked(names, label)
    if not names:
        return Criteria()
    weights, gates = getattr(owner, "weights", None), getattr(owner, "gates", ())
    _check_kinds(weights, gates, label)
    found = Criteria(names, weights, frozenset(gates))
    _check_known(found, label)
    return found


def checked(names: Sequence[str], label: str) -> tuple[str, ...]:
    """The names of criteria, once they can be names of metrics."""
    found = tuple(names)
    if isinstance(names, str) or not found or not all(isinstance(name, str) and name.strip() for name in found):
        raise ValueError(f"The criteria of reward {label} must be names, and at least one; got {names!r}.")
    if len(set(found)) < len(found):
        raise ValueError(f"The criteria of reward {label} must differ; got {', '.join(found)}.")
    return found


def _check_kinds(weights: Any, gates: Any, label: str) -> None:
    """Refuses weights that are no mapping to numbers, and gates that are no collection of names."""
    if weights is not None and not isinstance(weights, Mapping):
        raise ValueError(
            f'The weights of reward {label} must be a mapping, such as {{"length": 0.5}}; got {weights!r:.80}.'
        )
    for name, weight in {} if weights is None else weights.items():
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
            raise ValueError(f"The weight of {label}/{name} must be a number; got {weight!r:.80}.")
    if isinstance(gates, str) or not isinstance(gates, Collection):
        raise ValueError(
            f'The gates of reward {label} must be a set of names, such as frozenset({{"safe"}}); got {gates!r:.80}.'
        )


def _check_known(criteria: Criteria, label: str) -> None:
    """Refuses weights and gates of criteria that there are not."""
    weights = {} if criteria.weights is None else criteria.weights
    for name, weight in weights.items():
        check_range(f"The weight of {label}/{name}", weight, least=-LARGEST_WEIGHT, most=LARGEST_WEIGHT)
    strays = sorted(({*weights} | criteria.gates) - {*criteria.names})
    if strays:
        raise ValueError(
            f"Reward {label} gives a weight to {strays[0]}, or takes it for a gate, and its criteria are"
            f" {', '.join(criteria.names)}. Write one of these."
        )
    if both := sorted({*weights} & criteria.gates):
        raise ValueError(
            f"{label}/{both[0]} is a gate, which multiplies the others and has no weight: take it out of the weights,"
            " or out of the gates."
        )
    if criteria.gates >= {*criteria.names}:
        raise ValueError(
            f"Every criterion of reward {label} is a gate, so that there is nothing to multiply. Take one of"
            f" {', '.join(criteria.names)} from its gates."
        )
