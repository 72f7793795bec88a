"""The clipped, KL-regularised loss as a combination of small choices; published methods are presets at the end.

    loss = sum(weights * (coefficient * kl - surrogate(log_ratio, advantages, logprobs)))

- advantage   rewards_PG -> advantages_PG                              (advantages.py)
- ratio       log pi - log pi_old of each token, or of its sequence
- surrogate   what to maximise, per token, in the form its paper gives; JAX differentiates it
- weighting   action_PGT -> weights_PGT: how much each token counts, fixed for the global batch before the gradient
- kl          the pull towards a reference policy: estimator, coefficient, and whether in the loss or in the reward

Anything of the right shape can take a place: `dataclasses.replace(grpo(), surrogate=mine)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from grpo_jax.advantages import Advantage, GroupStd, group_mean, leave_one_out, unscaled
from grpo_jax.structs import Batch


@dataclass(frozen=True)
class KL:
    """A penalty for leaving the reference policy.

    In the loss it is one more term per token. In the reward, the estimate of the policy that sampled is summed over
    the response and subtracted before the advantage, so no gradient flows through it. With `corrected`, the estimate
    in the loss is multiplied by the importance ratio and the gradient flows through both.
    """

    coefficient: float
    estimator: Callable[[Array, Array], Array]
    place: Literal["loss", "reward"] = "loss"
    corrected: bool = False


@dataclass(frozen=True)
class Objective:
    """One choice along each axis. Called with log-probs and a batch, it gives the loss and sums over action tokens."""

    advantage: Callable[[Array], Array]
    ratio: Callable[[Array, Array], Array]
    surrogate: Callable[[Array, Array, Array], Array]
    weighting: Callable[[Array], Array]
    kl: KL | None = None

    def __call__(
        self, logprobs_PGT: Float[Array, "P G T"], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of these prompts, and statistics to divide by the number of action tokens of the whole batch."""
        action_PGT = batch.rollouts.action_PGT
        old_PGT = jax.lax.stop_gradient(logprobs_PGT) if batch.old_logprobs_PGT is None else batch.old_logprobs_PGT
        log_ratio_PGT = self.ratio(jnp.where(action_PGT, logprobs_PGT - old_PGT, 0.0), action_PGT)
        advantages_PGT = _per_token(batch.advantages, action_PGT)
        gain_PGT = self.surrogate(log_ratio_PGT, advantages_PGT, logprobs_PGT)
        sums = _clipped(self.surrogate, log_ratio_PGT, advantages_PGT, logprobs_PGT, action_PGT)
        if self.needs_reference:
            ref_PGT = jnp.where(action_PGT, batch.ref_logprobs_PGT, logprobs_PGT)
            kl_PGT = self.kl.estimator(logprobs_PGT, ref_PGT)
            if self.kl.corrected:
                kl_PGT = kl_PGT * bounded_exp(log_ratio_PGT)
            sums["kl"] = jnp.sum(kl_PGT)
            if self.kl.place == "loss":
                gain_PGT = gain_PGT - self.kl.coefficient * kl_PGT
        return -jnp.sum(jnp.where(action_PGT, batch.weights_PGT * gain_PGT, 0.0)), sums

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy has to be held in memory."""
        return self.kl is not None and self.kl.coefficient != 0


def _per_token(advantages: Array, action_PGT: Array) -> Array:
    advantages_PGT = advantages if advantages.ndim == 3 else advantages[:, :, None]
    return jnp.broadcast_to(advantages_PGT, action_PGT.shape)


def _clipped(surrogate, log_ratio_PGT: Array, advantages_PGT: Array, logprobs_PGT: Array, action_PGT: Array) -> dict:
    """How many tokens have an advantage but no gradient, by the sign of the advantage (low: it was negative)."""
    ones_PGT = jnp.ones_like(logprobs_PGT)
    _, slope_PGT = jax.jvp(
        lambda log_ratio_PGT, logprobs_PGT: surrogate(log_ratio_PGT, advantages_PGT, logprobs_PGT),
        (jax.lax.stop_gradient(log_ratio_PGT), jax.lax.stop_gradient(logprobs_PGT)),
        (ones_PGT, ones_PGT),
    )
    flat_PGT = (slope_PGT == 0) & action_PGT
    low = jnp.sum(flat_PGT & (advantages_PGT < 0), dtype=jnp.float32)
    high = jnp.sum(flat_PGT & (advantages_PGT > 0), dtype=jnp.float32)
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high}


# Ratios: differences of log-probs, zero where there is no action -> log-ratios that broadcast over the tokens.


def token(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """Each token's own log-ratio (PPO, GRPO)."""
    return difference_PGT


