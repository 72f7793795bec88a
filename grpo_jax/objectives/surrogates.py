"""Surrogates: from `Tokens` to what is maximised for each token, in the form of the paper; JAX differentiates it.

Where a paper stops a gradient, so does the code. If every ratio is one, all surrogates but `Listwise` have the gradient
of the advantage times the log-prob.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from grpo_jax.objectives.ratios import bounded_exp, mean_of
from grpo_jax.ranges import check_range
from grpo_jax.structs import Tokens

LOG_SMALLEST, LOG_LARGEST = -18.420680743952367, 20.0  # logs of the bounds of VESPO's weight: 1e-8 and e^20


def reinforce(tokens: Tokens) -> Array:
    """The advantage times the log-prob: the plain policy gradient, whatever the ratio."""
    return tokens.advantages_PGT * tokens.logprobs_PGT


def importance(tokens: Tokens) -> Array:
    """The advantage times the ratio, without any bound."""
    return tokens.advantages_PGT * bounded_exp(tokens.log_ratio_PGT)


@dataclass(frozen=True)
class ClippedRatio:
    """min(r A, clip(r, 1 - low, 1 + high) A): PPO's surrogate (arXiv:1707.06347, equation 7) with two bounds.

    `cap` also bounds the ratio in the unclipped branch, so a token with a negative advantage has no gradient once its
    ratio is above the cap (dual clip).
    """

    low: float = 0.2
    high: float = 0.2
    cap: float | None = None

    def __post_init__(self) -> None:
        check_range("clip_low or clip", self.low, least=0)
        check_range("clip_high or clip", self.high, least=0)
        if self.cap is not None:
            check_range("cap", self.cap, above=1, note="(null is none)")

    def __call__(self, tokens: Tokens) -> Array:
        ratio_PGT = bounded_exp(tokens.log_ratio_PGT)
        clipped_PGT = jnp.clip(ratio_PGT, 1 - self.low, 1 + self.high)
        if self.cap is not None:
            ratio_PGT = jnp.minimum(ratio_PGT, self.cap)
        return jnp.minimum(ratio_PGT * tokens.advantages_PGT, clipped_PGT * tokens.advantages_PGT)


@dataclass(frozen=True)
class ClippedWeight:
    """sg(clip(r, low, high)) A log pi: every token keeps a gradient, with a bounded weight (CISPO, arXiv:2506.13585,
    equation 4). `low` and `high` are bounds of the ratio itself, not distances from one.
    """

    low: float = 0.0
    high: float = 5.0

    def __post_init__(self) -> None:
        check_range("low", self.low, least=0)
        check_range("high", self.high, above=self.low)

    def __call__(self, tokens: Tokens) -> Array:
        weight_PGT = jnp.clip(stop_gradient(bounded_exp(tokens.log_ratio_PGT)), self.low, self.high)
        return weight_PGT * tokens.advantages_PGT * tokens.logprobs_PGT


@dataclass(frozen=True)
class Interval:
    """r A where low < r < high; no gradient elsewhere, whatever the sign of the advantage."""

    low: float = 0.5
    high: float = 5.0

    def __post_init__(self) -> None:
        check_range("low", self.low, least=0)
        check_range("high", self.high, above=self.low)

    def __call__(self, tokens: Tokens) -> Array:
        return jnp.clip(bounded_exp(tokens.log_ratio_PGT), self.low, self.high) * tokens.advantages_PGT


@dataclass(frozen=True)
class TrustRegionTV:
    """sg(min(r, cap)) A log pi, and zero for a token whose probability has already risen by more than `high` (A > 0)
    or fallen by more than `low` (DPPO with total variation, arXiv:2602.04879).
    """

    low: float = 0.15
    high: float = 0.15
    cap: float = 20.0

    def __post_init__(self) -> None:
        check_range("low or limit", self.low, least=0)
        check_range("high or limit", self.high, least=0)
        check_range("cap", self.cap, above=0)

    def __call__(self, tokens: Tokens) -> Array:
        moved_PGT = jnp.exp(tokens.logprobs_PGT) - jnp.exp(tokens.anchor_PGT)
        inside_PGT = jnp.where(tokens.advantages_PGT > 0, moved_PGT <= self.high, moved_PGT >= -self.low)
        return _capped(tokens, self.cap, inside_PGT)


@dataclass(frozen=True)
class TrustRegionKL:
    """As `TrustRegionTV`, with the change measured by the KL divergence, from the anchor to the policy, of the two-way
    choice between this token and all others.
    """

    low: float = 0.05
    high: float = 0.05
    cap: float = 20.0

    def __post_init__(self) -> None:
        check_range("low or limit", self.low, least=0)
        check_range("high or limit", self.high, least=0)
        check_range("cap", self.cap, above=0)

    def __call__(self, tokens: Tokens) -> Array:
        before_PGT, now_PGT = jnp.exp(tokens.anchor_PGT), jnp.exp(tokens.logprobs_PGT)
        rest_PGT = (1 - before_PGT) * (_log_rest(tokens.anchor_PGT) - _log_rest(tokens.logprobs_PGT))
        kl_PGT = before_PGT * (tokens.anchor_PGT - tokens.logprobs_PGT) + rest_PGT
        rises_PGT = tokens.advantages_PGT > 0
        away_PGT = jnp.where(rises_PGT, now_PGT > before_PGT, now_PGT < before_PGT)
        far_PGT = kl_PGT > jnp.where(rises_PGT, self.high, self.low)
        return _capped(tokens, self.cap, ~(away_PGT & far_PGT))


def _log_rest(logprobs_PGT: Array) -> Array:
    """The log-probability of all other tokens together."""
    return jnp.log(jnp.maximum(-jnp.expm1(logprobs_PGT), 1e-8))


def _capped(tokens: Tokens, cap: float, inside_PGT: Array) -> Array:
    ratio_PGT = jnp.minimum(stop_gradient(bounded_exp(tokens.log_ratio_PGT)), cap)
    weight_PGT = jnp.where(stop_gradient(inside_PGT), ratio_PGT, 0.0)
    return weight_PGT * tokens.advantages_PGT * tokens.logprobs_PGT


@dataclass(frozen=True)
class SoftGate:
    """A 4/t sigmoid(t (r - 1)): a smooth clip, with one temperature t for each sign of A (SAPO, arXiv:2511.20347)."""

    positive: float = 1.0
    negative: float = 1.05

    def __post_init__(self) -> None:
        check_range("positive", self.positive, above=0)
        check_range("negative", self.negative, above=0)

    def __call__(self, tokens: Tokens) -> Array:
        t_PGT = jnp.where(tokens.advantages_PGT > 0, self.positive, self.negative)
        gate_PGT = jax.nn.sigmoid(t_PGT * (bounded_exp(tokens.log_ratio_PGT) - 1))
        return 4 / t_PGT * gate_PGT * tokens.advantages_PGT


@dataclass(frozen=True)
class GammaWeight:
    """sg(exp(rate + power log w - rate w)) A log pi, w the ratio: the weight is 1 at w = 1 and decays on both sides
    (VESPO, arXiv:2602.10693). Positive and negative advantages have their own power and rate.
    """

    power_positive: float = 2.0
    rate_positive: float = 3.0
    power_negative: float = 3.0
    rate_negative: float = 2.0

    def __post_init__(self) -> None:
        for name in ("power_positive", "rate_positive", "power_negative", "rate_negative"):
            check_range(name, getattr(self, name), least=0)

    def __call__(self, tokens: Tokens) -> Array:
        log_w_PGT = jnp.clip(stop_gradient(tokens.log_ratio_PGT), LOG_SMALLEST, LOG_LARGEST)
        rises_PGT = tokens.advantages_PGT >= 0
        power_PGT = jnp.where(rises_PGT, self.power_positive, self.power_negative)
        rate_PGT = jnp.maximum(jnp.where(rises_PGT, self.rate_positive, self.rate_negative), 1e-4)
        weight_PGT = jnp.exp(rate_PGT + power_PGT * log_w_PGT - rate_PGT * jnp.exp(log_w_PGT))
        return weight_PGT * tokens.advantages_PGT * tokens.logprobs_PGT


def tapered(tokens: Tokens) -> Array:
    """sg(c) A log pi, where c is 1 if A > 0 and min(r, 1) otherwise: a bad response counts less as it becomes less
    likely (TOPR, arXiv:2503.14286).
    """
    ratio_PGT = jnp.minimum(stop_gradient(bounded_exp(tokens.log_ratio_PGT)), 1.0)
    weight_PGT = jnp.where(tokens.advantages_PGT > 0, 1.0, ratio_PGT)
    return weight_PGT * tokens.advantages_PGT * tokens.logprobs_PGT


@dataclass(frozen=True)
class GeometricClip:
    """A exp(mean of x) over the response, x the log-ratio of a token, at most `high` if A > 0 and at least -`low`
    otherwise (GMPO, arXiv:2507.20673). Use it with the token ratio and with advantages of responses.

    It applies the objective's masks itself: the mean is over the tokens that are kept (as in TRL), and the response
    counts as much as without a mask.
    """

    applies_masks: ClassVar[bool] = True
    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        check_range("low or clip", self.low, least=0)
        check_range("high or clip", self.high, least=0)

    def __call__(self, tokens: Tokens) -> Array:
        x_PGT, rises_PGT = tokens.log_ratio_PGT, tokens.advantages_PGT > 0
        x_PGT = jnp.where(rises_PGT, jnp.minimum(x_PGT, self.high), jnp.maximum(x_PGT, -self.low))
        kept_PGT = tokens.action_PGT if tokens.keep_PGT is None else tokens.action_PGT & (tokens.keep_PGT > 0)
        return bounded_exp(mean_of(x_PGT, kept_PGT)) * tokens.advantages_PGT


@dataclass(frozen=True)
class Listwise:
    """-log(1 + sum over good of e^(-s/t)) - log(1 + sum over bad of e^(s/t)), s the log-ratio of a response: good
    responses are separated from bad ones as by a classifier (REAL, arXiv:2602.05630). Use it with the sequence ratio.

    Every token has the value of its group, so a mean over responses is the mean over prompts. A microbatch must hold
    whole groups.
    """

    temperature: float = 0.5
    sees_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, above=0)

    def __call__(self, tokens: Tokens) -> Array:
        score_PG = tokens.log_ratio_PGT[:, :, 0] / self.temperature
        advantage_PG = jnp.sum(tokens.advantages_PGT * tokens.action_PGT, axis=2)
        value_P1 = -_log_one_more(-score_PG, advantage_PG > 0) - _log_one_more(score_PG, advantage_PG < 0)
        return jnp.broadcast_to(value_P1[:, :, None], tokens.action_PGT.shape)


def _log_one_more(x_PG: Array, chosen_PG: Array) -> Array:
    """log(1 + sum of e^x), the sum over the chosen responses of each group."""
    x_PG = jnp.where(chosen_PG, x_PG, -jnp.inf)
    zero_P1 = jnp.zeros((len(x_PG), 1), x_PG.dtype)
    return jax.nn.logsumexp(jnp.concatenate([zero_P1, x_PG], axis=1), axis=1, keepdims=True)
