"""Which tokens move the policy, and how much: corrections for a sampler that is not the trainer, and masks.

A correction and a live mask are functions of `Tokens`, evaluated with the gradient but without one of their own; they
look at nothing beyond a response, so microbatches do not change them. A mask is a function of `Tokens` and a key, and
sees the whole batch, once, before any gradient: log-probs, entropy and ratio are then those of when it was prepared.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from grpo_jax.objectives.ratios import bounded_exp, mean_of
from grpo_jax.structs import Tokens


def gap(tokens: Tokens) -> Float[Array, "P G T"]:
    """Log-probs of the trainer less those of the sampler; zero where either is not known."""
    return jnp.where(tokens.action_PGT, jnp.nan_to_num(tokens.trainer_PGT - tokens.sampler_PGT), 0.0)


# Corrections: the ratio of trainer to sampler, bounded. `low` and `high` are the ratio's own bounds.


@dataclass(frozen=True)
class TokenTruncation:
    """The ratio of each token, between `low` and `high` (truncated importance sampling)."""

    high: float = 2.0
    low: float = 0.0

    def __call__(self, tokens: Tokens) -> Array:
        return jnp.clip(bounded_exp(gap(tokens)), self.low, self.high)


@dataclass(frozen=True)
class TokenMask:
    """The ratio of each token, and zero for those whose ratio is not between `low` and `high` (IcePop)."""

    low: float = 0.5
    high: float = 5.0

    def __call__(self, tokens: Tokens) -> Array:
        return _inside(bounded_exp(gap(tokens)), self.low, self.high)


@dataclass(frozen=True)
class SequenceTruncation:
    """The ratio of the whole response, between `low` and `high`. Long responses differ more, so they are cut more."""

    high: float = 3.0
    low: float = 0.0

    def __call__(self, tokens: Tokens) -> Array:
        return jnp.clip(_of_response(tokens), self.low, self.high)


@dataclass(frozen=True)
class SequenceMask:
    """The ratio of the whole response, and zero for responses whose ratio is not between `low` and `high`."""

    low: float = 0.0
    high: float = 3.0

    def __call__(self, tokens: Tokens) -> Array:
        return _inside(_of_response(tokens), self.low, self.high)


@dataclass(frozen=True)
class GeometricMask:
    """One for responses whose tokens' mean ratio, the geometric one, is between `low` and `high`; zero for others."""

    low: float = 0.999
    high: float = 1.001

    def __call__(self, tokens: Tokens) -> Array:
        ratio_PG1 = jnp.exp(mean_of(gap(tokens), tokens.action_PGT))
        inside_PG1 = (ratio_PG1 >= self.low) & (ratio_PG1 <= self.high)
        return jnp.broadcast_to(inside_PG1.astype(jnp.float32), tokens.action_PGT.shape)


@dataclass(frozen=True)
class DivergenceMask:
    """One for responses whose mean k3 estimate of the divergence from the sampler is below `most`; zero for others."""

    most: float = 1e-3

    def __call__(self, tokens: Tokens) -> Array:
        gap_PGT = gap(tokens)
        k3_PG1 = mean_of(bounded_exp(gap_PGT) - 1 - gap_PGT, tokens.action_PGT)
        return jnp.broadcast_to((k3_PG1 < self.most).astype(jnp.float32), tokens.action_PGT.shape)


def _of_response(tokens: Tokens) -> Array:
    total_PG1 = jnp.sum(gap(tokens), axis=2, keepdims=True)
    return jnp.broadcast_to(bounded_exp(total_PG1), tokens.action_PGT.shape)


def _inside(ratio_PGT: Array, low: float, high: float) -> Array:
    return jnp.where((ratio_PGT >= low) & (ratio_PGT <= high), ratio_PGT, 0.0)


# Live masks.


@dataclass(frozen=True)
class OffPolicyMask:
    """Leaves out bad responses that the policy no longer gives: negative advantage, and tokens on average more than
    `most` nats less likely than when sampled (DeepSeek-V3.2, arXiv:2512.02556).
    """

    most: float = 0.5

    def __call__(self, tokens: Tokens) -> Array:
        drop_PGT = jnp.where(tokens.action_PGT, jnp.nan_to_num(tokens.sampler_PGT - tokens.logprobs_PGT), 0.0)
        return (tokens.advantages_PGT >= 0) | (mean_of(drop_PGT, tokens.action_PGT) <= self.most)


# Masks.


@dataclass(frozen=True)
class TopEntropy:
    """The `share` of the batch's tokens with the most entropy (80/20 rule, arXiv:2506.01939)."""

    share: float = 0.2

    def __call__(self, tokens: Tokens, key: Array) -> Array:
        known_PGT = jnp.where(tokens.action_PGT, tokens.entropy_PGT, jnp.nan)
        least = jnp.nan_to_num(jnp.nanquantile(known_PGT, 1 - self.share))
        return tokens.action_PGT & (tokens.entropy_PGT >= least)


@dataclass(frozen=True)
class CovarianceClip:
    """Leaves out a random `share` of the batch's tokens, of those whose covariance of log-prob and advantage is between
    `low` and `high`: they are what entropy is lost by (Clip-Cov, arXiv:2505.22617).
    """

    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0

    def __call__(self, tokens: Tokens, key: Array) -> Array:
        covariance_PGT = covariance(tokens)
        eligible_PGT = tokens.action_PGT & (covariance_PGT > self.low) & (covariance_PGT < self.high)
        number = jnp.ceil(self.share * jnp.sum(tokens.action_PGT)).astype(jnp.int32)
        drawn_PGT = jnp.where(eligible_PGT, jax.random.uniform(key, eligible_PGT.shape), 2.0)
        return ~(eligible_PGT & (_rank(drawn_PGT) < number))


@dataclass(frozen=True)
class TopCovariance:
    """The `share` of the batch's tokens with the largest covariance of log-prob and advantage (KL-Cov)."""

    share: float = 2e-4

    def __call__(self, tokens: Tokens, key: Array) -> Array:
        number = jnp.ceil(self.share * jnp.sum(tokens.action_PGT)).astype(jnp.int32)
        return tokens.action_PGT & (_rank(jnp.where(tokens.action_PGT, -covariance(tokens), jnp.inf)) < number)


def covariance(tokens: Tokens) -> Float[Array, "P G T"]:
    """Each token's part in the covariance of log-prob and advantage over the batch."""
    number = jnp.maximum(jnp.sum(tokens.action_PGT), 1)

    def off(values_PGT: Array) -> Array:
        values_PGT = jnp.where(tokens.action_PGT, values_PGT, 0.0)
        return values_PGT - jnp.sum(values_PGT) / number

    return jnp.where(tokens.action_PGT, off(tokens.advantages_PGT) * off(tokens.logprobs_PGT), 0.0)


def _rank(numbers_PGT: Array) -> Array:
    """The place of each number among all of them, the smallest first."""
    flat = numbers_PGT.ravel()
    return jnp.zeros(flat.shape, jnp.int32).at[jnp.argsort(flat)].set(jnp.arange(len(flat))).reshape(numbers_PGT.shape)