def sequence(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The mean log-ratio of the response: the length-normalised sequence ratio (GSPO, arXiv:2507.18071)."""
    lengths_PG1 = jnp.maximum(jnp.sum(action_PGT, axis=2, keepdims=True), 1)
    mean_PG1 = jnp.sum(difference_PGT, axis=2, keepdims=True) / lengths_PG1
    return jnp.broadcast_to(mean_PG1, difference_PGT.shape)


def sequence_product(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The summed log-ratio of the response: the exact importance ratio of the whole sequence."""
    return jnp.broadcast_to(jnp.sum(difference_PGT, axis=2, keepdims=True), difference_PGT.shape)


def bounded_exp(log_ratio_PGT: Array) -> Array:
    """The ratio, flat beyond e^80: float32 ends at e^88, and infinity times a gradient of zero is not a number."""
    return jnp.exp(jnp.minimum(log_ratio_PGT, 80.0))


# Surrogates: (log_ratio_PGT, advantages_PGT, logprobs_PGT) -> what to maximise, per token.


def reinforce(log_ratio_PGT: Array, advantages_PGT: Array, logprobs_PGT: Array) -> Array:
    """The advantage times the log-prob: the plain policy gradient, whatever the ratio."""
    return advantages_PGT * logprobs_PGT


@dataclass(frozen=True)
class ClippedRatio:
    """min(r A, clip(r, 1 - low, 1 + high) A): PPO's surrogate (arXiv:1707.06347, equation 7) with two bounds.

    `cap` bounds the ratio of the unclipped branch as well, so a negative advantage stops pulling on tokens whose ratio
    has grown beyond it (dual clip).
    """

    low: float = 0.2
    high: float = 0.2
    cap: float | None = None

    def __call__(self, log_ratio_PGT: Array, advantages_PGT: Array, logprobs_PGT: Array) -> Array:
        ratio_PGT = bounded_exp(log_ratio_PGT)
        clipped_PGT = jnp.clip(ratio_PGT, 1 - self.low, 1 + self.high)
        if self.cap is not None:
            ratio_PGT = jnp.minimum(ratio_PGT, self.cap)
        return jnp.minimum(ratio_PGT * advantages_PGT, clipped_PGT * advantages_PGT)


# KL estimators: per-token estimates from samples of the policy; y is its log-prob minus the reference's.


def k1(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """The log-ratio: unbiased as a value; in the loss its expected gradient is zero, so use it in the reward."""
    return logprobs_PGT - ref_logprobs_PGT


def k2(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """Half the squared log-ratio: biased as a value, but in the loss its gradient is that of the reverse KL."""
    return jnp.square(logprobs_PGT - ref_logprobs_PGT) / 2


def k3(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """exp(-y) - 1 + y: unbiased and never negative (GRPO, arXiv:2402.03300, equation 4).

    In the loss its gradient is that of the forward KL, from the reference to the policy.
    """
    return jnp.exp(ref_logprobs_PGT - logprobs_PGT) - 1 - (ref_logprobs_PGT - logprobs_PGT)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


# Weightings: action_PGT -> weights_PGT over the whole global batch.


def sequence_mean(action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """Every response counts the same, and so does every token within it."""
    lengths_PG1 = jnp.maximum(jnp.sum(action_PGT, axis=2, keepdims=True), 1)
    return action_PGT / (lengths_PG1 * action_PGT.shape[0] * action_PGT.shape[1])


def token_mean(action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """Every token of the batch counts the same."""
    return action_PGT / jnp.maximum(jnp.sum(action_PGT), 1)


def sequence_sum(action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The mean over responses of the sum over their tokens."""
    return action_PGT / (action_PGT.shape[0] * action_PGT.shape[1] * 1.0)


@dataclass(frozen=True)
class FixedLength:
    """The mean over responses of the sum over their tokens, divided by a constant `length` in tokens."""

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Responses are divided by a length of at least 1 token; got {self.length}.")

    def __call__(self, action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
        return sequence_sum(action_PGT) / self.length


# Presets: published methods, each a combination of the above.


def grpo(
    clip: float = 0.2,
    kl: float = 0.04,  # coefficient; 0 keeps no reference policy at all
    kl_estimator: Literal["k1", "k2", "k3"] = "k3",
    kl_place: Literal["loss", "reward"] = "loss",
) -> Objective:
    """GRPO as published in DeepSeekMath (arXiv:2402.03300, equation 3). The paper leaves the clip range open."""
    penalty = KL(kl, ESTIMATORS[kl_estimator], kl_place) if kl else None
    return Objective(Advantage(group_mean, GroupStd()), token, ClippedRatio(clip, clip), sequence_mean, penalty)


def dr_grpo(
    length: int,  # the constant every response is divided by, in tokens: rollout.max_tokens as a rule
    clip: float = 0.2,
) -> Objective:
    """Dr. GRPO (arXiv:2503.20783): no division by the group's deviation nor by the response's length."""
    return Objective(Advantage(group_mean, unscaled), token, ClippedRatio(clip, clip), FixedLength(length))


def dapo(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    cap: float | None = None,  # dual clip, which is not in the paper
) -> Objective:
    """DAPO's loss (arXiv:2503.14476): a higher upper clip bound and every token counts the same; no KL.

    Its dynamic sampling and overlong shaping are not part of the loss.
    """
    return Objective(Advantage(group_mean, GroupStd()), token, ClippedRatio(clip_low, clip_high, cap), token_mean)


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """GSPO (arXiv:2507.18071): one length-normalised ratio for each response."""
    return Objective(Advantage(group_mean, GroupStd()), sequence, ClippedRatio(clip_low, clip_high), sequence_mean)


def rloo(kl: float = 0.03) -> Objective:
    """REINFORCE leave-one-out (arXiv:2402.14740): the others of the group are the baseline, KL (k1) in the reward."""
    penalty = KL(kl, k1, "reward") if kl else None
    return Objective(Advantage(leave_one_out, unscaled), token, reinforce, sequence_sum, penalty)
