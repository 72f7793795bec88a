"""The pull towards a reference policy, further terms of a loss, and coefficients that follow a target."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jaxtyping import Float

from grpo_jax.objectives.ratios import bounded_exp
from grpo_jax.structs import Tokens

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
    y_PGT = logprobs_PGT - ref_logprobs_PGT
    return bounded_exp(-y_PGT) - 1 + y_PGT


def k3_with_slope_of_k2(logprobs_PGT: Array, ref_logprobs_PGT: Array) -> Array:
    """k3 in value, with the gradient of k2: the reverse KL's."""
    slope_PGT = k2(logprobs_PGT, ref_logprobs_PGT)
    return stop_gradient(k3(logprobs_PGT, ref_logprobs_PGT) - slope_PGT) + slope_PGT


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "k3+": k3_with_slope_of_k2}


# Coefficients that adapt: `begin` gives the coefficient and what of it is in effect, `follow` those of the next step.


@dataclass(frozen=True)
class Proportional:
    """Grows while a metric is above its target and shrinks while below, by at most a fifth of `gain` each step
    (Ziegler et al., arXiv:1909.08593, section 2.2).
    """

    target: float
    initial: float = 0.01
    gain: float = 0.1
    watches: str = "kl"  # a metric

    def begin(self) -> Float[Array, " 2"]:
        """The coefficient, and the same in effect."""
        return jnp.full(2, self.initial, jnp.float32)

    def follow(self, coefficient_2: Float[Array, " 2"], measured: Float[Array, ""]) -> Float[Array, " 2"]:
        """Those of the next step."""
        return coefficient_2 * (1 + self.gain * jnp.clip(measured / self.target - 1, -0.2, 0.2))


@dataclass(frozen=True)
class Stepwise:
    """Grows by `change` while a metric is not above its target, shrinks while it is, and has an effect only in the
    former case: an entropy bonus that acts while entropy is low (Skywork-OR1, arXiv:2505.22312).
    """

    target: float
    initial: float = 0.0
    change: float = 0.005
    least: float = 0.0
    most: float = 1.0
    watches: str = "entropy"  # a metric

    def begin(self) -> Float[Array, " 2"]:
        """The coefficient, which has no effect before anything is measured."""
        return jnp.array([self.initial, 0.0], jnp.float32)

    def follow(self, coefficient_2: Float[Array, " 2"], measured: Float[Array, ""]) -> Float[Array, " 2"]:
        """Those of the next step."""
        low = measured <= self.target
        coefficient = jnp.clip(coefficient_2[0] + jnp.where(low, self.change, -self.change), self.least, self.most)
        return jnp.stack([coefficient, jnp.where(low, coefficient, 0.0)])


Coefficient = float | Proportional | Stepwise


@dataclass(frozen=True)
class Reference:
    """How the policy to stay close to moves: every so many steps, by `share` of the way to the present policy.

    0 keeps the first policy; every 200 with a share of 1 is a reset, every 1 with 0.01 an exponential average.
    """

    every: int = 0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 0 or not 0 < self.share <= 1:
            raise ValueError(f"A reference moves every 0 or more steps by a share in (0, 1]; got {self}.")


@dataclass(frozen=True)
class KL:
    """A penalty for leaving the reference policy.

    In the loss it is one more term per token. In the reward, the estimate of the policy that sampled is subtracted
    before the advantage, so no gradient flows through it: summed over the response (`reward`), or from the reward of
    each token (`token_reward`), for advantages that know tokens. With a `ratio`, the estimate in the loss is multiplied
    by the importance ratio at that level, and the gradient flows through both.
    """

    coefficient: Coefficient
    estimator: Callable[[Array, Array], Array]
    place: Literal["loss", "reward", "token_reward"] = "loss"
    ratio: Callable[[Array, Array], Array] | None = None
    reference: Reference = field(default_factory=Reference)

    def __post_init__(self) -> None:
        if self.place not in ("loss", "reward", "token_reward"):
            raise ValueError(f"A KL term stands in the loss, the reward or the token_reward; got {self.place!r}.")
        if self.ratio is not None and self.place != "loss":
            raise ValueError("Only a KL term in the loss can be multiplied by a ratio: leave out the ratio.")


@dataclass(frozen=True)
class Term:
    """Something more to maximise: `coefficient` x the weighted sum of a value of each token.

    Weights are the loss's own, or those of a weighting; `mask` leaves tokens out, as masks of the surrogate do.
    """

    coefficient: Coefficient
    value: Callable[[Tokens], Array]
    weighting: Callable[[Array, Array], Array] | None = None
    mask: Callable[[Tokens, Array], Array] | None = None


# Values of terms.

BLUNT = 1e-3  # nats


def entropy(tokens: Tokens) -> Array:
    """The entropy of the distribution that each token came from, in nats."""
    return tokens.entropy_PGT


def squared_log_ratio(tokens: Tokens) -> Array:
    """Half the squared log-ratio to the anchor, token by token."""
    return jnp.square(tokens.logprobs_PGT - tokens.anchor_PGT) / 2


def squared_sequence_log_ratio(tokens: Tokens) -> Array:
    """Half the squared log-ratio of the whole response, divided among its tokens."""
    difference_PGT = jnp.where(tokens.action_PGT, tokens.logprobs_PGT - tokens.anchor_PGT, 0.0)
    total_PG1 = jnp.sum(difference_PGT, axis=2, keepdims=True)
    number_PG1 = jnp.maximum(jnp.sum(tokens.action_PGT, axis=2, keepdims=True), 1)
    return jnp.where(tokens.action_PGT, jnp.square(total_PG1) / 2 / number_PG1, 0.0)


def absolute_log_ratio(tokens: Tokens) -> Array:
    """How far each token's log-prob is from its anchor, rounded off below `BLUNT`: rounding errors have a sign too."""
    return jnp.sqrt(jnp.square(tokens.logprobs_PGT - tokens.anchor_PGT) + BLUNT**2) - BLUNT


def likelihood_of_good(tokens: Tokens) -> Array:
    """The log-prob of tokens with a positive advantage: imitation of what went well (VAPO, arXiv:2504.05118, takes the
    right answers).
    """
    return jnp.where(tokens.advantages_PGT > 0, tokens.logprobs_PGT, 0.0)
