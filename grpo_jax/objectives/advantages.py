"""Advantages: how much better than its group each response was.

Most advantages subtract a center from the reward and divide by a scale. Center and scale are functions of `Scored`, and
leave out responses that could not be scored (NaN), whose advantage is zero. Any function from `Scored` to `[P, G]` or,
where credit differs between tokens, to `[P, G, T]` is an advantage. What compares the responses of a group says so
(groups.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from grpo_jax.objectives.groups import compares
from grpo_jax.objectives.scored import actions, beyond_parts, lengths, reward_parts
from grpo_jax.ranges import check_range
from grpo_jax.structs import Scored

Baseline = Callable[[Scored], Array]
MOST_DRAWN = 4096  # of a group, by PassAtK


@dataclass(frozen=True)
class Advantage:
    """(reward - center) / scale; zero for responses without a reward."""

    center: Baseline
    scale: Baseline

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        advantages_PG = (scored.rewards_PG - self.center(scored)) / self.scale(scored)
        return jnp.nan_to_num(advantages_PG, nan=0.0)


def one(scored: Scored) -> Float[Array, "P G"]:
    """One for every response, whatever it earns, so that rewards need not be known."""
    return jnp.ones_like(scored.rewards_PG)


one.__dict__["needs_rewards"] = False


@dataclass(frozen=True)
class EachPart:
    """The weighted sum of the advantages of the reward parts, each computed by itself (GDPO, arXiv:2601.05242).

    What shaping added to the total but to no part, such as a penalty for length, is centred on its group's mean and
    added without a scale: divided by its own deviation, a small penalty would count as much as a large one.
    """

    advantage: Callable[[Scored], Array]

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        parts_PGR, weights_R = reward_parts(scored)
        each_RPG = jnp.stack(
            [self.advantage(replace(scored, rewards_PG=part_PG)) for part_PG in jnp.moveaxis(parts_PGR, 2, 0)]
        )
        added = replace(scored, rewards_PG=beyond_parts(scored))
        return jnp.sum(each_RPG * weights_R[:, None, None], axis=0) + CENTERED(added)


@dataclass(frozen=True)
class Whitened:
    """An advantage minus its mean over the batch, divided by its deviation (n-1) plus `epsilon`.

    With `unit` response every scored response counts the same in mean and deviation, with token every token.
    """

    advantage: Callable[[Scored], Array]
    unit: Literal["response", "token"] = "response"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, least=0)

    def __call__(self, scored: Scored) -> Array:
        advantages = self.advantage(scored)
        known_PG = ~jnp.isnan(scored.rewards_PG)
        counts = known_PG
        if advantages.ndim == 3 or self.unit == "token":
            counts = known_PG[:, :, None] & actions(scored)
            counts = counts if advantages.ndim == 3 else jnp.sum(counts, axis=2)
        number = jnp.maximum(jnp.sum(counts), 1)
        above = advantages - jnp.sum(counts * advantages) / number
        std = jnp.sqrt(jnp.sum(counts * jnp.square(above)) / jnp.maximum(number - 1, 1))
        return jnp.where(counts > 0, above / (std + self.epsilon), 0.0)


# Centers: what is subtracted from the reward.


@compares
def group_mean(scored: Scored) -> Float[Array, "P 1"]:
    """The mean reward of each group (DeepSeekMath, arXiv:2402.03300, section 4.1.2)."""
    least_P1, above_PG, count_P1 = _above_least(scored.rewards_PG)
    return least_P1 + jnp.nansum(above_PG, axis=1, keepdims=True) / jnp.maximum(count_P1, 1)


@compares
def leave_one_out(scored: Scored) -> Float[Array, "P G"]:
    """The mean reward of the other responses of the group (RLOO, arXiv:2402.14740); in a group of one, the reward."""
    least_P1, above_PG, count_P1 = _above_least(scored.rewards_PG)
    others_PG = jnp.nansum(above_PG, axis=1, keepdims=True) - above_PG
    return jnp.where(count_P1 > 1, least_P1 + others_PG / jnp.maximum(count_P1 - 1, 1), scored.rewards_PG)


@compares
def length_weighted(scored: Scored) -> Float[Array, "P 1"]:
    """The mean reward of each group, in which each response is weighted by its length (OPO, arXiv:2505.23585)."""
    least_P1, above_PG, _ = _above_least(scored.rewards_PG)
    lengths_PG = jnp.where(jnp.isnan(above_PG), 0, lengths(scored))
    total_P1 = jnp.maximum(jnp.sum(lengths_PG, axis=1, keepdims=True), 1)
    return least_P1 + jnp.nansum(above_PG * lengths_PG, axis=1, keepdims=True) / total_P1


def greedy_answer(scored: Scored) -> Float[Array, "P 1"]:
    """The reward of the greedy response to the prompt (ReMax, arXiv:2310.10505)."""
    if scored.greedy_P1 is None:
        raise ValueError(
            "Scored.greedy_P1 is missing: this center is the reward of the greedy response; set greedy_baseline of the"
            " objective."
        )
    return scored.greedy_P1


def _above_least(rewards_PG: Array) -> tuple[Array, Array, Array]:
    """Each group's least reward, the rewards minus it, and how many rewards there are.

    Means are taken of these differences, so that a group whose rewards are all 1.1 has an advantage of exactly zero:
    rounding errors would be about 1e-6, and division by a deviation near zero would make them matter.
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
    """The standard deviation of each group's rewards (n-1 in the denominator) plus `epsilon`."""

    least_group: ClassVar[int] = 2
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, least=0)

    def __call__(self, scored: Scored) -> Float[Array, "P 1"]:
        return _std(scored.rewards_PG, group_mean(scored), axis=(1,)) + self.epsilon


