"""Advantages against TRL's numbers, against loops, and against what must not change them."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.objectives.advantages import (
    Advantage,
    BatchStd,
    EachPart,
    GroupStd,
    Whitened,
    group_mean,
    leave_one_out,
    unscaled,
)
from grpo_jax.objectives.scored import weighted_total
from grpo_jax.structs import Scored

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "trl_losses.json").read_text())["advantages"]
ARRAYS = np.load(DATA / "trl_losses.npz")
SCALES = {"group": GroupStd(), "batch": BatchStd(), "none": unscaled}
NAN = math.nan

group_scaled = Advantage(group_mean, GroupStd())
batch_scaled = Advantage(group_mean, BatchStd())
centred = Advantage(group_mean, unscaled)
left_out = Advantage(leave_one_out, unscaled)
everything = pytest.mark.parametrize("advantage", [group_scaled, batch_scaled, centred, left_out])


def scored(rewards_PG, parts_PGR=None, weights_R=None, lengths_PG=None, T: int = 8, **known) -> Scored:
    """Rewards of responses of these lengths, all of which ended."""
    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    parts_PGR = rewards_PG[:, :, None] if parts_PGR is None else parts_PGR
    lengths_PG = jnp.full(rewards_PG.shape, T) if lengths_PG is None else jnp.asarray(lengths_PG)
    action_PGT = jnp.arange(T)[None, None] < lengths_PG[:, :, None]
    weights_R = jnp.ones(parts_PGR.shape[2]) if weights_R is None else weights_R
    return Scored(rewards_PG, parts_PGR, weights_R, action_PGT, jnp.ones(rewards_PG.shape, bool), **known)


def rewards(P: int = 4, G: int = 6) -> jax.Array:
    """Multiples of 1/64: adding such numbers, and subtracting them, is exact."""
    return jax.random.randint(jax.random.key(0), (P, G), 0, 129) / 64


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rewards']}-{case['scale_rewards']}")
def test_advantages_are_those_of_trl(case):
    rewards_PGR = jnp.asarray(ARRAYS[f"C.rewards.{case['rewards']}"].reshape(2, 4, 3))
    weights_R = jnp.asarray(case["reward_weights"] or [1.0, 1.0, 1.0])
    advantage = Advantage(group_mean, SCALES[case["scale_rewards"]])
    if case["multi_objective_aggregation"] == "normalize_then_sum":
        advantage = Whitened(EachPart(group_scaled))
    advantages_PG = advantage(scored(weighted_total(rewards_PGR, weights_R), rewards_PGR, weights_R))
    np.testing.assert_allclose(advantages_PG.ravel(), ARRAYS[f"C.adv.{case['id']}"], rtol=1e-4, atol=1e-5)


def test_the_total_is_the_weighted_sum_of_the_parts_that_could_be_scored():
    rewards_PGR = jnp.array([[[1.0, 2.0], [NAN, 2.0], [1.0, NAN], [NAN, NAN]]])
    total_PG = weighted_total(rewards_PGR, jnp.array([1.0, 0.5]))
    np.testing.assert_array_equal(total_PG, [[2.0, 1.0, 1.0, NAN]])


def loop_of_means(rewards_PG: np.ndarray) -> np.ndarray:
    """Each response's own reward minus the mean of the others, one at a time."""
    advantages_PG = np.zeros(rewards_PG.shape)
    for p, row in enumerate(rewards_PG):
        scored = [g for g in range(len(row)) if not math.isnan(row[g])]
        for g in scored:
            others = [row[i] for i in scored if i != g]
            advantages_PG[p, g] = row[g] - sum(others) / len(others) if others else 0.0
    return advantages_PG


def test_leave_one_out_compares_each_response_with_the_mean_of_the_others():
    rewards_PG = np.array(rewards()).astype(np.float64)
    rewards_PG[1, 2] = rewards_PG[2, :5] = rewards_PG[3, :] = NAN
    advantages_PG = left_out(scored(jnp.asarray(rewards_PG, jnp.float32)))
    np.testing.assert_allclose(advantages_PG, loop_of_means(rewards_PG), atol=1e-6)


