"""Advantages of single methods against loops, brute force and enumerated expectations."""

import itertools
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.objectives.advantages import (
    Advantage,
    EachPart,
    GroupMean,
    GroupStd,
    GroupSteps,
    Leader,
    PassAtK,
    ReturnToGo,
    Signed,
    Whitened,
    greedy_answer,
    group_mean,
    leave_one_out,
    length_weighted,
    lively_share,
    outcome_at_end,
    unscaled,
)
from grpo_jax.structs import Scored

NAN = math.nan
DRAW = np.random.default_rng(0)
LENGTHS_PG = np.array([[3, 1, 5], [2, 2, 4]])
REWARDS_PG = np.array([[1.0, 0.25, 0.5], [0.0, 1.0, 0.75]])


def scored_of(rewards_PG, lengths_PG=None, **known) -> Scored:
    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    lengths_PG = np.full(rewards_PG.shape, 2) if lengths_PG is None else np.asarray(lengths_PG)
    action_PGT = jnp.arange(6)[None, None] < lengths_PG[:, :, None]
    ended_PG = jnp.ones(rewards_PG.shape, bool)
    return Scored(rewards_PG, rewards_PG[:, :, None], jnp.ones(1), action_PGT, ended_PG, **known)


# The expected gradient for a group of eight right or wrong responses is weight(p) times the gradient of the probability
# p to be right. Enumerated over the number of right responses; the score function of a right response is 1/p, that of a
# wrong one -1/(1 - p).

G = 8
CHANCES = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95]
POPULATION = math.sqrt(G / (G - 1))  # the published numbers divide by the deviation with n in the denominator
WEIGHTS = [
    (Advantage(group_mean, unscaled), [(G - 1) / G] * 6),
    (Advantage(leave_one_out, unscaled), [1.0] * 6),
    (Advantage(group_mean, GroupStd(0.0)), [w / POPULATION for w in (2.61, 2.47, 2.03, 1.86, 2.03, 2.47)]),
    (Advantage(group_mean, GroupMean(0.0)), [(1 - (1 - p) ** (G - 1)) / p for p in CHANCES]),
    (Signed(1.0, -1.0), [2.0] * 6),
    (Signed(0.1, -1.0), [1.1] * 6),
]


@pytest.mark.parametrize(("advantage", "expected"), WEIGHTS, ids=["centred", "rloo", "grpo", "maxrl", "sign", "nsr"])
def test_the_weight_of_a_prompt_depends_on_how_often_it_is_solved_as_published(advantage, expected):
    rewards_PG = np.array([[1.0] * right + [0.0] * (G - right) for right in range(G + 1)])
    advantages_PG = np.stack([np.asarray(advantage(scored_of(row[None])))[0] for row in rewards_PG])
    for p, weight in zip(CHANCES, expected, strict=True):
        scores_PG = np.where(rewards_PG == 1, 1 / p, -1 / (1 - p))
        chance_P = [math.comb(G, right) * p**right * (1 - p) ** (G - right) for right in range(G + 1)]
        found = np.sum(chance_P * np.mean(np.nan_to_num(advantages_PG, posinf=0.0) * scores_PG, axis=1))
        np.testing.assert_allclose(found, weight, rtol=3e-3)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_mean_over_all_ways_to_draw_k(k):
    rewards_PG = np.array([[1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0] * 6, [1] * 6])
    for rewards_G, found_G in zip(rewards_PG, np.asarray(PassAtK(k)(scored_of(rewards_PG))), strict=True):
        draws = list(itertools.combinations(range(6), k))
        best = [max(rewards_G[list(draw)]) for draw in draws]
        for g in range(6):
            mine = [value for draw, value in zip(draws, best, strict=True) if g in draw]
            expected = (np.mean(mine) - np.mean(best)) / np.std(best) if np.std(best) > 0 else 0.0
            np.testing.assert_allclose(found_G[g], expected, atol=1e-6)


def test_pass_at_k_leaves_out_what_could_not_be_scored():
    with_gap, without = ([[1.0, 0.0, NAN, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]])
    found_PG = PassAtK(2)(scored_of(with_gap))
    np.testing.assert_allclose(found_PG[0, [0, 1, 3, 4]], PassAtK(2)(scored_of(without))[0], atol=1e-6)
    assert found_PG[0, 2] == 0


def test_a_leader_is_ahead_of_the_second():
    rewards_PG = [[0.2, 0.9, 0.5], [1.0, 1.0, 0.0], [NAN, 0.3, 0.1], [NAN, NAN, 0.4]]
    expected_PG = [[0, 0.4, 0], [0, 0, 0], [0, 0.2, 0], [0, 0, 0]]
    np.testing.assert_allclose(Leader()(scored_of(rewards_PG)), expected_PG, atol=1e-6)


def test_long_responses_count_more_in_a_length_weighted_baseline():
    baseline_P1 = length_weighted(scored_of(REWARDS_PG, LENGTHS_PG))
    np.testing.assert_allclose(baseline_P1, [[(3 + 0.25 + 2.5) / 9], [(0 + 2 + 3) / 8]], rtol=1e-6)
    gap_PG = np.where([[False, True, False], [False] * 3], NAN, REWARDS_PG)
    np.testing.assert_allclose(length_weighted(scored_of(gap_PG, LENGTHS_PG))[0], [(3 + 2.5) / 8], rtol=1e-6)


def test_gpg_divides_by_the_fraction_of_groups_whose_rewards_differ():
    np.testing.assert_allclose(lively_share(scored_of([[0.0, 1.0], [1.0, 1.0], [NAN, 1.0], [0.5, 0.0]])), [[0.5]])
    np.testing.assert_allclose(lively_share(scored_of([[1.0, 1.0], [0.0, 0.0]])), [[0.5]])  # never a division by zero


