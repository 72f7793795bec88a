"""The functions for plain arrays, against loops and against the functions of an objective."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.objectives import clipped_loss, credit, dapo, group_advantages, grpo, gspo, k2, loss
from grpo_jax.objectives.advantages import BatchStd, GroupMean, GroupStd, group_mean, leave_one_out, unscaled
from grpo_jax.objectives.ratios import sequence
from grpo_jax.objectives.weightings import sequence_mean
from grpo_jax.structs import Prompts, Rollouts, Scored

P, G, T = 3, 4, 6
DRAW = np.random.default_rng(0)
REWARDS_PG = DRAW.integers(0, 9, (P, G)) / 8
ACTION_PGT = np.arange(T) < DRAW.integers(1, T + 1, (P, G, 1))
NEW_PGT = -DRAW.exponential(1.5, (P, G, T))
OLD_PGT, REF_PGT = (NEW_PGT + DRAW.normal(0, 0.3, (P, G, T)) for _ in range(2))
SEQUENCE_MEAN_AND_KL = {"weighting": sequence_mean, "kl": 0.04}


def arrays() -> dict[str, jax.Array]:
    """The arguments of `clipped_loss`, NaN wherever there is no action."""
    logprobs = {"logprobs_PGT": NEW_PGT, "old_logprobs_PGT": OLD_PGT, "ref_logprobs_PGT": REF_PGT}
    known = {name: jnp.asarray(np.where(ACTION_PGT, a, np.nan), jnp.float32) for name, a in logprobs.items()}
    return {**known, "action_PGT": jnp.asarray(ACTION_PGT), "advantages": group_advantages(rewards())}


def rewards() -> jax.Array:
    return jnp.asarray(REWARDS_PG, jnp.float32)


def loop_of_advantages(center: str, scale: str) -> np.ndarray:
    advantages_PG = np.zeros((P, G))
    for p, g in np.ndindex(P, G):
        group = REWARDS_PG[p]
        others = [group[i] for i in range(G) if i != g]
        above = group[g] - {"group_mean": group.mean(), "leave_one_out": np.mean(others)}[center]
        deviation = {"group": group.std(ddof=1) + 1e-4, "batch": REWARDS_PG.std(ddof=1) + 1e-4, "none": 1.0}[scale]
        advantages_PG[p, g] = above / deviation
    return advantages_PG


@pytest.mark.parametrize("center", [group_mean, leave_one_out], ids=lambda center: center.__name__)
@pytest.mark.parametrize(
    ("scale", "name"),
    [(GroupStd(), "group"), (BatchStd(), "batch"), (unscaled, "none")],
    ids=["group", "batch", "none"],
)
def test_group_advantages_are_the_loop(center, scale, name):
    expected_PG = loop_of_advantages(center.__name__, name)
    np.testing.assert_allclose(group_advantages(rewards(), center, scale), expected_PG, rtol=1e-5, atol=1e-6)


def test_group_advantages_are_by_default_those_of_grpo():
    np.testing.assert_allclose(group_advantages(rewards()), loop_of_advantages("group_mean", "group"), rtol=1e-5)
    np.testing.assert_array_equal(group_advantages(rewards()), grpo().advantage(Scored(rewards())))


def loop_of_loss(low: float = 0.2, high: float = 0.2, kl: float = 0.0, estimator=None, by_response: bool = False):
    """PPO's clip, and a penalty, one token at a time; every token or every response counts the same."""
    advantages_PG, value = loop_of_advantages("group_mean", "group"), 0.0
    for p, g, t in zip(*np.where(ACTION_PGT), strict=True):
        r, A = np.exp(NEW_PGT[p, g, t] - OLD_PGT[p, g, t]), advantages_PG[p, g]
        gain = min(r * A, min(max(r, 1 - low), 1 + high) * A)
        if kl:
            gain -= kl * estimator(NEW_PGT[p, g, t] - REF_PGT[p, g, t])
        value -= gain / (ACTION_PGT[p, g].sum() * P * G if by_response else ACTION_PGT.sum())
    return value


