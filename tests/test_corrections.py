"""Corrections and masks against loops over single tokens."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.objectives.corrections import (
    CovarianceClip,
    OffPolicyMask,
    SequenceMask,
    SequenceTruncation,
    TokenMask,
    TokenTruncation,
    TopCovariance,
    TopEntropy,
    covariance,
)
from grpo_jax.structs import Tokens

P, G, T = 3, 4, 8
DRAW = np.random.default_rng(0)
LENGTHS_PG = DRAW.integers(0, T + 1, (P, G))
ACTION_PGT = np.arange(T) < LENGTHS_PG[:, :, None]
SAMPLER_PGT = -DRAW.exponential(1.0, (P, G, T))
TRAINER_PGT = SAMPLER_PGT + DRAW.normal(0, 0.4, (P, G, T))
NOW_PGT = TRAINER_PGT + DRAW.normal(0, 0.4, (P, G, T))
ADVANTAGES_PGT = np.broadcast_to(DRAW.normal(size=(P, G, 1)), (P, G, T))
ENTROPY_PGT = DRAW.exponential(1.0, (P, G, T))


def some_tokens() -> Tokens:
    now, trainer, sampler, advantages, entropy = (
        jnp.asarray(a, jnp.float32) for a in (NOW_PGT, TRAINER_PGT, SAMPLER_PGT, ADVANTAGES_PGT, ENTROPY_PGT)
    )
    return Tokens(jnp.asarray(ACTION_PGT), advantages, now, entropy, now - trainer, trainer, trainer, sampler)


def gaps(p: int, g: int) -> np.ndarray:
    """Log-probs of the trainer minus those of the sampler, for the tokens of one response."""
    return (TRAINER_PGT - SAMPLER_PGT)[p, g][ACTION_PGT[p, g]]


def inside(value: float, low: float, high: float) -> float:
    return value if low <= value <= high else 0.0


CORRECTIONS = [
    (TokenTruncation(1.2, 0.7), lambda own, gap: np.clip(np.exp(own), 0.7, 1.2)),
    (TokenMask(0.7, 1.2), lambda own, gap: inside(np.exp(own), 0.7, 1.2)),
    (SequenceTruncation(1.5, 0.5), lambda own, gap: np.clip(np.exp(gap.sum()), 0.5, 1.5)),
    (SequenceMask(0.5, 1.5), lambda own, gap: inside(np.exp(gap.sum()), 0.5, 1.5)),
]


@pytest.mark.parametrize(("correction", "loop"), CORRECTIONS, ids=[type(c).__name__ for c, _ in CORRECTIONS])
def test_a_correction_is_the_loop_over_tokens(correction, loop):
    found_PGT = np.asarray(correction(some_tokens()))
    values = set()
    for p, g, t in zip(*np.where(ACTION_PGT), strict=True):
        expected = loop((TRAINER_PGT - SAMPLER_PGT)[p, g, t], gaps(p, g))
        np.testing.assert_allclose(found_PGT[p, g, t], expected, rtol=1e-5)
        values.add(round(float(expected), 6))
    assert len(values) > 1  # some were cut and some were not


@pytest.mark.parametrize(("correction", "loop"), CORRECTIONS, ids=[type(c).__name__ for c, _ in CORRECTIONS])
def test_a_correction_is_one_where_sampler_and_trainer_agree_or_the_sampler_recorded_nothing(correction, loop):
    tokens = some_tokens()
    for sampler_PGT in (tokens.trainer_PGT, jnp.full((P, G, T), jnp.nan)):
        weights_PGT = np.asarray(correction(replace(tokens, sampler_PGT=sampler_PGT)))
        np.testing.assert_array_equal(weights_PGT[ACTION_PGT], 1.0)


def test_bad_responses_that_have_become_unlikely_are_left_out():
    kept_PGT = np.asarray(OffPolicyMask(0.05)(some_tokens()))
    seen = set()
    for p, g in zip(*np.where(LENGTHS_PG > 0), strict=True):
        drop = np.mean((SAMPLER_PGT - NOW_PGT)[p, g][ACTION_PGT[p, g]])
        keep = ADVANTAGES_PGT[p, g, 0] >= 0 or drop <= 0.05
        np.testing.assert_array_equal(kept_PGT[p, g][ACTION_PGT[p, g]], keep)
        seen.add(bool(keep))
    assert seen == {True, False}


def test_the_tokens_of_most_entropy_are_kept():
    kept_PGT = np.asarray(TopEntropy(0.3)(some_tokens(), jax.random.key(0)))
    least = np.quantile(ENTROPY_PGT[ACTION_PGT], 0.7)
    np.testing.assert_array_equal(kept_PGT, ACTION_PGT & (least <= ENTROPY_PGT))


def test_the_covariance_is_that_of_the_batch():
    a, b = ADVANTAGES_PGT[ACTION_PGT], NOW_PGT[ACTION_PGT]
    np.testing.assert_allclose(
        np.asarray(covariance(some_tokens()))[ACTION_PGT], (a - a.mean()) * (b - b.mean()), rtol=1e-4, atol=1e-5
    )


def test_random_tokens_of_middling_covariance_are_left_out():
    number, covariance_PGT = int(np.ceil(0.1 * ACTION_PGT.sum())), np.asarray(covariance(some_tokens()))
    eligible_PGT = ACTION_PGT & (covariance_PGT > 0.1) & (covariance_PGT < 2.0)
    assert eligible_PGT.sum() > number
    first, again, other = (
        ~np.asarray(CovarianceClip(0.1, 0.1, 2.0)(some_tokens(), jax.random.key(n))) for n in (0, 0, 1)
    )
    assert first.sum() == number
    assert not (first & ~eligible_PGT).any()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_tokens_of_the_largest_covariance_are_kept():
    number = int(np.ceil(0.1 * ACTION_PGT.sum()))
    covariance_PGT = np.where(ACTION_PGT, np.asarray(covariance(some_tokens())), -np.inf)
    least = np.sort(covariance_PGT.ravel())[-number]
    np.testing.assert_array_equal(TopCovariance(0.1)(some_tokens(), jax.random.key(0)), covariance_PGT >= least)


@pytest.mark.parametrize(
    "mask", [TopEntropy(), CovarianceClip(), TopCovariance()], ids=lambda mask: type(mask).__name__
)
def test_a_mask_of_a_batch_without_tokens_keeps_no_token(mask):
    nothing = replace(some_tokens(), action_PGT=jnp.zeros((P, G, T), bool))
    assert not np.asarray(mask(nothing, jax.random.key(0)) & nothing.action_PGT).any()