@dataclass(frozen=True)
class BatchStd:
    """The standard deviation of all rewards of the batch (n-1 in the denominator) plus `epsilon`."""

    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, least=0)

    def __call__(self, scored: Scored) -> Float[Array, "1 1"]:
        mean = jnp.nan_to_num(jnp.nanmean(scored.rewards_PG, keepdims=True))
        return _std(scored.rewards_PG, mean, axis=(0, 1)) + self.epsilon


@dataclass(frozen=True)
class GroupMean:
    """The mean reward of each group plus `epsilon` (MaxRL, arXiv:2602.02710). Rewards must not be negative."""

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, least=0)

    def __call__(self, scored: Scored) -> Float[Array, "P 1"]:
        return group_mean(scored) + self.epsilon


@compares
def lively_share(scored: Scored) -> Float[Array, "1 1"]:
    """The fraction of groups whose rewards differ. Dividing by it compensates for the other groups, which give no
    gradient (GPG, arXiv:2504.02546).
    """
    lively_P = differs(scored.rewards_PG)
    return jnp.maximum(jnp.sum(lively_P), 1).reshape(1, 1) / len(lively_P)


def differs(rewards_PG: Float[Array, "P G"]) -> Array:
    """Which groups have rewards that are not all equal."""
    _, above_PG, _ = _above_least(rewards_PG)
    return jnp.nan_to_num(above_PG).max(axis=1) > 0


def _std(rewards_PG: Array, mean: Array, axis: tuple[int, ...]) -> Array:
    count = jnp.sum(~jnp.isnan(rewards_PG), axis=axis, keepdims=True)
    squares = jnp.nansum(jnp.square(rewards_PG - mean), axis=axis, keepdims=True)
    return jnp.sqrt(squares / jnp.maximum(count - 1, 1))


# The usual combinations.

CENTERED, STANDARD = Advantage(group_mean, unscaled), Advantage(group_mean, GroupStd())
BY_BATCH = Advantage(group_mean, BatchStd())


# Advantages without center and scale.


def no_advantage(scored: Scored) -> Float[Array, "P G"]:
    """Zero: rewards are measured, but nothing is learned from them."""
    return jnp.zeros_like(scored.rewards_PG)


@dataclass(frozen=True)
class Leader:
    """Best reward minus second best, for the best response of each group; zero for the others (arXiv:2503.19595)."""

    least_group: ClassVar[int] = 2

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        known_PG = ~jnp.isnan(scored.rewards_PG)
        rewards_PG = jnp.where(known_PG, scored.rewards_PG, -jnp.inf)
        best_PG = jnp.arange(rewards_PG.shape[1])[None] == jnp.argmax(rewards_PG, axis=1, keepdims=True)
        second_P1 = jnp.max(jnp.where(best_PG, -jnp.inf, rewards_PG), axis=1, keepdims=True)
        ahead_PG = jnp.where(jnp.isfinite(second_P1) & best_PG, rewards_PG - second_P1, 0.0)
        return jnp.where(known_PG, ahead_PG, 0.0)


