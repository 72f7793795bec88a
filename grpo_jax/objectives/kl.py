"""The KL term: estimators of the KL divergence from a reference policy, where the term stands, and how the reference
moves.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from grpo_jax.objectives.coefficients import Adaptive
from grpo_jax.objectives.ratios import LARGEST_LOG, bounded_exp
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.structs import Tokens

# Estimators: one number per token, from samples of the policy; y is its log-prob minus that of the reference.


def k1(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """y: unbiased as a value. In the loss its expected gradient is zero, so use it in the reward."""
    return logprobs_PGT - ref_logprobs_PGT


def k2(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """y^2 / 2: biased as a value. In the loss its gradient is that of the reverse KL."""
    return jnp.square(logprobs_PGT - ref_logprobs_PGT) / 2


def k3(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """exp(-y) - 1 + y: unbiased as a value and never negative (GRPO, arXiv:2402.03300, equation 4).

    In the loss its gradient is that of the forward KL, from the reference to the policy.
    """
    y_PGT = logprobs_PGT - ref_logprobs_PGT
    return bounded_exp(-y_PGT) - 1 + y_PGT


def k3_with_slope_of_k2(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """The value of k3 with the gradient of k2, which is that of the reverse KL."""
    slope_PGT = k2(logprobs_PGT, ref_logprobs_PGT)
    return stop_gradient(k3(logprobs_PGT, ref_logprobs_PGT) - slope_PGT) + slope_PGT


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "k3+": k3_with_slope_of_k2}


@dataclass(frozen=True)
class Reference:
    """How the reference policy moves: every `every` steps, by `share` of the way to the present policy.

    0 keeps the first policy; every 200 with a share of 1 is a reset, every 1 with 0.01 an exponential average.
    """

    every: int = 0
    share: float = 1.0

    def __post_init__(self) -> None:
        check_range("every or refresh", self.every, least=0, most=WHOLE, note="(0 keeps the first policy)")
        check_range("share", self.share, above=0, most=1)


@dataclass(frozen=True)
class KL:
    """A penalty for leaving the reference policy.

    In the loss it is one more term per token. In the reward, the estimate for the policy that sampled is subtracted
    before the advantage, so no gradient flows through it: summed over the response (`reward`), or from the reward of
    each token (`token_reward`), for advantages of single tokens. With a `ratio`, the estimate in the loss is multiplied
    by the importance ratio at that level, and the gradient flows through both.
    """

    coefficient: float | Adaptive
    estimator: Callable[[Array, Array], Array]
    place: Literal["loss", "reward", "token_reward"] = "loss"
    ratio: Callable[[Array, Array], Array] | None = None
    reference: Reference = field(default_factory=Reference)

    def __post_init__(self) -> None:
        if isinstance(self.coefficient, int | float):
            check_range("kl or its coefficient", self.coefficient, least=0, note="(0 is no KL term)")
        if self.place not in ("loss", "reward", "token_reward"):
            raise ValueError(f"The place of a KL term is loss, reward or token_reward; got {self.place!r}.")
        if self.ratio is not None and self.place != "loss":
            raise ValueError("Only a KL term in the loss can be multiplied by a ratio: leave out the ratio.")


def kl_term(coefficient: float, estimator: Callable[[Array, Array], Array], **choices: Any) -> KL | None:
    """A KL term with these choices. A coefficient of 0 gives None, so that no reference is kept in memory."""
    return KL(coefficient, estimator, **choices) if coefficient else None


def kl_of(kl: KL, tokens: Tokens, ref_logprobs_PGT: Array) -> Array:
    """The estimate for each token under the policy of `tokens`, times the importance ratio if the term has one."""
    action_PGT, logprobs_PGT = tokens.action_PGT, tokens.logprobs_PGT
    kl_PGT = kl.estimator(logprobs_PGT, jnp.where(action_PGT, ref_logprobs_PGT, logprobs_PGT))
    if kl.ratio is None:
        return kl_PGT
    log_ratio_PGT = kl.ratio(jnp.where(action_PGT, logprobs_PGT - tokens.trainer_PGT, 0.0), action_PGT)
    most_PGT = LARGEST_LOG - jnp.log1p(jnp.abs(stop_gradient(kl_PGT)))  # or the product would be infinite
    return kl_PGT * jnp.exp(jnp.minimum(log_ratio_PGT, most_PGT))
