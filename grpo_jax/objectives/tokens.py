"""What surrogates, corrections, masks and terms see of the responses' tokens."""

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from grpo_jax.objectives.objective import Objective
from grpo_jax.objectives.scored import required
from grpo_jax.structs import Batch, Tokens


def tokens_of(objective: Objective, logprobs_PGT: Array, entropy_PGT: Array, batch: Batch) -> Tokens:
    """The tokens of a batch under the policy with these log-probs and entropies."""
    action_PGT, sampler_PGT = batch.rollouts.action_PGT, batch.rollouts.logprobs_PGT
    now_PGT = stop_gradient(logprobs_PGT)
    trainer_PGT = now_PGT if batch.old_logprobs_PGT is None else batch.old_logprobs_PGT
    anchor_PGT = {"current": now_PGT, "recomputed": trainer_PGT, "sampler": sampler_PGT}[objective.anchor]
    difference_PGT, anchor_PGT = from_anchor(logprobs_PGT, anchor_PGT, action_PGT)
    advantages_PGT = per_token(batch.advantages, action_PGT)
    if objective.distillation:
        teacher_PGT = required(batch.teacher_logprobs_PGT, "teacher_logprobs_PGT", "distillation follows a teacher")
        ahead_PGT = jnp.where(action_PGT, teacher_PGT - trainer_PGT, 0.0)
        advantages_PGT = advantages_PGT + objective.distillation * ahead_PGT
    log_ratio_PGT = objective.ratio(difference_PGT, action_PGT)
    return Tokens(
        action_PGT,
        advantages_PGT,
        logprobs_PGT,
        entropy_PGT,
        log_ratio_PGT,
        anchor_PGT,
        trainer_PGT,
        sampler_PGT,
        batch.keep_PGT,
    )


def from_anchor(logprobs_PGT: Array, anchor_PGT: Array, action_PGT: Array) -> tuple[Array, Array]:
    """Log-probs minus those of the anchor, and the anchor. A token whose anchor is NaN is its own anchor."""
    known_PGT = action_PGT & ~jnp.isnan(anchor_PGT)
    anchor_PGT = jnp.where(known_PGT, anchor_PGT, stop_gradient(logprobs_PGT))
    return jnp.where(known_PGT, logprobs_PGT - anchor_PGT, 0.0), anchor_PGT


def per_token(advantages: Array, action_PGT: Array) -> Array:
    """Advantages of responses or tokens as one number for each token."""
    advantages_PGT = advantages if advantages.ndim == 3 else advantages[:, :, None]
    return jnp.broadcast_to(advantages_PGT, action_PGT.shape)


def total(values_PGT: Array, action_PGT: Array) -> Array:
    """The sum over all action tokens. Values elsewhere may be anything, NaN included."""
    return jnp.sum(jnp.where(action_PGT, values_PGT, 0.0))
