"""How a `Scored` is made from rollouts and their rewards, and what choices ask of it."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from grpo_jax.structs import Rollouts, Scored


def scored_of(
    rewards_PGR: Array,
    weights_R: Array,
    rollouts: Rollouts,
    *,
    steps_PGT: Array | None = None,
    greedy_P1: Array | None = None,
) -> Scored:
    """The rewards of rollouts, with their weighted total."""
    rewards_PG = weighted_total(rewards_PGR, weights_R)
    return Scored(rewards_PG, rewards_PGR, weights_R, rollouts.action_PGT, rollouts.ended_PG, steps_PGT, greedy_P1)


def weighted_total(rewards_PGR: Float[Array, "P G R"], weights_R: Float[Array, " R"]) -> Float[Array, "P G"]:
    """The weighted sum of the reward parts that could be scored; NaN where none could."""
    total_PG = jnp.nansum(rewards_PGR * weights_R[None, None, :], axis=2)
    return jnp.where(jnp.isnan(rewards_PGR).all(axis=2), jnp.nan, total_PG)


def beyond_parts(scored: Scored) -> Float[Array, "P G"]:
    """The total reward minus the weighted sum of the parts: what shaping added. Rounding errors count as zero."""
    parts_PGR, weights_R = reward_parts(scored)
    size_PG = jnp.nansum(jnp.abs(parts_PGR * weights_R[None, None, :]), axis=2)
    added_PG = scored.rewards_PG - weighted_total(parts_PGR, weights_R)
    return jnp.where(jnp.abs(added_PG) <= 1e-5 * size_PG, 0.0, added_PG)


def lengths(scored: Scored) -> Float[Array, "P G"]:
    """The number of tokens of each response."""
    return jnp.sum(actions(scored), axis=2).astype(jnp.float32)


def actions(scored: Scored) -> Array:
    """`action_PGT`, for choices that look at tokens."""
    return required(scored.action_PGT, "Scored.action_PGT", "this choice looks at tokens; `scored_of` sets the field")


def ends(scored: Scored) -> Array:
    """`ended_PG`, for choices that treat truncated responses differently."""
    reason = "this choice looks for truncated responses; `scored_of` sets the field"
    return required(scored.ended_PG, "Scored.ended_PG", reason)


def reward_parts(scored: Scored) -> tuple[Array, Array]:
    """`parts_PGR` and `weights_R`, for choices that look at each reward part."""
    reason = "this choice looks at the parts of the reward; `scored_of` sets the field"
    parts_PGR = required(scored.parts_PGR, "Scored.parts_PGR", reason)
    return parts_PGR, required(scored.weights_R, "Scored.weights_R", reason)


def required(value: Array | None, name: str, reason: str) -> Array:
    """The value itself; an error that gives the reason if the value is missing."""
    if value is None:
        raise ValueError(f"{name} is missing: {reason}.")
    return value