@dataclass(frozen=True)
class PassAtK:
    """The advantage of a response as one of k drawn from its group, where the best of the k counts.

    The closed form for rewards that are right (above `right`) or wrong (arXiv:2508.10751, section 2.4). A group of
    fewer than k responses has no advantage.
    """

    k: int = 4
    right: float = 0.5

    def __post_init__(self) -> None:
        check_range("k", self.k, least=1, most=MOST_DRAWN)
        check_range("right", self.right)

    @property
    def least_group(self) -> int:
        """A group of fewer than k responses has no advantage, and neither has a group of one."""
        return max(self.k, 2)

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
    """The probability that draws `start` to `stop` are all wrong, given that all draws before were wrong."""
    chance_P1 = jnp.ones(wrong_P1.shape)
    for drawn in range(start, stop):
        chance_P1 *= jnp.maximum(wrong_P1 - drawn, 0) / jnp.maximum(number_P1 - drawn, 1)
    return chance_P1


@dataclass(frozen=True)
class Signed:
    """`positive` for right responses (reward above `right`), `negative` for the others, whatever their group."""

    positive: float = 0.1
    negative: float = -1.0
    right: float = 0.5

    def __post_init__(self) -> None:
        check_range("positive", self.positive)
        check_range("negative", self.negative)
        check_range("right", self.right)

    def __call__(self, scored: Scored) -> Float[Array, "P G"]:
        advantages_PG = jnp.where(scored.rewards_PG > self.right, self.positive, self.negative)
        return jnp.where(jnp.isnan(scored.rewards_PG), 0.0, advantages_PG)


# Credit of single tokens.


def outcome_at_end(scored: Scored) -> Float[Array, "P G T"]:
    """The rewards of single tokens, with the rest of the response's reward added at its last token."""
    action_PGT = actions(scored)
    T = action_PGT.shape[2]
    last_PG1 = jnp.max(jnp.where(action_PGT, jnp.arange(T)[None, None], -1), axis=2, keepdims=True)
    steps_PGT = jnp.zeros(action_PGT.shape) if scored.steps_PGT is None else jnp.nan_to_num(scored.steps_PGT)
    rest_PG = jnp.nan_to_num(scored.rewards_PG - jnp.sum(steps_PGT, axis=2))
    return steps_PGT + jnp.where(jnp.arange(T)[None, None] == last_PG1, rest_PG[:, :, None], 0.0)


@dataclass(frozen=True)
class GroupSteps:
    """Rewards of steps minus the mean over all steps of the group, divided by their deviation (n-1) plus `epsilon`
    (process supervision, DeepSeekMath, arXiv:2402.03300, section 4.1.3).
    """

    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, least=0)

    def __call__(self, scored: Scored) -> Float[Array, "P G T"]:
        if scored.steps_PGT is None:
            raise ValueError(
                "Scored.steps_PGT is missing: process supervision needs a reward that returns grpo_jax.rewards.Steps."
            )
        steps_PN = scored.steps_PGT.reshape(len(scored.steps_PGT), -1)
        flat = replace(scored, rewards_PG=steps_PN)
        scaled_PN = (steps_PN - group_mean(flat)) / GroupStd(self.epsilon)(flat)
        return jnp.nan_to_num(scaled_PN, nan=0.0).reshape(scored.steps_PGT.shape)


@dataclass(frozen=True)
class ReturnToGo:
    """The sum of rewards from each token on; it is multiplied by `discount` for each token further on."""

    rewards: Callable[[Scored], Array]
    discount: float = 1.0

    def __post_init__(self) -> None:
        check_range("discount", self.discount, least=0, most=1)

    def __call__(self, scored: Scored) -> Float[Array, "P G T"]:
        def add(ahead_PG: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
            reward_PG, action_PG = token
            ahead_PG = reward_PG + jnp.where(action_PG, self.discount, 1.0) * ahead_PG
            return ahead_PG, ahead_PG

        rewards_PGT, action_PGT = self.rewards(scored), actions(scored)
        by_token = (jnp.moveaxis(rewards_PGT, 2, 0), jnp.moveaxis(action_PGT, 2, 0))
        _, ahead_TPG = jax.lax.scan(add, jnp.zeros(rewards_PGT.shape[:2]), by_token, reverse=True)
        return jnp.where(action_PGT, jnp.moveaxis(ahead_TPG, 0, 2), 0.0)
