"""Rewards into advantages: how much better than its group each response was.

Most advantages are a center (what is subtracted) and a scale (what is divided by). Both are functions of a batch's
`Scored` rewards, and both leave out responses that could not be scored (NaN), whose advantage is zero. Anything that
turns `Scored` into `[P, G]` or, where credit differs between tokens, `[P, G, T]` is an advantage.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from grpo_jax.structs import Scored

Baseline = Callable[[Scored], Array]


@dataclass(frozen=True)
class Advantage:
    """(reward - center) / scale, and zero for responses without a reward."""

    center: Baseline
    scale: Baseline

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        advantages_PG = (scored.rewards_PG - self.center(scored)) / self.scale(scored)
        return jnp.nan_to_num(advantages_PG, nan=0.0)


@dataclass(frozen=True)
class EachPart:
    """The advantage of every reward part by itself, added up by the parts' weights (GDPO, arXiv:2601.05242).

    What was added to the total and to no part, such as a penalty for length, is compared with the group's mean and
    added as it is: dividing it by its own deviation would make a small one as large as any.
    """

    advantage: Callable[[Scored], Array]

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        parts = jnp.moveaxis(scored.parts_PGR, 2, 0)
        each_RPG = jnp.stack([self.advantage(replace(scored, rewards_PG=part_PG)) for part_PG in parts])
        added = replace(scored, rewards_PG=beyond_parts(scored))
        return jnp.sum(each_RPG * scored.weights_R[:, None, None], axis=0) + Advantage(group_mean, unscaled)(added)


@dataclass(frozen=True)
class Whitened:
    """An advantage less its mean, divided by its deviation (n-1) plus `epsilon`, over the whole batch.

    Of `unit` response every scored response counts the same, of unit token every token.
    """

    advantage: Callable[[Scored], Array]
    unit: Literal["response", "token"] = "response"
    epsilon: float = 1e-4

    def __call__(self, scored: Scored) -> Array:
        advantages = self.advantage(scored)
        known_PG = ~jnp.isnan(scored.rewards_PG)
        counts = known_PG[:, :, None] & scored.action_PGT
        if advantages.ndim == 2:
            counts = known_PG if self.unit == "response" else jnp.sum(counts, axis=2)
        number = jnp.maximum(jnp.sum(counts), 1)
        above = advantages - jnp.sum(counts * advantages) / number
        std = jnp.sqrt(jnp.sum(counts * jnp.square(above)) / jnp.maximum(number - 1, 1))
        return jnp.where(counts > 0, above / (std + self.epsilon), 0.0)


def weighted_total(rewards_PGR: Float[Array, "P G R"], weights_R: Float[Array, " R"]) -> Float[Array, "P G"]:
    """The weighted sum of the parts that could be scored; NaN where none could."""
    total_PG = jnp.nansum(rewards_PGR * weights_R[None, None, :], axis=2)
    return jnp.where(jnp.isnan(rewards_PGR).all(axis=2), jnp.nan, total_PG)


def beyond_parts(scored: Scored) -> Float[Array, "P G"]:
    """What the total has that the weighted parts do not have, rounding left out."""
    parts_PG = weighted_total(scored.parts_PGR, scored.weights_R)
    size_PG = jnp.nansum(jnp.abs(scored.parts_PGR * scored.weights_R[None, None, :]), axis=2)
    added_PG = scored.rewards_PG - parts_PG
    return jnp.where(jnp.abs(added_PG) <= 1e-5 * size_PG, 0.0, added_PG)


# Centers: what a reward is compared with.


def nothing(scored: Scored) -> Float[Array, "1 1"]:
    """Zero: the reward itself counts."""
    return jnp.zeros((1, 1), scored.rewards_PG.dtype)


@dataclass(frozen=True)
class Constant:
    """The same number for every response, as a center or as a scale."""

    value: float

    def __call__(self, scored: Scored) -> Float[Array, "1 1"]:
        return jnp.full((1, 1), self.value, scored.rewards_PG.dtype)


def group_mean(scored: Scored) -> Float[Array, "P 1"]:
    """The mean reward of each group (DeepSeekMath, arXiv:2402.03300, section 4.1.2)."""
    least_P1, above_PG, count_P1 = _above_least(scored.rewards_PG)
    return least_P1 + jnp.nansum(above_PG, axis=1, keepdims=True) / jnp.maximum(count_P1, 1)


def leave_one_out(scored: Scored) -> Float[Array, "P G"]:
    """The mean reward of the other responses of the group (RLOO, arXiv:2402.14740); in a group of one, its own."""
    least_P1, above_PG, count_P1 = _above_least(scored.rewards_PG)
    others_PG = jnp.nansum(above_PG, axis=1, keepdims=True) - above_PG
    return jnp.where(count_P1 > 1, least_P1 + others_PG / jnp.maximum(count_P1 - 1, 1), scored.rewards_PG)


def length_weighted(scored: Scored) -> Float[Array, "P 1"]:
    """The mean reward of each group, in which a response counts by its length (OPO, arXiv:2505.23585)."""
    least_P1, above_PG, _ = _above_least(scored.rewards_PG)
    lengths_PG = jnp.where(jnp.isnan(above_PG), 0, jnp.sum(scored.action_PGT, axis=2))
    total_P1 = jnp.maximum(jnp.sum(lengths_PG, axis=1, keepdims=True), 1)
    return least_P1 + jnp.nansum(above_PG * lengths_PG, axis=1, keepdims=True) / total_P1


def greedy_answer(scored: Scored) -> Float[Array, "P 1"]:
    """The reward of the greedy answer to the prompt (ReMax, arXiv:2310.10505)."""
    if scored.greedy_P1 is None:
        raise ValueError("Nobody answered greedily: set greedy_baseline of the objective, and algorithm.sample_greedy.")
    return scored.greedy_P1


def _above_least(rewards_PG: Array) -> tuple[Array, Array, Array]:
    """Each group's least reward, what rewards have beyond it, and how many there are.

    Means are taken of what is beyond the least, so that a group which agrees on 1.1 has exactly no advantage: rounding
    would leave it one in a million, and dividing by a vanishing deviation would make it matter.
    """
    known_PG = ~jnp.isnan(rewards_PG)
    least_P1 = jnp.min(rewards_PG, axis=1, keepdims=True, where=known_PG, initial=jnp.inf)
    least_P1 = jnp.where(jnp.isinf(least_P1), 0.0, least_P1)
    return least_P1, rewards_PG - least_P1, jnp.sum(known_PG, axis=1, keepdims=True)


# Scales: what the difference is divided by.


def unscaled(scored: Scored) -> Float[Array, "1 1"]:
    """One: advantages stay in units of reward (Dr. GRPO, arXiv:2503.20783)."""
    return jnp.ones((1, 1), scored.rewards_PG.dtype)


@dataclass(frozen=True)
class GroupStd:
    """The standard deviation of each group (n-1 in the denominator) plus `epsilon`."""

    epsilon: float = 1e-4

    def __call__(self, scored: Scored) -> Float[Array, "P 1"]:
        return _std(scored.rewards_PG, group_mean(scored), axis=(1,)) + self.epsilon


@dataclass(frozen=True)
class BatchStd:
    """The standard deviation of all rewards of the batch (n-1 in the denominator) plus `epsilon`."""

    epsilon: float = 1e-4

    def __call__(self, scored: Scored) -> Float[Array, "1 1"]:
        mean = jnp.nan_to_num(jnp.nanmean(scored.rewards_PG, keepdims=True))
        return _std(scored.rewards_PG, mean, axis=(0, 1)) + self.epsilon


@dataclass(frozen=True)
class GroupMean:
    """The mean reward of each group plus `epsilon` (MaxRL, arXiv:2602.02710). Rewards must not be negative."""

    epsilon: float = 1e-6

    def __call__(self, scored: Scored) -> Float[Array, "P 1"]:
        return group_mean(scored) + self.epsilon


def lively_share(scored: Scored) -> Float[Array, "1 1"]:
    """The share of groups whose rewards differ: dividing by it makes up for those that teach nothing (GPG)."""
    lively_P = differs(scored.rewards_PG)
    return jnp.maximum(jnp.sum(lively_P), 1).reshape(1, 1) / len(lively_P)


def differs(rewards_PG: Float[Array, "P G"]) -> Array:
    """Which groups have rewards that are not all the same."""
    _, above_PG, _ = _above_least(rewards_PG)
    return jnp.nan_to_num(above_PG).max(axis=1) > 0


def _std(rewards_PG: Array, mean: Array, axis: tuple[int, ...]) -> Array:
    count = jnp.sum(~jnp.isnan(rewards_PG), axis=axis, keepdims=True)
    squares = jnp.nansum(jnp.square(rewards_PG - mean), axis=axis, keepdims=True)
    return jnp.sqrt(squares / jnp.maximum(count - 1, 1))


# Advantages of their own.


def no_advantage(scored: Scored) -> Float[Array, "P G"]:
    """Zero: rewards are watched and teach nothing."""
    return jnp.zeros_like(scored.rewards_PG)


@dataclass(frozen=True)
class Leader:
    """Only the best response of a group has an advantage: how far it is ahead of the second (arXiv:2503.19595)."""

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        known_PG = ~jnp.isnan(scored.rewards_PG)
        rewards_PG = jnp.where(known_PG, scored.rewards_PG, -jnp.inf)
        best_PG = jnp.arange(rewards_PG.shape[1])[None] == jnp.argmax(rewards_PG, axis=1, keepdims=True)
        second_P1 = jnp.max(jnp.where(best_PG, -jnp.inf, rewards_PG), axis=1, keepdims=True)
        ahead_PG = jnp.where(jnp.isfinite(second_P1) & best_PG, rewards_PG - second_P1, 0.0)
        return jnp.where(known_PG, ahead_PG, 0.0)


@dataclass(frozen=True)
class PassAtK:
    """The advantage of a response as one of k that are drawn from its group, of which the best counts.

    In closed form for rewards that are right (above `right`) or wrong (arXiv:2508.10751, section 2.4). A group of fewer
    than k teaches nothing.
    """

    k: int = 4
    right: float = 0.5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"At least one response is drawn; got k = {self.k}.")

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        known_PG = ~jnp.isnan(scored.rewards_PG)
        right_PG = known_PG & (scored.rewards_PG > self.right)
        number_P1 = jnp.sum(known_PG, axis=1, keepdims=True)
        wrong_P1 = number_P1 - jnp.sum(right_PG, axis=1, keepdims=True)
        all_wrong_P1 = _chance(wrong_P1, number_P1, 0, self.k)
        others_wrong_P1 = _chance(wrong_P1, number_P1, 1, self.k)
        std_P1 = jnp.sqrt(all_wrong_P1 * (1 - all_wrong_P1))
        gain_PG = jnp.where(right_PG, all_wrong_P1, all_wrong_P1 - others_wrong_P1)
        return jnp.where(known_PG & (std_P1 > 0), gain_PG / jnp.where(std_P1 > 0, std_P1, 1.0), 0.0)


def _chance(wrong_P1: Array, number_P1: Array, start: int, stop: int) -> Array:
    """That draws `start` to `stop` are all wrong, when those before were."""
    chance_P1 = jnp.ones(wrong_P1.shape)
    for drawn in range(start, stop):
        chance_P1 *= jnp.maximum(wrong_P1 - drawn, 0) / jnp.maximum(number_P1 - drawn, 1)
    return chance_P1


@dataclass(frozen=True)
class Signed:
    """One number for responses that are right (reward above `right`), another for the rest, whatever their group."""

    positive: float = 0.1
    negative: float = -1.0
    right: float = 0.5

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        advantages_PG = jnp.where(scored.rewards_PG > self.right, self.positive, self.negative)
        return jnp.where(jnp.isnan(scored.rewards_PG), 0.0, advantages_PG)


# Credit: rewards of single tokens, and what each token has ahead of it.


def outcome_at_end(scored: Scored) -> Float[Array, "P G T"]:
    """The rewards of single tokens where they are, and what else is in a response's reward at its last token."""
    T = scored.action_PGT.shape[2]
    last_PG1 = jnp.max(jnp.where(scored.action_PGT, jnp.arange(T)[None, None], -1), axis=2, keepdims=True)
    steps_PGT = jnp.zeros(scored.action_PGT.shape) if scored.steps_PGT is None else jnp.nan_to_num(scored.steps_PGT)
    rest_PG = jnp.nan_to_num(scored.rewards_PG - jnp.sum(steps_PGT, axis=2))
    return steps_PGT + jnp.where(jnp.arange(T)[None, None] == last_PG1, rest_PG[:, :, None], 0.0)