def test_a_greedy_baseline_is_the_reward_of_the_greedy_response():
    remax = Advantage(greedy_answer, unscaled)
    known = scored_of(REWARDS_PG, greedy_P1=jnp.array([[0.5], [1.0]]))
    np.testing.assert_allclose(remax(known), REWARDS_PG - np.array([[0.5], [1.0]]))
    with pytest.raises(ValueError, match="greedy_baseline"):
        remax(scored_of(REWARDS_PG))


@pytest.mark.parametrize(
    ("advantage", "field"),
    [
        (Advantage(length_weighted, unscaled), "action_PGT"),
        (EachPart(Advantage(group_mean, unscaled)), "parts_PGR"),
        (ReturnToGo(outcome_at_end), "action_PGT"),
        (Whitened(Advantage(group_mean, unscaled), "token"), "action_PGT"),
    ],
)
def test_an_advantage_that_needs_more_than_rewards_says_so(advantage, field):
    with pytest.raises(ValueError, match=rf"Scored\.{field} is missing: this choice looks at .*; `scored_of` sets"):
        advantage(Scored(jnp.asarray(REWARDS_PG, jnp.float32)))


# Credit of single tokens.


def steps_of(*rows: list[float]) -> jnp.ndarray:
    return jnp.asarray([rows], jnp.float32)


def test_steps_are_compared_with_all_steps_of_their_group_and_add_up_from_each_token_on():
    steps_PGT = steps_of([NAN, 1.0, NAN, 0.0, NAN, NAN], [0.5, NAN, NAN, NAN, NAN, NAN], [NAN, NAN, 0.0, NAN, 1.0, NAN])
    scored = scored_of(np.zeros((1, 3)), [[4, 2, 6]], steps_PGT=steps_PGT)
    numbers = np.array([1.0, 0.0, 0.5, 0.0, 1.0])
    a, b, c, d, e = (numbers - numbers.mean()) / (numbers.std(ddof=1) + 1e-4)
    expected_PGT = [[[a + b, a + b, b, b, 0, 0], [c, 0, 0, 0, 0, 0], [d + e, d + e, d + e, e, e, 0]]]
    np.testing.assert_allclose(ReturnToGo(GroupSteps())(scored), expected_PGT, atol=1e-6)


def test_process_supervision_without_steps_says_what_to_return():
    with pytest.raises(ValueError, match=r"rewards\.Steps"):
        GroupSteps()(scored_of(REWARDS_PG))


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_the_return_of_a_token_is_the_discounted_sum_of_its_own_and_later_rewards(discount):
    steps_PGT = jnp.asarray(DRAW.normal(size=(2, 3, 6)), jnp.float32)
    scored = replace(
        scored_of(REWARDS_PG, LENGTHS_PG),
        steps_PGT=jnp.where(scored_of(REWARDS_PG, LENGTHS_PG).action_PGT, steps_PGT, NAN),
    )
    expected_PGT = np.zeros((2, 3, 6))
    for p, g in np.ndindex(2, 3):
        ahead, length = 0.0, LENGTHS_PG[p, g]
        rest = REWARDS_PG[p, g] - float(steps_PGT[p, g, :length].sum())  # of the reward, beyond its steps
        for t in reversed(range(length)):
            ahead = float(steps_PGT[p, g, t]) + (rest if t == length - 1 else 0.0) + discount * ahead
            expected_PGT[p, g, t] = ahead
    np.testing.assert_allclose(ReturnToGo(outcome_at_end, discount)(scored), expected_PGT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", ["response", "token"])
def test_whitened_advantages_have_a_mean_of_zero_and_a_deviation_of_one(unit):
    rewards_PG = np.where([[False, True, False], [False] * 3], NAN, REWARDS_PG)
    found_PG = np.asarray(Whitened(Advantage(group_mean, unscaled), unit)(scored_of(rewards_PG, LENGTHS_PG)))
    assert found_PG[0, 1] == 0
    counts_PG = np.where(np.isnan(rewards_PG), 0, 1 if unit == "response" else LENGTHS_PG)
    numbers = np.repeat(found_PG.ravel(), counts_PG.ravel())
    np.testing.assert_allclose([numbers.mean(), numbers.std(ddof=1)], [0.0, 1.0], atol=1e-3)


def test_what_was_added_to_the_total_alone_is_centred_but_not_scaled():
    """GDPO of two parts, and a penalty on the total that belongs to neither."""
    parts_PGR, weights_R = DRAW.uniform(size=(2, 4, 2)), np.array([1.0, 0.5])
    penalty_PG = np.array([[0.0, 0.1, 0.0, 0.3], [0.2, 0.2, 0.2, 0.2]])
    plain = replace(scored_of((parts_PGR * weights_R).sum(axis=2)), parts_PGR=jnp.asarray(parts_PGR, jnp.float32))
    plain = replace(plain, weights_R=jnp.asarray(weights_R, jnp.float32))
    advantage = EachPart(Advantage(group_mean, GroupStd()))
    centred_PGR = parts_PGR - parts_PGR.mean(axis=1, keepdims=True)
    expected_PG = (centred_PGR / (parts_PGR.std(axis=1, ddof=1, keepdims=True) + 1e-4) * weights_R).sum(axis=2)
    np.testing.assert_allclose(advantage(plain), expected_PG, rtol=1e-4, atol=1e-5)
    punished = replace(plain, rewards_PG=plain.rewards_PG - jnp.asarray(penalty_PG, jnp.float32))
    expected_PG -= penalty_PG - penalty_PG.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(advantage(punished), expected_PG, rtol=1e-4, atol=1e-5)
