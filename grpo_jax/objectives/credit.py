"""From scored rollouts to a batch: everything that is decided before the gradient, once for the whole batch."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.objectives.coefficients import in_effect
from grpo_jax.objectives.objective import Objective
from grpo_jax.objectives.scored import actions, required
from grpo_jax.objectives.tokens import tokens_of
from grpo_jax.structs import Batch, Rollouts, Scored


def credit(
    objective: Objective,
    rollouts: Rollouts,
    scored: Scored,
    key: Array,
    *,
    coefficients: dict[str, Array] | None = None,
    old_logprobs_PGT: Array | None = None,
    ref_logprobs_PGT: Array | None = None,
    teacher_logprobs_PGT: Array | None = None,
) -> Batch:
    """The batch to learn from: advantages, the weight of each token, and the log-probs that stay fixed.

    A response that does not count has no action tokens left. `coefficients` are the states of those that adapt; the
    log-probs are those of the policy before the update, of the reference and of the teacher, where they are needed.
    """
    coefficients = coefficients or {}
    scored = _less_kl(objective, scored, rollouts, coefficients, old_logprobs_PGT, ref_logprobs_PGT)
    for shape in objective.shaping:
        scored = shape(scored)
    counted_PG = _selected(objective, scored)
    scored = _only(scored, counted_PG)
    advantages = _advantages(objective, scored, rollouts.action_PGT.shape)
    for prune in objective.prune:
        counted_PG &= prune(scored, advantages)
    left_PG1 = counted_PG[:, :, None]
    action_PGT, valid_PGT = rollouts.action_PGT & left_PG1, rollouts.valid_PGT & left_PG1
    batch = Batch(
        replace(rollouts, action_PGT=action_PGT, valid_PGT=valid_PGT),
        advantages,
        objective.weighting(action_PGT, counted_PG),
        coefficients=coefficients,
        old_logprobs_PGT=old_logprobs_PGT,
        ref_logprobs_PGT=ref_logprobs_PGT,
        teacher_logprobs_PGT=teacher_logprobs_PGT,
    )
    return _masked(objective, batch, counted_PG, key)


def _less_kl(
    objective: Objective,
    scored: Scored,
    rollouts: Rollouts,
    coefficients: Mapping[str, Array],
    old_PGT: Array | None,
    ref_PGT: Array | None,
) -> Scored:
    """Rewards minus the KL penalty, if the objective has it in the reward."""
    kl = objective.counted_kl
    if kl is None or kl.place == "loss":
        return scored
    old_PGT = required(old_PGT, "old_logprobs_PGT", "a KL term in the reward compares them with the reference's")
    ref_PGT = required(ref_PGT, "ref_logprobs_PGT", "a KL term compares with a reference policy")
    kl_PGT = jnp.where(rollouts.action_PGT, kl.estimator(old_PGT, ref_PGT), 0.0)
    kl_PGT = in_effect("kl", kl.coefficient, coefficients) * kl_PGT
    scored = replace(scored, rewards_PG=scored.rewards_PG - jnp.sum(kl_PGT, axis=2))
    if kl.place == "reward":
        return scored
    steps_PGT = -kl_PGT if scored.steps_PGT is None else jnp.nan_to_num(scored.steps_PGT) - kl_PGT
    return replace(scored, steps_PGT=steps_PGT)


def _selected(objective: Objective, scored: Scored) -> Array:
    """Which responses count in their group: those with a reward that every `select` keeps."""
    known_PG = ~jnp.isnan(scored.rewards_PG)
    counts_all = objective.distillation or not objective.needs_rewards  # a teacher needs no reward
    counted_PG = jnp.ones_like(known_PG) if counts_all else known_PG
    for select in objective.select:
        counted_PG &= select(scored)
    return counted_PG


def _only(scored: Scored, counted_PG: Array) -> Scored:
    """Rewards in which responses that do not count look like responses that could not be scored."""
    rewards_PG, parts_PGR, steps_PGT = scored.rewards_PG, scored.parts_PGR, scored.steps_PGT
    if parts_PGR is not None:
        parts_PGR = jnp.where(counted_PG[:, :, None], parts_PGR, jnp.nan)
    if steps_PGT is not None:
        steps_PGT = jnp.where(counted_PG[:, :, None] & actions(scored), steps_PGT, jnp.nan)
    rewards_PG = jnp.where(counted_PG, rewards_PG, jnp.nan)
    return replace(scored, rewards_PG=rewards_PG, parts_PGR=parts_PGR, steps_PGT=steps_PGT)


def _advantages(objective: Objective, scored: Scored, shape_PGT: tuple[int, ...]) -> Array:
    """The advantages, refused unless they are numbers of responses or tokens."""
    advantages = objective.advantage(scored)
    if advantages.shape not in (shape_PGT, shape_PGT[:2]):
        raise ValueError(
            f"An advantage is a number for each response or token, {shape_PGT[:2]} or {shape_PGT};"
            f" {objective.advantage} gave {advantages.shape}."
        )
    return advantages


def _masked(objective: Objective, batch: Batch, counted_PG: Array, key: Array) -> Batch:
    """The batch with what masks keep, and with the weights of further terms."""
    if not objective.masks and not objective.terms:
        return batch
    rollouts = batch.rollouts
    old_PGT = rollouts.logprobs_PGT if batch.old_logprobs_PGT is None else batch.old_logprobs_PGT
    tokens = tokens_of(objective, old_PGT, rollouts.entropy_PGT, batch)
    keep_PGT = rollouts.action_PGT
    for index, mask in enumerate(objective.masks):
        keep_PGT = keep_PGT & mask(tokens, jax.random.fold_in(key, index))
    weights = []
    for index, term in enumerate(objective.terms):
        weights_PGT = batch.weights_PGT if term.weighting is None else term.weighting(keep_PGT, counted_PG)
        if term.mask is not None:
            weights_PGT = weights_PGT * term.mask(tokens, jax.random.fold_in(key, len(objective.masks) + index))
        weights.append(weights_PGT)
    kept_PGT = keep_PGT.astype(jnp.float32) if objective.masks else None
    return replace(batch, keep_PGT=kept_PGT, term_weights_PGT=tuple(weights))
