"""Shaping: functions from `Scored` to `Scored` that change rewards before responses are compared."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from grpo_jax.objectives.advantages import group_mean
from grpo_jax.objectives.scored import actions, ends, lengths, reward_parts
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.structs import Scored


@dataclass(frozen=True)
class SoftOverlong:
    """Subtracts a penalty that grows from 0 to 1 over the last `share` of `limit` tokens (DAPO, arXiv:2503.14476,
    equation 13). A limit of None is that of the sampler.
    """

    share: float = 0.2
    limit: int | None = None

    def __post_init__(self) -> None:
        check_range("share or overlong", self.share, above=0, most=1)
        if self.limit is not None:
            check_range("limit", self.limit, least=1, most=WHOLE)

    def __call__(self, scored: Scored) -> Scored:
        limit = actions(scored).shape[2] if self.limit is None else self.limit
        cache = max(self.share * limit, 1.0)
        over_PG = lengths(scored) - (limit - cache)
        return replace(scored, rewards_PG=scored.rewards_PG - jnp.clip(over_PG / cache, 0.0, 1.0))


def nothing_for_truncated(scored: Scored) -> Scored:
    """The reward of a truncated response, and each of its parts, is at most zero.

    This punishes truncation only where zero is the worst reward. Where wrong responses have negative rewards, a right
    response that was truncated is still better than a wrong one: shift the rewards, so that none is below zero, or
    leave this out.
    """
    ended_PG, parts_PGR = ends(scored), scored.parts_PGR
    rewards_PG = jnp.where(ended_PG, scored.rewards_PG, jnp.minimum(scored.rewards_PG, 0.0))
    if parts_PGR is not None:
        parts_PGR = jnp.where(ended_PG[:, :, None], parts_PGR, jnp.minimum(parts_PGR, 0.0))
    return replace(scored, rewards_PG=rewards_PG, parts_PGR=parts_PGR)


@dataclass(frozen=True)
class Brevity:
    """Subtracts `slope` x the mean reward of the group x (length / longest possible length): solved prompts ask for
    short responses, hard ones do not (ALP, arXiv:2506.05256, which also has a least penalty).
    """

    slope: float = 0.1

    def __post_init__(self) -> None:
        check_range("slope or length_penalty", self.slope, least=0)

    def __call__(self, scored: Scored) -> Scored:
        share_PG = lengths(scored) / actions(scored).shape[2]
        penalty_PG = self.slope * jnp.maximum(group_mean(scored), 0.0) * share_PG
        return replace(scored, rewards_PG=scored.rewards_PG - penalty_PG)


@dataclass(frozen=True)
class Gate:
    """Multiplies the reward and each of its parts by some of the parts: rules that a response must keep to earn
    anything.

    `parts` are positions in the list of rewards; give those rewards a weight of 0.
    """

    parts: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.parts or min(self.parts) < 0:
            raise ValueError(f"A gate multiplies by at least one reward, counted from 0; got {self.parts}.")

    def __call__(self, scored: Scored) -> Scored:
        parts_PGR, _ = reward_parts(scored)
        if max(self.parts) >= parts_PGR.shape[2]:
            raise ValueError(f"There are {parts_PGR.shape[2]} rewards, counted from 0; got {self.parts}.")
        passed_PG = jnp.prod(parts_PGR[:, :, jnp.array(self.parts)], axis=2)
        gated_PGR = parts_PGR * passed_PG[:, :, None]
        return replace(scored, rewards_PG=scored.rewards_PG * passed_PG, parts_PGR=gated_PGR)
