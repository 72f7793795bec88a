"""Corrections and masks: which tokens' surrogates count, and how much.

A correction is a function of `Tokens`, evaluated with the loss but without a gradient of its own; it looks at one
response at a time, so microbatches do not change it. A mask is a function of `Tokens` and a key. It sees the whole
batch once, before any gradient, with log-probs, entropies and ratios from when the batch was made. Where the gradient
goes if the ratio is one of responses, the docstring of objective.py says.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from grpo_jax.objectives.ratios import bounded_exp, mean_of
from grpo_jax.ranges import check_range
from grpo_jax.structs import Tokens


def gap(tokens: Tokens) -> Float[Array, "P G T"]:
    """Log-probs of the trainer minus those of the sampler; zero where either is NaN."""
    return jnp.where(tokens.action_PGT, jnp.nan_to_num(tokens.trainer_PGT - tokens.sampler_PGT), 0.0)


# Corrections for the difference between sampler and trainer: the ratio of trainer to sampler, bounded by `low` and
# `high`. The mark `corrects_sampler` makes objectives refuse them beside a ratio that compares with the sampler anyway.


@dataclass(frozen=True)
class TokenTruncation:
    """The ratio of each token, clipped to [low, high] (truncated importance sampling)."""

    corrects_sampler: ClassVar[bool] = True
    high: float = 2.0
    low: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self.low, self.high, "high or most")

    def __call__(self, tokens: Tokens) -> Array:
        return jnp.clip(bounded_exp(gap(tokens)), self.low, self.high)


@dataclass(frozen=True)
class TokenMask:
    """The ratio of each token; zero if it is not in [low, high] (IcePop)."""

    corrects_sampler: ClassVar[bool] = True
    low: float = 0.5
    high: float = 5.0

    def __post_init__(self) -> None:
        _check_weights(self.low, self.high, "high")

    def __call__(self, tokens: Tokens) -> Array:
        return _inside(bounded_exp(gap(tokens)), self.low, self.high)


@dataclass(frozen=True)
class SequenceTruncation:
    """The ratio of the whole response, clipped to [low, high]. Long responses differ more, so more are clipped."""

    corrects_sampler: ClassVar[bool] = True
    high: float = 3.0
    low: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self.low, self.high, "high")

    def __call__(self, tokens: Tokens) -> Array:
        return jnp.clip(_of_response(tokens), self.low, self.high)


@dataclass(frozen=True)
class SequenceMask:
    """The ratio of the whole response; zero if it is not in [low, high]."""

    corrects_sampler: ClassVar[bool] = True
    low: float = 0.0
    high: float = 3.0

    def __post_init__(self) -> None:
        _check_weights(self.low, self.high, "high")

    def __call__(self, tokens: Tokens) -> Array:
        return _inside(_of_response(tokens), self.low, self.high)


def _of_response(tokens: Tokens) -> Array:
    total_PG1 = jnp.sum(gap(tokens), axis=2, keepdims=True)
    return jnp.broadcast_to(bounded_exp(total_PG1), tokens.action_PGT.shape)


def _inside(ratio_PGT: Array, low: float, high: float) -> Array:
    return jnp.where((ratio_PGT >= low) & (ratio_PGT <= high), ratio_PGT, 0.0)


# A correction that follows the present policy.


@dataclass(frozen=True)
class OffPolicyMask:
    """Leaves out bad responses that have become unlikely: those with a negative advantage whose tokens are on average
    more than `most` nats less likely than when they were sampled (DeepSeek-V3.2, arXiv:2512.02556).
    """

    most: float = 0.5

    def __post_init__(self) -> None:
        check_range("most", self.most, least=0)

    def __call__(self, tokens: Tokens) -> Array:
        drop_PGT = jnp.where(tokens.action_PGT, jnp.nan_to_num(tokens.sampler_PGT - tokens.logprobs_PGT), 0.0)
        return (tokens.advantages_PGT >= 0) | (mean_of(drop_PGT, tokens.action_PGT) <= self.most)


# Masks.


@dataclass(frozen=True)
class TopEntropy:
    """Keeps the fraction `share` of the batch's tokens with the highest entropy (80/20 rule, arXiv:2506.01939)."""

    share: float = 0.2

    def __post_init__(self) -> None:
        check_range("share", self.share, least=0, most=1, note="(0 keeps those of the highest entropy alone)")

    def __call__(self, tokens: Tokens, key: Array) -> Array:
        known_PGT = jnp.where(tokens.action_PGT, tokens.entropy_PGT, jnp.nan)
        least = jnp.nan_to_num(jnp.nanquantile(known_PGT, 1 - self.share))
        return tokens.action_PGT & (tokens.entropy_PGT >= least)


@dataclass(frozen=True)
class CovarianceClip:
    """Leaves out random tokens, the fraction `share` of the batch, among those whose covariance of log-prob and
    advantage is between `low` and `high`: such tokens reduce the entropy (Clip-Cov, arXiv:2505.22617).
    """

    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0

    def __post_init__(self) -> None:
        check_range("share", self.share, least=0, most=1)
        check_range("low", self.low)
        check_range("high", self.high, above=self.low)

    def __call__(self, tokens: Tokens, key: Array) -> Array:
        covariance_PGT = covariance(tokens)
        eligible_PGT = tokens.action_PGT & (covariance_PGT > self.low) & (covariance_PGT < self.high)
        number = jnp.ceil(self.share * jnp.sum(tokens.action_PGT)).astype(jnp.int32)
        drawn_PGT = jnp.where(eligible_PGT, jax.random.uniform(key, eligible_PGT.shape), 2.0)
        return ~(eligible_PGT & (_rank(drawn_PGT) < number))


@dataclass(frozen=True)
class TopCovariance:
    """Keeps the fraction `share` of the batch's tokens with the largest covariance of log-prob and advantage (KL-Cov,
    arXiv:2505.22617).
    """

    share: float = 2e-4

    def __post_init__(self) -> None:
        check_range("share", self.share, above=0, most=1)

    def __call__(self, tokens: Tokens, key: Array) -> Array:
        number = jnp.ceil(self.share * jnp.sum(tokens.action_PGT)).astype(jnp.int32)
        return tokens.action_PGT & (_rank(jnp.where(tokens.action_PGT, -covariance(tokens), jnp.inf)) < number)


def covariance(tokens: Tokens) -> Float[Array, "P G T"]:
    """Each token's contribution to the covariance of log-prob and advantage over the batch."""
    number = jnp.maximum(jnp.sum(tokens.action_PGT), 1)

    def off(values_PGT: Array) -> Array:
        values_PGT = jnp.where(tokens.action_PGT, values_PGT, 0.0)
        return values_PGT - jnp.sum(values_PGT) / number

    return jnp.where(tokens.action_PGT, off(tokens.advantages_PGT) * off(tokens.logprobs_PGT), 0.0)


def _check_weights(low: float, high: float, name: str) -> None:
    """Refuses bounds of a weight that are not 0 <= low < high. An infinite `high` is no upper bound."""
    check_range("low", low, least=0)
    if high != math.inf:
        check_range(name, high, above=low, note="(.inf is no bound)")


def _rank(numbers_PGT: Array) -> Array:
    """The rank of each number among all of them; the smallest has rank 0."""
    flat = numbers_PGT.ravel()
    return jnp.zeros(flat.shape, jnp.int32).at[jnp.argsort(flat)].set(jnp.arange(len(flat))).reshape(numbers_PGT.shape)
