"""Rewards made into other rewards, before anything is compared: functions from `Scored` to `Scored`.

Selection stands at the end of the file: which responses take part in their group, and which in the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from grpo_jax.objectives.advantages import beyond_parts, differs, group_mean
from grpo_jax.structs import Scored

Metric = Callable[[Scored], Array]


@dataclass(frozen=True)
class SoftOverlong:
    """Takes up to 1 off for length: from the last `share` of `limit` tokens on, in proportion (DAPO, arXiv:2503.14476,
    equation 13). No limit is the sampler's own.
    """

    share: float = 0.2
    limit: int | None = None

    def __call__(self, scored: Scored) -> Scored:
        limit = scored.action_PGT.shape[2] if self.limit is None else self.limit
        cache = max(self.share * limit, 1.0)
        over_PG = lengths(scored) - (limit - cache)
        return replace(scored, rewards_PG=scored.rewards_PG - jnp.clip(over_PG / cache, 0.0, 1.0))


def nothing_for_truncated(scored: Scored) -> Scored:
    """At most zero, for the reward and each of its parts, where a response did not end."""
    rewards_PG = jnp.where(scored.ended_PG, scored.rewards_PG, jnp.minimum(scored.rewards_PG, 0.0))
    ended_PG1 = scored.ended_PG[:, :, None]
    parts_PGR = jnp.where(ended_PG1, scored.parts_PGR, jnp.minimum(scored.parts_PGR, 0.0))
    return replace(scored, rewards_PG=rewards_PG, parts_PGR=parts_PGR)


@dataclass(frozen=True)
class Brevity:
    """Takes `slope` x the mean reward of the group x the share of the longest possible length off: solved prompts
    teach to be brief, hard ones leave room to think.
    """

    slope: float = 0.1

    def __call__(self, scored: Scored) -> Scored:
        share_PG = lengths(scored) / scored.action_PGT.shape[2]
        penalty_PG = self.slope * jnp.maximum(group_mean(scored), 0.0) * share_PG
        return replace(scored, rewards_PG=scored.rewards_PG - penalty_PG)


@dataclass(frozen=True)
class Gate:
    """Multiplies the reward, and each of its parts, by some of the parts: rules that must hold for anything to count.

    `parts` are places in the list of rewards; give those a weight of 0.
    """

    parts: tuple[int, ...] = (0,)

    def __call__(self, scored: Scored) -> Scored:
        if max(self.parts) >= scored.parts_PGR.shape[2] or min(self.parts) < 0:
            raise ValueError(f"There are {scored.parts_PGR.shape[2]} rewards, counted from 0; got {self.parts}.")
        passed_PG = jnp.prod(scored.parts_PGR[:, :, jnp.array(self.parts)], axis=2)
        gated_PGR = scored.parts_PGR * passed_PG[:, :, None]
        return replace(scored, rewards_PG=scored.rewards_PG * passed_PG, parts_PGR=gated_PGR)


# Metrics of a response.


def lengths(scored: Scored) -> Float[Array, "P G"]:
    """Tokens of each response."""
    return jnp.sum(scored.action_PGT, axis=2).astype(jnp.float32)


def reward_per_token(scored: Scored) -> Float[Array, "P G"]:
    """The reward of each response over its length."""
    return scored.rewards_PG / jnp.maximum(lengths(scored), 1)


def brevity(scored: Scored) -> Float[Array, "P G"]:
    """Minus the length: shorter is better."""
    return -lengths(scored)


# Selection: which responses take part in their group (a function of `Scored`), or in the loss (and of advantages).


def lively(scored: Scored) -> Bool[Array, "P G"]:
    """Responses of groups whose rewards differ: the others have no advantage, and need no room in a mean."""
    return jnp.broadcast_to(differs(scored.rewards_PG)[:, None], scored.rewards_PG.shape)


def lively_in_parts(scored: Scored) -> Bool[Array, "P G"]:
    """Responses of groups in which some reward that weighs anything differs, for advantages by part: three criteria may
    differ and add up to the same.
    """
    alive_P = differs(beyond_parts(scored))
    for number in range(scored.parts_PGR.shape[2]):
        alive_P |= differs(scored.parts_PGR[:, :, number]) & (scored.weights_R[number] != 0)
    return jnp.broadcast_to(alive_P[:, None], scored.rewards_PG.shape)


@dataclass(frozen=True)
class Best:
    """The `count` responses of each group that are best by a metric (GFPO, arXiv:2508.09726)."""

    count: int
    metric: Metric = brevity

    def __call__(self, scored: Scored) -> Bool[Array, "P G"]:
        return _largest(jnp.nan_to_num(self.metric(scored), nan=-jnp.inf), self.count)


@dataclass(frozen=True)
class MostVaried:
    """The `count` responses of each group whose rewards have the largest variance (PODS, arXiv:2504.13818).

    They are some of the best and some of the worst, so all ways of dividing `count` between the two are tried.
    """

    count: int

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


def ended(scored: Scored, advantages: Array) -> Bool[Array, "P G"]:
    """Responses that ended: the truncated ones stay in their group's mean, and out of the loss."""
    return scored.ended_PG


@dataclass(frozen=True)
class LargestAdvantages:
    """The `count` responses of each group that are furthest from its mean (CPPO, arXiv:2503.22342)."""

    count: int

    def __call__(self, scored: Scored, advantages: Array) -> Bool[Array, "P G"]:
        size_PG = jnp.abs(advantages) if advantages.ndim == 2 else jnp.abs(advantages).max(axis=2)
        return _largest(jnp.where(jnp.isnan(scored.rewards_PG), -1.0, size_PG), self.count)


def _largest(numbers_PG: Array, count: int) -> Array:
    return _rank(-numbers_PG) < count


def _rank(numbers_PG: Array) -> Array:
    """The place of each number in its row, the smallest first; of equal ones, the first first."""
    return jnp.argsort(jnp.argsort(numbers_PG, axis=1, stable=True), axis=1)
