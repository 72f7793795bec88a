"""Shaping and selection against hand calculations and loops."""

import itertools
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.objectives.selection import (
    Best,
    LargestAdvantages,
    MostVaried,
    ended,
    lively,
    lively_in_parts,
    reward_per_token,
)
from grpo_jax.objectives.shaping import Brevity, Gate, SoftOverlong, nothing_for_truncated
from grpo_jax.structs import Scored

NAN = math.nan


def scored(rewards_PG, lengths_PG=None, ended_PG=None, parts_PGR=None, T: int = 10) -> Scored:
    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    lengths_PG = jnp.full(rewards_PG.shape, T) if lengths_PG is None else jnp.asarray(lengths_PG)
    ended_PG = jnp.ones(rewards_PG.shape, bool) if ended_PG is None else jnp.asarray(ended_PG)
    parts_PGR = rewards_PG[:, :, None] if parts_PGR is None else jnp.asarray(parts_PGR, jnp.float32)
    action_PGT = jnp.arange(T)[None, None] < lengths_PG[:, :, None]
    return Scored(rewards_PG, parts_PGR, jnp.ones(parts_PGR.shape[2]), action_PGT, ended_PG)


def test_the_penalty_for_length_grows_from_zero_to_one_over_the_last_share():
    """The figures of TRL 1.16.0's soft_overlong with a maximum of 100 and a cache of 20."""
    lengths = [[4, 9, 6, 1, 30, 80, 95, 100]]
    shaped = SoftOverlong(0.2)(scored(np.zeros((1, 8)), lengths, T=100))
    np.testing.assert_allclose(shaped.rewards_PG, [[0, 0, 0, 0, 0, 0, -0.75, -1.0]], atol=1e-6)


def test_a_limit_may_be_shorter_than_the_longest_response():
    shaped = SoftOverlong(0.5, limit=4)(scored(np.zeros((1, 4)), [[1, 2, 3, 9]]))
    np.testing.assert_allclose(shaped.rewards_PG, [[0, 0, -0.5, -1.0]], atol=1e-6)


def test_a_truncated_response_earns_nothing_and_one_without_a_score_gets_none():
    shaped = nothing_for_truncated(scored([[1.0, 0.7, NAN]], ended_PG=[[True, False, False]]))
    np.testing.assert_array_equal(shaped.rewards_PG, [[1.0, 0.0, NAN]])


def test_a_truncated_response_is_not_better_than_a_wrong_one():
    parts_PGR = [[[1.0, -0.5], [-1.0, 0.25], [0.5, -2.0]]]
    shaped = nothing_for_truncated(scored([[0.5, -0.75, -1.5]], ended_PG=[[True, False, False]], parts_PGR=parts_PGR))
    np.testing.assert_array_equal(shaped.rewards_PG, [[0.5, -0.75, -1.5]])
    np.testing.assert_array_equal(shaped.parts_PGR, [[[1.0, -0.5], [-1.0, 0.0], [0.0, -2.0]]])


def test_length_costs_more_in_groups_that_succeed():
    shaped = Brevity(0.5)(scored([[1.0, 1.0], [0.0, 0.0]], [[2, 10], [2, 10]]))
    np.testing.assert_allclose(shaped.rewards_PG, [[1 - 0.5 * 0.2, 0.5], [0.0, 0.0]], atol=1e-6)


def test_a_gate_multiplies_the_reward_and_its_parts():
    parts_PGR = np.array([[[1.0, 0.5], [0.0, 0.9]]])
    shaped = Gate((0,))(scored([[0.5, 0.9]], parts_PGR=parts_PGR))
    np.testing.assert_allclose(shaped.rewards_PG, [[0.5, 0.0]])
    np.testing.assert_allclose(shaped.parts_PGR[0, 1], [0.0, 0.0])


def test_groups_that_differ_are_found_by_their_spread_and_not_by_their_mean():
    rewards_PG = [[0.5, 0.5, 0.5], [0.0, 1.0, 0.5], [NAN, 0.3, 0.3], [0.1, 0.1, 0.1 + 1e-6], [NAN, NAN, NAN]]
    np.testing.assert_array_equal(lively(scored(rewards_PG))[:, 0], [False, True, False, True, False])


def test_groups_that_differ_in_a_weighted_part_are_found_though_their_totals_are_equal():
    """Parts with equal sums; a part with a weight of 0; a penalty that is in no part; no difference at all."""
    parts_PGR = np.zeros((4, 2, 3))
    parts_PGR[0] = [[1, 0, 0], [0, 1, 0]]
    parts_PGR[1] = [[0, 0, 1], [0, 0, 0]]
    several = scored([[1.0, 1.0], [0.0, 0.0], [0.0, -0.1], [0.0, 0.0]], parts_PGR=parts_PGR)
    several = replace(several, weights_R=jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(lively_in_parts(several)[:, 0], [True, False, True, False])
    np.testing.assert_array_equal(lively(several)[:, 0], [False, False, True, False])


@pytest.mark.parametrize("position", [-1, 2])
def test_a_gate_by_a_reward_that_does_not_exist_is_refused(position):
    with pytest.raises(ValueError, match=r"rewards?, counted from 0"):
        Gate((position,))(scored([[0.5, 0.9]], parts_PGR=np.ones((1, 2, 2))))


def test_the_best_are_the_shortest_or_those_with_the_most_reward_per_token():
    some = scored([[1.0, 1.0, 0.4, NAN]], [[8, 4, 1, 2]])
    np.testing.assert_array_equal(Best(2)(some), [[False, False, True, True]])
    np.testing.assert_array_equal(Best(2, reward_per_token)(some), [[False, True, True, False]])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_most_varied_are_those_found_by_trying_every_choice(count):
    rewards_PG = np.random.default_rng(0).integers(0, 5, (6, 6)) / 4
    kept_PG = np.asarray(MostVaried(count)(scored(rewards_PG)))
    for rewards_G, kept_G in zip(rewards_PG, kept_PG, strict=True):
        most = max(np.var(choice) for choice in itertools.combinations(rewards_G, count))
        assert kept_G.sum() == count
        np.testing.assert_allclose(np.var(rewards_G[kept_G]), most, atol=1e-6)


def test_the_largest_advantages_stay_and_truncated_responses_go():
    some = scored([[1.0, 0.0, 0.4, NAN]], ended_PG=[[True, True, False, True]])
    advantages_PG = jnp.array([[0.6, -0.7, 0.1, 0.0]])
    np.testing.assert_array_equal(LargestAdvantages(2)(some, advantages_PG), [[True, True, False, False]])
    np.testing.assert_array_equal(ended(some, advantages_PG), [[True, True, False, True]])