@pytest.mark.parametrize("G", [2, 3, 8])
@pytest.mark.slow
def test_leave_one_out_is_the_centred_advantage_times_g_over_g_minus_one(G):
    rewards_PG = rewards(G=G)
    np.testing.assert_allclose(
        left_out(scored(rewards_PG)), centred(scored(rewards_PG)) * G / (G - 1), rtol=1e-5, atol=1e-6
    )


def test_a_scaled_group_has_a_mean_of_zero_and_a_deviation_of_one():
    advantages_PG = Advantage(group_mean, GroupStd(epsilon=0.0))(scored(rewards()))
    np.testing.assert_allclose(np.mean(advantages_PG, axis=1), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.std(advantages_PG, axis=1, ddof=1), 1.0, rtol=1e-5)


def test_the_deviation_of_the_batch_is_that_of_all_its_scored_rewards():
    rewards_PG = np.array(rewards())
    rewards_PG[0, 1] = rewards_PG[3, :] = NAN
    expected = np.nanstd(rewards_PG.astype(np.float64), ddof=1) + 1e-4
    np.testing.assert_allclose(BatchStd()(scored(rewards_PG)), [[expected]], rtol=1e-6)


@everything
def test_a_constant_added_to_all_rewards_changes_nothing(advantage):
    rewards_PG = rewards()
    np.testing.assert_allclose(advantage(scored(rewards_PG + 8)), advantage(scored(rewards_PG)), atol=1e-6)


@pytest.mark.parametrize("advantage", [group_scaled, centred, left_out])
def test_a_constant_added_to_one_group_changes_nothing(advantage):
    rewards_PG = rewards()
    shift_P1 = jnp.array([0, 8, -2, 1.0])[:, None]
    np.testing.assert_allclose(advantage(scored(rewards_PG + shift_P1)), advantage(scored(rewards_PG)), atol=1e-6)


@pytest.mark.parametrize("advantage", [Advantage(group_mean, GroupStd(0.0)), Advantage(group_mean, BatchStd(0.0))])
def test_scaled_advantages_do_not_depend_on_the_unit_of_the_reward(advantage):
    rewards_PG = rewards()
    np.testing.assert_allclose(advantage(scored(100 * rewards_PG)), advantage(scored(rewards_PG)), rtol=1e-5, atol=1e-6)


@everything
def test_permuting_prompts_and_responses_permutes_advantages(advantage):
    rewards_PG = rewards()
    prompts, responses = np.array([2, 0, 3, 1]), np.array([5, 1, 0, 4, 2, 3])
    permuted_PG = rewards_PG[prompts][:, responses]
    np.testing.assert_allclose(
        advantage(scored(permuted_PG)), advantage(scored(rewards_PG))[prompts][:, responses], atol=1e-6
    )


@everything
@pytest.mark.parametrize("G", [2, 7, 16])
@pytest.mark.slow
def test_groups_with_equal_rewards_have_advantages_of_exactly_zero(advantage, G):
    agreed_P1 = jnp.array([1.0, 0.1, 1.1, 1 / 3])[:, None]  # a mean of many 0.1 in float32 is not 0.1
    rewards_PG = jnp.concatenate([jnp.broadcast_to(agreed_P1, (4, G)), jnp.arange(G)[None] / G])
    np.testing.assert_array_equal(advantage(scored(rewards_PG))[:4], jnp.zeros((4, G)))


@everything
def test_a_group_of_one_has_no_advantage(advantage):
    rewards_PG = rewards(G=1)
    np.testing.assert_array_equal(advantage(scored(rewards_PG)), jnp.zeros((4, 1)))


@everything
@pytest.mark.slow
def test_a_response_without_a_reward_has_no_advantage_and_the_rest_of_its_group_ignores_it(advantage):
    rewards_PG = rewards(P=1)
    with_gaps_PG = jnp.insert(rewards_PG, jnp.array([0, 3]), NAN, axis=1)
    scored_G = ~jnp.isnan(with_gaps_PG[0])
    advantages_PG = advantage(scored(with_gaps_PG))
    np.testing.assert_array_equal(advantages_PG[0, ~scored_G], jnp.zeros(2))
    np.testing.assert_allclose(advantages_PG[0, scored_G], advantage(scored(rewards_PG))[0], atol=1e-6)


@everything
def test_a_batch_without_any_reward_has_no_advantage(advantage):
    np.testing.assert_array_equal(advantage(scored(jnp.full((2, 3), NAN))), jnp.zeros((2, 3)))
