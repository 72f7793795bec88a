"""The loss of an objective: a plain sum over tokens, so the losses and gradients of microbatches add up exactly."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jaxtyping import Float

from grpo_jax.objectives.coefficients import in_effect
from grpo_jax.objectives.kl import kl_of
from grpo_jax.objectives.objective import Objective, term_name
from grpo_jax.objectives.scored import required
from grpo_jax.objectives.tokens import tokens_of, total
from grpo_jax.structs import Batch, Tokens


def loss(
    objective: Objective, logprobs_PGT: Float[Array, "P G T"], entropy_PGT: Float[Array, "P G T"], batch: Batch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a batch or microbatch, and sums over its tokens.

    The sums divided by the number of action tokens of the whole batch are metrics.
    """
    tokens = tokens_of(objective, logprobs_PGT, entropy_PGT, batch)
    action_PGT, coefficients = tokens.action_PGT, batch.coefficients
    gain_PGT = _factors(objective, tokens) * objective.surrogate(tokens)
    sums = {"entropy": total(stop_gradient(entropy_PGT), action_PGT)}  # of answers that no sampler has drawn
    if objective.needs_rewards:
        sums = _without_gradient(objective.surrogate, replace(tokens, keep_PGT=None))
    if objective.distillation:
        teacher_PGT = required(batch.teacher_logprobs_PGT, "teacher_logprobs_PGT", "distillation follows a teacher")
        sums["teacher_kl"] = total(stop_gradient(logprobs_PGT) - teacher_PGT, action_PGT)
    kl = objective.counted_kl
    if kl is not None:
        ref_PGT = required(batch.ref_logprobs_PGT, "ref_logprobs_PGT", "a KL term compares with a reference policy")
        kl_PGT = kl_of(kl, tokens, ref_PGT)
        sums["kl"] = total(kl_PGT, action_PGT)
        if kl.place == "loss":
            gain_PGT = gain_PGT - in_effect("kl", kl.coefficient, coefficients) * kl_PGT
    gain = total(batch.weights_PGT * gain_PGT, action_PGT)
    for index, (term, weights_PGT) in enumerate(zip(objective.terms, batch.term_weights_PGT, strict=True)):
        coefficient = in_effect(term_name(index), term.coefficient, coefficients)
        gain = gain + coefficient * total(weights_PGT * term.value(tokens), action_PGT)
    return -gain, sums


def _factors(objective: Objective, tokens: Tokens) -> Array:
    """What masks and corrections multiply the surrogate of each token by."""
    applied = tokens.keep_PGT is None or getattr(objective.surrogate, "applies_masks", False)
    factors_PGT = jnp.ones(tokens.action_PGT.shape) if applied else tokens.keep_PGT
    for correction in objective.corrections:
        factors_PGT = factors_PGT * correction(tokens)
    return stop_gradient(factors_PGT)


def _without_gradient(surrogate: Callable[[Tokens], Array], tokens: Tokens) -> dict[str, Array]:
    """How many tokens have an advantage but no gradient, by the sign of the advantage (low: it is negative)."""

    def gain(log_ratio_PGT: Array, logprobs_PGT: Array) -> Array:
        seen = replace(tokens, log_ratio_PGT=log_ratio_PGT, logprobs_PGT=logprobs_PGT)
        return total(surrogate(seen), tokens.action_PGT)

    at = (stop_gradient(tokens.log_ratio_PGT), stop_gradient(tokens.logprobs_PGT))
    of_ratio_PGT, of_logprob_PGT = jax.grad(gain, argnums=(0, 1))(*at)
    flat_PGT = (of_ratio_PGT == 0) & (of_logprob_PGT == 0) & tokens.action_PGT
    low = jnp.sum(flat_PGT & (tokens.advantages_PGT < 0), dtype=jnp.float32)
    high = jnp.sum(flat_PGT & (tokens.advantages_PGT > 0), dtype=jnp.float32)
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high}