@dataclass(frozen=True)
class GroupSteps:
    """Rewards of steps less the mean of all steps of the group, over their deviation (n-1) plus `epsilon`.

    Process supervision as in DeepSeekMath (arXiv:2402.03300, section 4.1.3).
    """

    epsilon: float = 1e-4

    def __call__(self, scored: Scored) -> Float[Array, "P G T"]:
        if scored.steps_PGT is None:
            raise ValueError(
                "No rewards of steps: process supervision needs a reward that returns grpo_jax.rewards.Steps."
            )
        steps_PN = scored.steps_PGT.reshape(len(scored.steps_PGT), -1)
        flat = replace(scored, rewards_PG=steps_PN)
        scaled_PN = (steps_PN - group_mean(flat)) / GroupStd(self.epsilon)(flat)
        return jnp.nan_to_num(scaled_PN, nan=0.0).reshape(scored.steps_PGT.shape)


@dataclass(frozen=True)
class ReturnToGo:
    """What each token has ahead of it: the sum of rewards from itself on, each later one `discount` times as much."""

    rewards: Callable[[Scored], Array]
    discount: float = 1.0

    def __call__(self, scored: Scored) -> Float[Array, "P G T"]:
        def add(ahead_PG: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
            reward_PG, action_PG = token
            ahead_PG = reward_PG + jnp.where(action_PG, self.discount, 1.0) * ahead_PG
            return ahead_PG, ahead_PG

        rewards_PGT = self.rewards(scored)
        by_token = (jnp.moveaxis(rewards_PGT, 2, 0), jnp.moveaxis(scored.action_PGT, 2, 0))
        _, ahead_TPG = jax.lax.scan(add, jnp.zeros(rewards_PGT.shape[:2]), by_token, reverse=True)
        return jnp.where(scored.action_PGT, jnp.moveaxis(ahead_TPG, 0, 2), 0.0)
