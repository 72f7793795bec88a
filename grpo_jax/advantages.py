"""Rewards into advantages: how much better than its group each response was.

An advantage is a center (what is subtracted) and a scale (what is divided by); both are functions of `rewards_PG`, and
both leave out responses that could not be scored (NaN), whose advantage is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

Baseline = Callable[[Array], Array]


@dataclass(frozen=True)
class Advantage:
    """(reward - center) / scale, and zero for responses without a reward."""

    center: Baseline
    scale: Baseline

    def __call__(self, rewards_PG: Float[Array, "P G"]) -> Float[Array, "P G"]:
        advantages_PG = (rewards_PG - self.center(rewards_PG)) / self.scale(rewards_PG)
        return jnp.nan_to_num(advantages_PG, nan=0.0)


def weighted_total(rewards_PGR: Float[Array, "P G R"], weights_R: Float[Array, " R"]) -> Float[Array, "P G"]:
    """The weighted sum of the parts that could be scored; NaN where none could."""
    total_PG = jnp.nansum(rewards_PGR * weights_R[None, None, :], axis=2)
    return jnp.where(jnp.isnan(rewards_PGR).all(axis=2), jnp.nan, total_PG)


def group_mean(rewards_PG: Float[Array, "P G"]) -> Float[Array, "P 1"]:
    """The mean reward of each group (DeepSeekMath, arXiv:2402.03300, section 4.1.2)."""
    least_P1, above_PG, count_P1 = _above_least(rewards_PG)
    return least_P1 + jnp.nansum(above_PG, axis=1, keepdims=True) / jnp.maximum(count_P1, 1)


def leave_one_out(rewards_PG: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """The mean reward of the other responses of the group (RLOO, arXiv:2402.14740); in a group of one, its own."""
    least_P1, above_PG, count_P1 = _above_least(rewards_PG)
    others_PG = jnp.nansum(above_PG, axis=1, keepdims=True) - above_PG
    return jnp.where(count_P1 > 1, least_P1 + others_PG / jnp.maximum(count_P1 - 1, 1), rewards_PG)


def _above_least(rewards_PG: Array) -> tuple[Array, Array, Array]:
    """Each group's least reward, what rewards have beyond it, and how many there are.

    Means are taken of what is beyond the least, so that a group which agrees on 1.1 has exactly no advantage: rounding
    would leave it one in a million, and dividing by a vanishing deviation would make it matter.
    """
    known_PG = ~jnp.isnan(rewards_PG)
    least_P1 = jnp.min(rewards_PG, axis=1, keepdims=True, where=known_PG, initial=jnp.inf)
    least_P1 = jnp.where(jnp.isinf(least_P1), 0.0, least_P1)
    return least_P1, rewards_PG - least_P1, jnp.sum(known_PG, axis=1, keepdims=True)


def unscaled(rewards_PG: Float[Array, "P G"]) -> Float[Array, "1 1"]:
    """One: advantages stay in units of reward (Dr. GRPO, arXiv:2503.20783)."""
    return jnp.ones((1, 1), rewards_PG.dtype)


@dataclass(frozen=True)
class GroupStd:
    """The standard deviation of each group (n-1 in the denominator) plus `epsilon`."""

    epsilon: float = 1e-4

    def __call__(self, rewards_PG: Float[Array, "P G"]) -> Float[Array, "P 1"]:
        return _std(rewards_PG, group_mean(rewards_PG), axis=(1,)) + self.epsilon


@dataclass(frozen=True)
class BatchStd:
    """The standard deviation of all rewards of the batch (n-1 in the denominator) plus `epsilon`."""

    epsilon: float = 1e-4

    def __call__(self, rewards_PG: Float[Array, "P G"]) -> Float[Array, "1 1"]:
        return _std(rewards_PG, jnp.nanmean(rewards_PG, keepdims=True), axis=(0, 1)) + self.epsilon


def _std(rewards_PG: Array, mean: Array, axis: tuple[int, ...]) -> Array:
    count = jnp.sum(~jnp.isnan(rewards_PG), axis=axis, keepdims=True)
    squares = jnp.nansum(jnp.square(rewards_PG - mean), axis=axis, keepdims=True)
    return jnp.sqrt(squares / jnp.maximum(count - 1, 1))
