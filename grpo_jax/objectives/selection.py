"""Selection: which responses of a group count.

`select` looks at `Scored`, before the advantage: a response that it leaves out does not count in its group either.
`prune` looks at `Scored` and advantages: a response that it leaves out is in its group's mean, but not in the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from grpo_jax.objectives.advantages import differs
from grpo_jax.objectives.groups import compares
from grpo_jax.objectives.scored import beyond_parts, ends, lengths, reward_parts
from grpo_jax.ranges import check_range
from grpo_jax.structs import Scored

Metric = Callable[[Scored], Array]
MOST_KEPT = 4096  # responses of a group


# Metrics of a response: more is better.


def reward_per_token(scored: Scored) -> Float[Array, "P G"]:
    """The reward of each response divided by its length."""
    return scored.rewards_PG / jnp.maximum(lengths(scored), 1)


def brevity(scored: Scored) -> Float[Array, "P G"]:
    """Minus the length: shorter is better."""
    return -lengths(scored)


# For `select`.


@compares
def lively(scored: Scored) -> Bool[Array, "P G"]:
    """Responses of groups whose rewards differ. The others have no advantage, and would only make means smaller."""
    return jnp.broadcast_to(differs(scored.rewards_PG)[:, None], scored.rewards_PG.shape)


@compares
def lively_in_parts(scored: Scored) -> Bool[Array, "P G"]:
    """Responses of groups in which some reward part with a weight differs, for advantages of single parts: totals may
    be equal although the parts differ.
    """
    parts_PGR, weights_R = reward_parts(scored)
    differs_P = differs(beyond_parts(scored))
    for r in range(parts_PGR.shape[2]):
        differs_P |= differs(parts_PGR[:, :, r]) & (weights_R[r] != 0)
    return jnp.broadcast_to(differs_P[:, None], scored.rewards_PG.shape)


@dataclass(frozen=True)
class Best:
    """The `count` responses of each group with the largest metric (GFPO, arXiv:2508.09726)."""

    count: int
    metric: Metric = brevity

    def __post_init__(self) -> None:
        check_range("count or keep", self.count, least=1, most=MOST_KEPT)

    def __call__(self, scored: Scored) -> Bool[Array, "P G"]:
        return _largest(jnp.nan_to_num(self.metric(scored), nan=-jnp.inf), self.count)


@dataclass(frozen=True)
class MostVaried:
    """The `count` responses of each group whose rewards have the largest variance (PODS, arXiv:2504.13818).

    They are some of the best and some of the worst, so every split of `count` between the two is tried.
    """

    count: int

    def __post_init__(self) -> None:
        check_range("count or keep", self.count, least=1, most=MOST_KEPT)

    def __call__(self, scored: Scored) -> Bool[Array, "P G"]:
        known_PG = ~jnp.isnan(scored.rewards_PG)
        known_P1 = jnp.sum(known_PG, axis=1, keepdims=True)
        rank_PG = _rank(jnp.where(known_PG, scored.rewards_PG, jnp.inf))  # from the worst on
        rewards_PG = jnp.nan_to_num(scored.rewards_PG)
        best_P1, kept_PG = jnp.full((len(rewards_PG), 1), -1.0), known_PG
        for worst in range(self.count + 1):
            chosen_PG = known_PG & ((rank_PG < worst) | (rank_PG >= known_P1 - (self.count - worst)))
            number_P1 = jnp.maximum(jnp.sum(chosen_PG, axis=1, keepdims=True), 1)
            mean_P1 = jnp.sum(jnp.where(chosen_PG, rewards_PG, 0.0), axis=1, keepdims=True) / number_P1
            off_PG = jnp.where(chosen_PG, jnp.square(rewards_PG - mean_P1), 0.0)
            variance_P1 = jnp.sum(off_PG, axis=1, keepdims=True) / number_P1
            kept_PG = jnp.where(variance_P1 > best_P1, chosen_PG, kept_PG)
            best_P1 = jnp.maximum(best_P1, variance_P1)
        return kept_PG


# For `prune`.


def ended(scored: Scored, advantages: Array) -> Bool[Array, "P G"]:
    """Responses that ended: truncated ones are in their group's mean, but not in the loss (DAPO, arXiv:2503.14476)."""
    return ends(scored)


@dataclass(frozen=True)
class LargestAdvantages:
    """The `count` responses of each group with the largest absolute advantages (CPPO, arXiv:2503.22342)."""

    count: int

    def __post_init__(self) -> None:
        check_range("count or keep", self.count, least=1, most=MOST_KEPT)

    def __call__(self, scored: Scored, advantages: Array) -> Bool[Array, "P G"]:
        size_PG = jnp.abs(advantages) if advantages.ndim == 2 else jnp.abs(advantages).max(axis=2)
        return _largest(jnp.where(jnp.isnan(scored.rewards_PG), -1.0, size_PG), self.count)


def _largest(numbers_PG: Array, count: int) -> Array:
    return _rank(-numbers_PG) < count


def _rank(numbers_PG: Array) -> Array:
    """The rank of each number in its group; the smallest has rank 0, and of equal numbers the first ranks first."""
    return jnp.argsort(jnp.argsort(numbers_PG, axis=1, stable=True), axis=1)