LOSSES = [
    ({}, loop_of_loss()),
    ({"clip_low": 0.1, "clip_high": 0.3}, loop_of_loss(0.1, 0.3)),
    (SEQUENCE_MEAN_AND_KL, loop_of_loss(kl=0.04, estimator=lambda y: np.exp(-y) - 1 + y, by_response=True)),
    ({"kl": 0.1, "kl_estimator": k2}, loop_of_loss(kl=0.1, estimator=lambda y: y * y / 2)),
]


@pytest.mark.parametrize(("choices", "expected"), LOSSES, ids=["default", "clip", "grpo", "k2"])
def test_the_clipped_loss_is_the_loop_over_tokens(choices, expected):
    np.testing.assert_allclose(clipped_loss(**arrays(), **choices), expected, rtol=1e-5, atol=1e-6)


OBJECTIVES = [
    (grpo(), SEQUENCE_MEAN_AND_KL),
    (dapo(), {"clip_high": 0.28}),
    (dapo(cap=1.3), {"clip_high": 0.28, "cap": 1.3}),
    (gspo(0.05, 0.05), {"clip_low": 0.05, "clip_high": 0.05, "ratio": sequence, "weighting": sequence_mean}),
]


@pytest.mark.parametrize(("objective", "choices"), OBJECTIVES, ids=["grpo", "dapo", "dual clip", "gspo"])
@pytest.mark.parametrize("by_token", [False, True])
def test_the_clipped_loss_and_its_gradient_are_those_of_the_objective(objective, choices, by_token):
    given = arrays()
    action_PGT, new_PGT = given["action_PGT"], given.pop("logprobs_PGT")
    if by_token:
        given["advantages"] = jnp.broadcast_to(given["advantages"][:, :, None], (P, G, T))
    prompts = Prompts(jnp.zeros((P, 1), jnp.int32), jnp.ones((P, 1), bool))
    zero_PGT, ended_PG = jnp.zeros((P, G, T)), jnp.ones((P, G), bool)
    rollouts = Rollouts(
        prompts, zero_PGT.astype(int), action_PGT, action_PGT, given["old_logprobs_PGT"], zero_PGT, ended_PG, 1.0
    )
    known = {name: given[name] for name in ("old_logprobs_PGT", "ref_logprobs_PGT")}
    batch = credit(objective, rollouts, Scored(rewards()), jax.random.key(0), **known)
    batch = replace(batch, advantages=given["advantages"])
    theirs, theirs_PGT = jax.value_and_grad(lambda x_PGT: loss(objective, x_PGT, zero_PGT, batch)[0])(new_PGT)
    ours, ours_PGT = jax.value_and_grad(lambda x_PGT: clipped_loss(x_PGT, **given, **choices))(new_PGT)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(ours_PGT, theirs_PGT, rtol=1e-6, atol=1e-8)
    assert np.abs(ours_PGT[ACTION_PGT]).max() > 0


def test_a_reward_of_nan_has_no_advantage_and_its_group_ignores_it():
    with_gap_PG = jnp.array([[1.0, np.nan, 0.0, 0.5]])
    advantages_PG = group_advantages(with_gap_PG)
    assert advantages_PG[0, 1] == 0
    np.testing.assert_allclose(
        advantages_PG[0, jnp.array([0, 2, 3])], group_advantages(jnp.array([[1.0, 0.0, 0.5]]))[0]
    )


def test_a_kl_term_without_a_reference_is_refused():
    given = arrays() | {"ref_logprobs_PGT": None}
    with pytest.raises(ValueError, match="ref_logprobs_PGT is missing: a KL term compares with a reference policy"):
        clipped_loss(**given, kl=0.1)


def test_rewards_alone_are_enough_for_centers_and_scales_that_look_at_rewards():
    for scale in (GroupStd(), BatchStd(), GroupMean(), unscaled):
        assert group_advantages(rewards(), scale=scale).shape == (P, G)
