"""The same objectives for plain arrays: no `Rollouts`, `Scored` or `Batch` is needed.

advantages_PG = group_advantages(rewards_PG)
loss = clipped_loss(logprobs_PGT, old_logprobs_PGT, advantages_PG, action_PGT)
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from grpo_jax.objectives.advantages import STANDARD, Advantage, Baseline
from grpo_jax.objectives.kl import KL, k3, kl_of
from grpo_jax.objectives.ratios import token
from grpo_jax.objectives.scored import required
from grpo_jax.objectives.surrogates import ClippedRatio
from grpo_jax.objectives.tokens import from_anchor, per_token, total
from grpo_jax.objectives.weightings import token_mean
from grpo_jax.structs import Scored, Tokens


def group_advantages(
    rewards_PG: Float[Array, "P G"], center: Baseline = STANDARD.center, scale: Baseline = STANDARD.scale
) -> Float[Array, "P G"]:
    """(reward - center) / scale for G responses to each prompt; zero for a reward of NaN.

    The default is (R - group mean) / (group deviation + epsilon) (GRPO, DeepSeekMath, arXiv:2402.03300, section 4.1.2,
    with the deviation of a sample). `center` and `scale` are those of `advantages.py` that look at rewards alone.
    """
    return Advantage(center, scale)(Scored(rewards_PG))


def clipped_loss(
    logprobs_PGT: Float[Array, "P G T"],
    old_logprobs_PGT: Float[Array, "P G T"],
    advantages: Float[Array, "P G"] | Float[Array, "P G T"],
    action_PGT: Bool[Array, "P G T"],
    *,
    clip_low: float = ClippedRatio.low,
    clip_high: float = ClippedRatio.high,
    cap: float | None = ClippedRatio.cap,
    ratio: Callable[[Array, Array], Array] = token,
    weighting: Callable[[Array, Array], Array] = token_mean,
    ref_logprobs_PGT: Float[Array, "P G T"] | None = None,
    kl: float = 0.0,
    kl_estimator: Callable[[Array, Array], Array] = k3,
) -> Float[Array, ""]:
    """-sum of weights x (min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - kl x KL estimate), over action tokens
    (PPO, arXiv:1707.06347, equation 7; with `sequence_mean` and `kl` GRPO, arXiv:2402.03300, equation 3).

    r compares with `old_logprobs_PGT`, at the level of `ratio`. The weights are fixed by `action_PGT`: the losses of
    microbatches do not add up unless the weighting has seen the whole batch, as it does in `credit`.
    """
    difference_PGT, old_PGT = from_anchor(logprobs_PGT, old_logprobs_PGT, action_PGT)
    log_ratio_PGT, zero_PGT = ratio(difference_PGT, action_PGT), jnp.zeros_like(logprobs_PGT)
    advantages_PGT = per_token(advantages, action_PGT)
    tokens = Tokens(action_PGT, advantages_PGT, logprobs_PGT, zero_PGT, log_ratio_PGT, old_PGT, old_PGT, old_PGT)
    gain_PGT = ClippedRatio(clip_low, clip_high, cap)(tokens)
    if kl != 0:
        ref_PGT = required(ref_logprobs_PGT, "ref_logprobs_PGT", "a KL term compares with a reference policy")
        gain_PGT = gain_PGT - kl * kl_of(KL(kl, kl_estimator), tokens, ref_PGT)
    weights_PGT = weighting(action_PGT, jnp.ones(action_PGT.shape[:2], bool))
    return -total(weights_PGT * gain_PGT, action_PGT)
