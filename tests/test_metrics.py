"""How far trainer and sampler are apart, against a loop over tokens."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.distribution import Distribution
from grpo_jax.metrics import describe as describe_step
from grpo_jax.metrics import describe_mismatch, with_logged
from grpo_jax.rewards import as_mix, last_number
from grpo_jax.structs import Prompts, Rollouts

DIFFERENCE, RATIO = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
NAMES = {f"{DIFFERENCE}/mean", f"{DIFFERENCE}/max", *(f"{RATIO}/{name}" for name in ("min", "p01", "mean", "p99"))}
NAMES |= {f"{RATIO}/max", "sampling/k3", "sampling/effective_sample_size"}


def rollouts_of(sampler_PGT: np.ndarray, action_PGT: np.ndarray) -> Rollouts:
    P, G, _ = action_PGT.shape
    prompts = Prompts(jnp.zeros((P, 1), jnp.int32), jnp.ones((P, 1), bool))
    tokens_PGT, ended_PG = jnp.zeros(action_PGT.shape, jnp.int32), jnp.ones((P, G), bool)
    logprobs_PGT, action_PGT = jnp.asarray(sampler_PGT, jnp.float32), jnp.asarray(action_PGT)
    entropy_PGT = jnp.zeros(action_PGT.shape)
    return Rollouts(
        prompts, tokens_PGT, action_PGT, action_PGT, logprobs_PGT, entropy_PGT, ended_PG, distribution=Distribution()
    )


def random_case(seed: int = 0, spread: float = 0.3) -> tuple[np.ndarray, Rollouts]:
    """Log-probs of a trainer, and rollouts with gaps in their actions and a sampler that does not know every token."""
    draw = np.random.default_rng(seed)
    trainer_PGT = -draw.exponential(1.5, (3, 4, 20)).astype(np.float32)
    sampler_PGT = trainer_PGT + draw.normal(0, spread, trainer_PGT.shape).astype(np.float32)
    sampler_PGT[draw.uniform(size=sampler_PGT.shape) < 0.1] = np.nan
    return trainer_PGT, rollouts_of(sampler_PGT, draw.uniform(size=trainer_PGT.shape) < 0.7)


def describe(trainer_PGT: np.ndarray, rollouts: Rollouts) -> dict[str, float]:
    found = describe_mismatch(jnp.asarray(trainer_PGT), rollouts)
    return {name: float(value) for name, value in found.items()}


def loop(trainer_PGT: np.ndarray, rollouts: Rollouts) -> dict[str, float]:
    """The same numbers in float64, one token at a time."""
    gaps = []
    for place in np.ndindex(trainer_PGT.shape):
        sampler = float(rollouts.logprobs_PGT[place])
        if rollouts.action_PGT[place] and sampler == sampler:
            gaps.append(float(trainer_PGT[place]) - sampler)
    ratios = [np.exp(gap) for gap in gaps]
    number, least, low, high, most = len(gaps), *np.quantile(ratios, [0.0, 0.01, 0.99, 1.0])
    return {
        f"{DIFFERENCE}/mean": sum(abs(gap) for gap in gaps) / number,
        f"{DIFFERENCE}/max": max(abs(gap) for gap in gaps),
        f"{RATIO}/min": least,
        f"{RATIO}/p01": low,
        f"{RATIO}/mean": sum(ratios) / number,
        f"{RATIO}/p99": high,
        f"{RATIO}/max": most,
        "sampling/k3": sum(ratio - 1 - np.log(ratio) for ratio in ratios) / number,
        "sampling/effective_sample_size": sum(ratios) ** 2 / sum(ratio**2 for ratio in ratios) / number,
    }


@pytest.mark.parametrize("spread", [0.01, 0.3, 2.0])
def test_the_mismatch_is_that_of_a_loop_over_known_tokens(spread):
    case = random_case(spread=spread)
    assert describe(*case) == pytest.approx(loop(*case), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("value", [np.nan, -50.0, 50.0])
def test_tokens_without_action_do_not_move_the_mismatch(value):
    trainer_PGT, rollouts = random_case()
    away_PGT = ~np.asarray(rollouts.action_PGT)
    garbled = replace(rollouts, logprobs_PGT=jnp.where(away_PGT, value, rollouts.logprobs_PGT))
    assert describe(trainer_PGT, garbled) == describe(trainer_PGT, rollouts)
    assert describe(np.where(away_PGT, value, trainer_PGT), rollouts) == describe(trainer_PGT, rollouts)


def test_a_token_whose_log_prob_the_sampler_did_not_tell_counts_as_one_without_action():
    trainer_PGT, rollouts = random_case()
    told_PGT = ~jnp.isnan(rollouts.logprobs_PGT)
    assert not told_PGT.all()
    silent = replace(
        rollouts,
        action_PGT=rollouts.action_PGT & told_PGT,
        logprobs_PGT=jnp.where(told_PGT, rollouts.logprobs_PGT, 0.0),
    )
    assert describe(trainer_PGT, rollouts) == describe(trainer_PGT, silent)


@pytest.mark.parametrize("known", ["no action", "no log-prob"])
def test_a_batch_without_a_known_token_gives_finite_numbers(known):
    trainer_PGT, rollouts = random_case()
    if known == "no action":
        empty = replace(rollouts, action_PGT=jnp.zeros_like(rollouts.action_PGT))
    else:
        empty = replace(rollouts, logprobs_PGT=jnp.full_like(rollouts.logprobs_PGT, jnp.nan))
    found = describe(trainer_PGT, empty)
    assert found.keys() == NAMES
    assert np.isfinite(list(found.values())).all()
    assert found[f"{DIFFERENCE}/max"] == found["sampling/k3"] == 0


def test_a_sampler_that_agrees_has_no_difference_and_ratios_of_one():
    trainer_PGT, rollouts = random_case(spread=0.0)
    found = describe(trainer_PGT, rollouts)
    zero = {f"{DIFFERENCE}/mean", f"{DIFFERENCE}/max", "sampling/k3"}
    assert found == {name: 0.0 for name in zero} | {name: 1.0 for name in NAMES - zero}


def test_one_token_in_two_that_weighs_nothing_halves_the_effective_sample():
    """Ratios of 1 and of e^-30: the mean is a half, and so is the mean of the squares."""
    action_PGT = np.ones((1, 1, 8), bool)
    sampler_PGT = np.where(np.arange(8) % 2 == 0, -1.0, -1.0 + 30.0)[None, None]
    found = describe(np.full(action_PGT.shape, -1.0, np.float32), rollouts_of(sampler_PGT, action_PGT))
    assert found["sampling/effective_sample_size"] == pytest.approx(0.5)


def test_log_probs_far_apart_give_finite_ratios():
    action_PGT = np.ones((1, 1, 4), bool)
    found = describe(np.zeros(action_PGT.shape, np.float32), rollouts_of(np.full(action_PGT.shape, -500.0), action_PGT))
    assert np.isfinite(list(found.values())).all()
    assert found[f"{DIFFERENCE}/mean"] == 500


def test_the_entropy_is_that_of_every_chosen_token_learned_from_or_not():
    _, rollouts = random_case()
    entropy_PGT = np.random.default_rng(1).exponential(1.0, rollouts.tokens_PGT.shape)
    told = replace(rollouts, entropy_PGT=jnp.asarray(entropy_PGT, jnp.float32))
    rewards_PGR = np.zeros((3, 4, 1), np.float32)  # every group agrees
    expected = entropy_PGT[np.asarray(rollouts.action_PGT)].mean()
    assert describe_step(told, rewards_PGR, as_mix(last_number))["entropy"] == pytest.approx(expected, rel=1e-5)


def test_what_a_reward_logs_replaces_no_metric_of_the_step():
    assert with_logged({"reward": 1.0}, {"found": 0.5}) == {"reward": 1.0, "found": 0.5}
    with pytest.raises(ValueError, match="A reward logs reward, which is a metric of every step"):
        with_logged({"reward": 1.0}, {"reward": 0.5})
