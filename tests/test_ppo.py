"""The PPO beside GRPO (examples/ppo.py): its advantages are those of a plain loop, and its critic learns."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.objectives.coefficients import Proportional, Stepwise
from grpo_jax.objectives.kl import KL, Reference, k1, kl_term
from grpo_jax.objectives.terms import Term, entropy

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import compare_ppo
import ppo

DRAW = np.random.default_rng(0)
REWARDS_PGT, VALUES_PGT = DRAW.normal(size=(2, 2, 3, 7)).astype(np.float32)
ACTION_PGT = np.arange(7)[None, None] < np.array([[7, 3, 1], [5, 0, 6]])[:, :, None]
TASK = ppo.letters()
PARAMS = TASK.model.params(gj.Layout().mesh(jax.devices()[:1]))


def build(**changes) -> gj.Algorithm:
    settings = {
        "policy": TASK.model.policy,
        "sample": gj.Sampler(TASK.model.tokenizer.end_ids, responses=8, max_tokens=4),
        "decode": TASK.model.tokenizer.decode,
        "reward": ppo.share_of_the_letter,
        "objective": ppo.objective(),
        "optimizer": gj.adamw(3e-3, warmup_steps=0),
    }
    return gj.Algorithm(**(settings | changes))


ALGORITHM = build()


def prepared(settings: ppo.PPO, algorithm: gj.Algorithm = ALGORITHM):
    """The first state, and what it learns from: random rewards, so that there is something to predict."""
    key = jax.random.key(0)
    state = ppo.init(algorithm, settings, jax.tree.map(jnp.copy, PARAMS))
    rollouts = gj.sample(algorithm, ppo.of_policy(state), TASK.prompts, TASK.examples, key)
    rewards = replace(
        gj.score(algorithm, rollouts, TASK.examples), parts_PGR=DRAW.uniform(size=(6, 8, 1)).astype(np.float32)
    )
    return state, ppo.prepare(algorithm, settings, state, rollouts, rewards, key)


def estimates_by_loop(rewards_PGT, values_PGT, action_PGT, discount, trace):
    """The definition: A_t is the sum over later actions l of (discount trace)^l d_(t+l)."""
    found_PGT = np.zeros(rewards_PGT.shape)
    for p, g in np.ndindex(*rewards_PGT.shape[:2]):
        actions = np.flatnonzero(action_PGT[p, g])
        rewards, values = rewards_PGT[p, g, actions], np.append(values_PGT[p, g, actions], 0.0)
        errors = [r + discount * after - now for r, now, after in zip(rewards, values, values[1:], strict=False)]
        for t in range(len(actions)):
            found_PGT[p, g, actions[t]] = sum((discount * trace) ** n * d for n, d in enumerate(errors[t:]))
    return found_PGT


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.0, 1.0)])
def test_advantages_are_those_of_the_definition(discount, trace):
    expected_PGT = estimates_by_loop(REWARDS_PGT, VALUES_PGT, ACTION_PGT, discount, trace)
    found_PGT = ppo.estimate(REWARDS_PGT, VALUES_PGT, ACTION_PGT, discount, trace)
    np.testing.assert_allclose(found_PGT, expected_PGT, atol=1e-5)


def test_tokens_between_actions_are_passed_over():
    """Tokens that the policy did not choose, as those of a tool, are no steps of the episode."""
    action_PGT = np.array([[[True, False, False, True, True, False, True]]])
    expected_PGT = estimates_by_loop(REWARDS_PGT[:1, :1], VALUES_PGT[:1, :1], action_PGT, 0.9, 0.8)
    found_PGT = ppo.estimate(REWARDS_PGT[:1, :1], VALUES_PGT[:1, :1], action_PGT, 0.9, 0.8)
    np.testing.assert_allclose(found_PGT, expected_PGT, atol=1e-5)


def test_with_a_trace_of_one_the_advantage_is_the_return_minus_the_value():
    returns_PGT = np.cumsum((REWARDS_PGT * ACTION_PGT)[:, :, ::-1], axis=2)[:, :, ::-1]
    found_PGT = ppo.estimate(REWARDS_PGT, VALUES_PGT, ACTION_PGT, 1.0, 1.0)
    np.testing.assert_allclose(found_PGT, (returns_PGT - VALUES_PGT) * ACTION_PGT, atol=1e-5)


def test_whitened_advantages_have_mean_zero_and_deviation_one_over_actions():
    white_PGT = np.asarray(ppo.whiten(jnp.asarray(REWARDS_PGT), jnp.asarray(ACTION_PGT)))
    assert white_PGT[ACTION_PGT].mean() == pytest.approx(0, abs=1e-6)
    assert white_PGT[ACTION_PGT].std() == pytest.approx(1, rel=1e-5)
    assert not white_PGT[~ACTION_PGT].any()


@pytest.mark.slow
@pytest.mark.parametrize("own_critic", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_critic_learns_the_rewards_of_a_batch(own_critic):
    settings = ppo.PPO(own_critic=own_critic, trace=1.0)
    state, valued = prepared(settings)
    assert not np.asarray(valued.values_PGT).any()  # its head begins with zeros
    valued = replace(valued, batch=replace(valued.batch, metrics={}))
    losses = []
    for _ in range(20):
        state, metrics = ppo.descend(ALGORITHM, settings, state, valued)
        losses.append(float(metrics["value_loss"]))
    assert losses[-1] < losses[0] / 3


@pytest.mark.slow
def test_log_probs_are_those_of_the_library_and_a_value_is_known_before_its_token():
    settings = ppo.PPO()
    state, valued = prepared(settings)
    critic = {"value_D": jnp.asarray(DRAW.normal(size=64), jnp.float32)}
    params = {"policy": state.params["policy"], "critic": critic}
    rollouts = valued.batch.rollouts
    logprobs_PGT, _, values_PGT = ppo.look_once(ALGORITHM.policy, params, rollouts)
    expected_PGT = gj.token_logprobs(ALGORITHM.policy, params["policy"], rollouts)[0]
    np.testing.assert_allclose(logprobs_PGT, expected_PGT, atol=1e-5)
    tokens_PGT = rollouts.tokens_PGT.at[:, :, 2].add(1)
    changed_PGT = ppo.look_once(ALGORITHM.policy, params, replace(rollouts, tokens_PGT=tokens_PGT))[2]
    np.testing.assert_allclose(changed_PGT[:, :, :3], values_PGT[:, :, :3], atol=1e-5)
    moved_PG = np.abs(changed_PGT - values_PGT)[:, :, 3]
    assert moved_PG[np.asarray(rollouts.action_PGT)[:, :, 3]].min() > 1e-3


def test_a_value_that_moved_too_far_has_no_gradient():
    """Before the update 0, target 1, clip 0.2: a value of 0.1 is still pulled up, one of 0.5 no more; one that moved
    away from its target is."""
    ones_PGT = jnp.ones((1, 1, 3))
    valued = ppo.Valued(None, values_PGT=0 * ones_PGT, targets_PGT=ones_PGT)

    def total(values_PGT):
        return ppo._errors(ppo.PPO(value_clip=0.2), values_PGT, valued).sum()

    gradient_PGT = jax.grad(total)(jnp.array([[[0.1, 0.5, -0.5]]]))
    np.testing.assert_allclose(gradient_PGT, [[[-1.8, 0.0, -3.0]]], rtol=1e-5)


@pytest.mark.slow
def test_steps_in_minibatches_count_as_one_and_describe_the_rewards():
    algorithm, settings = build(minibatches=2), ppo.PPO(epochs=2)
    state = ppo.init(algorithm, settings, jax.tree.map(jnp.copy, PARAMS))
    state, metrics = ppo.step(algorithm, settings, state, TASK.prompts, TASK.examples, jax.random.key(0))
    assert int(state.step) == 1
    assert 0 <= float(metrics["reward"]) < 0.3 and np.isfinite(float(metrics["grad_norm"]))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [({"trace": 1.5}, "trace is between 0 and 1"), ({"epochs": 0}, "at least once"), ({"value_clip": 0.0}, "above 0")],
)
def test_settings_out_of_range_are_refused(wrong, rule):
    with pytest.raises(ValueError, match=rule):
        ppo.PPO(**wrong)


def test_the_reference_is_a_copy_of_the_policy_and_not_of_the_critic():
    algorithm = build(objective=ppo.objective(kl=kl_term(0.04, k1, place="token_reward")))
    state = jax.eval_shape(partial(ppo.init, algorithm, ppo.PPO(own_critic=True)), PARAMS)
    assert jax.tree.structure(state.reference) == jax.tree.structure(PARAMS)
    assert ppo.of_policy(state).reference is state.reference


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"objective": ppo.objective(kl=KL(Proportional(0.04), k1))}, "that of kl adapts"),
        ({"objective": ppo.objective(terms=(Term(Stepwise(0.1), entropy),))}, "that of term 1 adapts"),
        ({"objective": ppo.objective(kl=KL(0.04, k1, reference=Reference(every=5)))}, "moves every 5 steps"),
        ({"responses_at_once": 8}, "got responses_at_once=8"),
    ],
)
def test_what_this_ppo_lacks_is_refused_before_the_first_step(changes, rule):
    with pytest.raises(ValueError, match=rule):
        ppo.init(build(**changes), ppo.PPO(), PARAMS)


@pytest.mark.slow
def test_an_objective_with_one_advantage_for_each_answer_is_refused():
    with pytest.raises(ValueError, match="one for each answer"):
        prepared(ppo.PPO(), build(objective=gj.objectives.grpo(kl=0.0)))


def test_the_comparison_has_the_mean_and_the_spread_of_the_last_steps(tmp_path):
    rewards_nX = np.array([[0.0] * 5 + [0.5] * 5, [1.0] * 5 + [0.7] * 5])
    found = dict.fromkeys(compare_ppo.LINES, compare_ppo.Curves(rewards_nX))
    assert compare_ppo.table(found).splitlines()[2] == "| GRPO | 0.500 | 0.600 | 0.500 | 0.700 |"
    compare_ppo.draw(found, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_the_options_of_the_comparison_are_the_settings_of_its_methods(capsys):
    found = compare_ppo.compared(compare_ppo.options([]))
    assert [None if each is None else (each.epochs, each.own_critic) for each in found.values()] == [
        None,
        (4, True),
        (2, False),
    ]
    given = compare_ppo.options(["--methods", "head", "--epochs", "1", "--trace", "1", "--kl", "0"])
    (settings,) = compare_ppo.compared(given).values()
    assert settings == ppo.PPO(epochs=1, trace=1.0)
    assert compare_ppo.build(settings, given.rate, given.kl).objective.kl is None
    with pytest.raises(SystemExit):
        compare_ppo.options(["--methods", "grpo", "--epochs", "2"])
    assert "settings of PPO" in capsys.readouterr().err
