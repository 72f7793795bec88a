"""The algorithm: gradients do not depend on how the batch is cut, only actions count, and a tiny model learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.grpo import init, prepare, step, update
from grpo_jax.learner import microbatches as cutting
from grpo_jax.learner import update as learning
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.learner.update import check_split
from grpo_jax.models import tiny
from grpo_jax.objectives import dapo, dr_grpo, grpo, gspo, rloo
from grpo_jax.optimizers import adafactor, adamw
from grpo_jax.rollout import Sampler
from grpo_jax.scoring import Rewards, chosen_tokens
from grpo_jax.structs import Prompts, Rollouts
from grpo_jax.tasks import Example

ONE = Layout().mesh(jax.devices()[:1])
MODEL = tiny(remat="none")
PARAMS = MODEL.params(ONE)
TEXTS = ["a", "What is 2 + 2?", "Name three colours.", "Hi"]
EXAMPLES = [Example(text, "e") for text in TEXTS]
PROMPTS = MODEL.tokenizer.encode_all(TEXTS, max_tokens=64)
ENDS = (10, 32, 101, 256)
# Plain descent shows the gradient itself in the change of the parameters.
DESCENT = optax.sgd(1.0)


def share_of_vowels(example: Example, response: str) -> float:
    return sum(letter in "aeiou" for letter in response) / max(len(response), 1)


def build(**changes) -> Algorithm:
    settings = {
        "policy": MODEL.policy,
        "sample": Sampler(ENDS, responses=4, max_tokens=12),
        "decode": MODEL.tokenizer.decode,
        "reward": share_of_vowels,
        "objective": dapo(),
        "optimizer": DESCENT,
    }
    return Algorithm(**(settings | changes))


def fresh(algorithm: Algorithm, params=PARAMS):
    return init(algorithm, jax.tree.map(jnp.copy, params))


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return Sampler(ENDS, responses=4, max_tokens=12)(MODEL.policy, PARAMS, PROMPTS, jax.random.key(0))


REWARDS_PGR = np.random.default_rng(0).uniform(size=(4, 4, 1)).astype(np.float32)


def batch_of(algorithm: Algorithm, state, rollouts: Rollouts, rewards_PGR=REWARDS_PGR):
    return prepare(algorithm, state, rollouts, Rewards(rewards_PGR), jax.random.key(0))


def change_of(algorithm: Algorithm, rollouts: Rollouts, params=PARAMS):
    """What one update does to the parameters, and its metrics."""
    state = fresh(algorithm, params)
    state, metrics = update(algorithm, state, batch_of(algorithm, state, rollouts))
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, params), metrics


def assert_close(one, other, tolerance=1e-5):
    largest = max(np.abs(a).max() for a in jax.tree.leaves(one))
    assert largest > 1e-3
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        atol = tolerance * max(np.abs(a).max(), 0.1 * largest) + 2e-7  # these are differences of weights around one
        np.testing.assert_allclose(a, b, atol=atol)


OBJECTIVES = {
    "grpo": grpo(),
    "dapo": dapo(),
}
MORE_OBJECTIVES = {
    "reward_kl": grpo(kl_place="reward", kl_estimator="k1"),
    "dr_grpo": dr_grpo(length=12),
    "gspo": gspo(),
    "rloo": rloo(),
}


@pytest.mark.parametrize(
    "objective",
    [*OBJECTIVES.values(), *(pytest.param(each, marks=pytest.mark.long) for each in MORE_OBJECTIVES.values())],
    ids=[*OBJECTIVES, *MORE_OBJECTIVES],
)
@pytest.mark.slow
def test_the_gradient_does_not_depend_on_microbatches(objective, rollouts):
    whole, measured = change_of(build(objective=objective), rollouts)
    parts, also = change_of(build(objective=objective, responses_at_once=8), rollouts)
    assert_close(whole, parts)
    assert_close(whole, change_of(build(objective=objective, responses_at_once=2), rollouts)[0])
    del measured["padding_frac"], also["padding_frac"]
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(
        {name: float(value) for name, value in also.items()}, rel=1e-3, abs=1e-6
    )


def test_padding_is_what_was_computed_for_nothing(rollouts):
    """Two responses of each prompt are cut to one token, so that all four fit into three rows of twelve."""
    valid_PGT = np.array(rollouts.valid_PGT)
    valid_PGT[:, 2:, 1:] = False
    valid_PGT[:, :2] = True
    short = replace(rollouts, valid_PGT=jnp.asarray(valid_PGT), action_PGT=jnp.asarray(valid_PGT))
    _, metrics = change_of(build(), short)
    live = valid_PGT.sum() + PROMPTS.valid_PL.sum()
    assert metrics["padding_frac"] == pytest.approx(1 - live / (4 * 3 * 12 + PROMPTS.valid_PL.size))


@pytest.mark.slow
def test_reading_the_prompt_once_gives_the_gradient_of_reading_it_for_every_response(rollouts):
    G = 4
    apart = Prompts(np.repeat(PROMPTS.tokens_PL, G, axis=0), np.repeat(PROMPTS.valid_PL, G, axis=0))
    single = {
        name: jnp.asarray(getattr(rollouts, name)).reshape(4 * G, 1, *getattr(rollouts, name).shape[2:])
        for name in ("tokens_PGT", "valid_PGT", "action_PGT", "logprobs_PGT", "entropy_PGT", "ended_PG")
    }
    repeated = Rollouts(prompts=apart, **single, distribution=Distribution())
    weights_PGT = jnp.asarray(np.random.default_rng(0).normal(size=(4, G, 12)), jnp.float32)

    def total(params, rollouts):
        return jnp.sum(
            token_logprobs(MODEL.policy, params, rollouts)[0] * weights_PGT.reshape(rollouts.tokens_PGT.shape)
        )

    gradient = jax.jit(jax.grad(total))
    assert_close(gradient(PARAMS, rollouts), gradient(PARAMS, repeated))


def test_tokens_after_the_end_do_not_move_the_update(rollouts):
    assert not rollouts.action_PGT.all()
    garbled = replace(rollouts, tokens_PGT=jnp.where(rollouts.action_PGT, rollouts.tokens_PGT, 7))
    one, _ = change_of(build(), rollouts)
    other, _ = change_of(build(), garbled)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_end_token_is_trained(rollouts):
    """An update in favour of responses that end must make their end tokens likelier."""
    lengths_PG = rollouts.action_PGT.sum(axis=2)
    p, g = np.argwhere(np.asarray(rollouts.ended_PG) & np.asarray(lengths_PG > 1))[0]
    assert int(rollouts.tokens_PGT[p, g, lengths_PG[p, g] - 1]) in ENDS
    only_PGT = jnp.zeros(rollouts.action_PGT.shape, bool).at[p, g, lengths_PG[p, g] - 1].set(True)
    algorithm = build(optimizer=optax.sgd(10.0))
    batch = batch_of(algorithm, fresh(algorithm), rollouts)
    alone = replace(batch, advantages=jnp.ones((4, 4)), weights_PGT=jnp.where(only_PGT, batch.weights_PGT, 0.0))
    state, _ = update(algorithm, fresh(algorithm), alone)
    score = jax.jit(token_logprobs, static_argnums=0)
    after_PGT, _ = score(MODEL.policy, state.params, rollouts)
    assert float(jnp.sum(jnp.where(only_PGT, after_PGT - rollouts.logprobs_PGT, 0.0))) > 0.01


def test_without_a_kl_term_nobody_asks_for_a_reference(rollouts):
    assert batch_of(build(), fresh(build()), rollouts).ref_logprobs_PGT is None
    assert fresh(build(objective=grpo(kl=0.0))).reference is None
    assert fresh(build(objective=grpo())).reference is not None


def test_kl_in_the_reward_is_subtracted_before_the_advantage(rollouts):
    algorithm = build(objective=grpo(kl=0.5, kl_estimator="k1", kl_place="reward"))
    reference = jax.tree.map(lambda a: a * 1.1, PARAMS)
    batch = batch_of(algorithm, replace(fresh(algorithm), reference=reference), rollouts)
    score = jax.jit(token_logprobs, static_argnums=0)
    gap_PG = (score(MODEL.policy, PARAMS, rollouts)[0] - score(MODEL.policy, reference, rollouts)[0]).sum(axis=2)
    rewards_PG = REWARDS_PGR[..., 0] - 0.5 * np.asarray(gap_PG)
    expected_PG = [(row - row.mean()) / (row.std(ddof=1) + 1e-4) for row in rewards_PG]
    np.testing.assert_allclose(batch.advantages, expected_PG, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_several_minibatches_are_several_optimiser_steps(rollouts):
    algorithm = build(minibatches=2, optimizer=adamw(1e-2, warmup_steps=1))
    batch = batch_of(algorithm, fresh(algorithm), rollouts)
    assert batch.old_logprobs_PGT is not None
    state, metrics = update(algorithm, fresh(algorithm), batch)
    assert int(optax.tree_utils.tree_get(state.opt_state, "ScaleByAdamState").count) == 2
    assert int(state.step) == 1
    assert np.isfinite(float(metrics["loss"]))


def test_two_minibatches_of_plain_descent_are_two_updates_of_half_the_prompts_each(rollouts):
    algorithm = build(minibatches=2, objective=dr_grpo(length=12))
    both, _ = change_of(algorithm, rollouts)
    batch = replace(batch_of(algorithm, fresh(algorithm), rollouts), metrics={})
    alone, state = build(objective=dr_grpo(length=12)), fresh(algorithm)
    for first in (0, 1):
        half = jax.tree.map(lambda a, first=first: a[first::2], batch)
        half = replace(half, weights_PGT=alone.objective.weighting(half.rollouts.action_PGT, jnp.ones((2, 4), bool)))
        state, _ = update(alone, state, half)
    assert_close(both, jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, PARAMS))


def test_the_same_seed_gives_the_same_run_and_two_steps_share_no_noise():
    algorithm = build(optimizer=adamw(1e-3))

    def run() -> tuple[list, dict]:
        state, seen = fresh(algorithm), []
        sample = algorithm.sample

        def watched(*inputs):
            rollouts = sample(*inputs)
            seen.append(np.asarray(rollouts.tokens_PGT))
            return rollouts

        spied = replace(algorithm, sample=watched)
        for index in range(2):
            key = jax.random.fold_in(jax.random.key(3), index)
            state, metrics = step(spied, state, PROMPTS, EXAMPLES, key)
        return seen, jax.tree.map(np.asarray, state.params) | {"reward": metrics["reward"]}

    (first, second), end = run()
    (again, _), also = run()
    np.testing.assert_array_equal(first, again)
    jax.tree.map(np.testing.assert_array_equal, end, also)
    assert (first[:, :, 0] != second[:, :, 0]).any()


def test_the_old_state_is_donated(rollouts):
    algorithm = build()
    state = fresh(algorithm)
    update(algorithm, state, batch_of(algorithm, state, rollouts))
    assert all(array.is_deleted() for array in jax.tree.leaves(state.params))


def test_rewards_see_the_text_of_the_chosen_tokens():
    heard = []

    def listen(example: Example, response: str) -> float:
        heard.append((example.prompt, response))
        return float(len(response))

    algorithm = build(reward=listen)
    _, metrics = step(algorithm, fresh(algorithm), PROMPTS, EXAMPLES, jax.random.key(0))
    rollouts = algorithm.sample(MODEL.policy, PARAMS, PROMPTS, jax.random.key(0))
    expected = [
        (text, MODEL.tokenizer.decode(ids))
        for text, group in zip(TEXTS, chosen_tokens(rollouts), strict=True)
        for ids in group
    ]
    assert heard == expected
    assert metrics["reward"] == pytest.approx(np.mean([len(response) for _, response in expected]))
    assert metrics["sampling/sampling_logp_difference/mean"] < 2e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minibatches": 3}, "4 prompts do not divide into 3 minibatches; choose 1, 2 or 4"),
    ],
)
def test_a_split_that_leaves_prompts_over_is_refused_with_the_choices(changes, words):
    with pytest.raises(ValueError, match=words):
        check_split(build(**changes), 4, 4, None)


@pytest.mark.parametrize("layout", [None, Layout(2, 2, 2)])
@pytest.mark.slow
def test_the_second_step_compiles_nothing(layout):
    mesh = ONE if layout is None else layout.mesh()
    algorithm = build(optimizer=adamw(1e-3))
    state = init(algorithm, MODEL.params(mesh))
    state = jax.device_put(state, weight_shardings(state, mesh))
    prompts = place_prompts(PROMPTS, mesh)
    state, _ = step(algorithm, state, prompts, EXAMPLES, jax.random.key(0))
    programs = (cutting.choose, learning.add_gradient, learning.descend, learning.microbatch_logprobs)
    known = [program._cache_size() for program in programs]
    state, _ = step(algorithm, state, prompts, EXAMPLES, jax.random.key(1))
    assert [program._cache_size() for program in programs] == known


@pytest.mark.slow
def test_a_tiny_model_learns_a_tiny_task_from_scratch():
    """From random weights: say the letter that was asked for."""
    examples = [Example(f"Say {letter}", letter) for letter in "abcdef"]
    prompts = MODEL.tokenizer.encode_all([example.prompt for example in examples], max_tokens=64)

    def share_of_the_letter(example: Example, response: str) -> float:
        return response.count(example.answer) / max(len(response), 1)

    algorithm = build(
        reward=share_of_the_letter,
        sample=Sampler(MODEL.tokenizer.end_ids, responses=32, max_tokens=4),
        objective=grpo(),
        optimizer=adamw(3e-3),
    )
    state, rewards = fresh(algorithm), []
    for index in range(100):
        key = jax.random.fold_in(jax.random.key(0), index)
        state, metrics = step(algorithm, state, prompts, examples, key)
        rewards.append(metrics["reward"])
    assert np.mean(rewards[:5]) < 0.2
    assert np.mean(rewards[-5:]) > 0.9


@pytest.mark.slow
def test_an_engine_of_ten_lines_trains():
    def engine(policy, params, prompts, key, G=16, T=3):
        all_PGT = jnp.ones((len(prompts.tokens_PL), G, T), bool)
        tokens_PGT, logprobs_PGT = jnp.zeros(all_PGT.shape, jnp.int32), jnp.zeros(all_PGT.shape)
        for t in range(T):
            last_PD, hidden_PGTD = policy.respond(params, prompts, tokens_PGT, all_PGT)
            hidden_PGD = (
                hidden_PGTD[:, :, t - 1] if t else jnp.broadcast_to(last_PD[:, None], hidden_PGTD[:, :, 0].shape)
            )
            shares_PGV = jax.nn.log_softmax(policy.unembed(params, hidden_PGD))
            token_PG = jax.random.categorical(jax.random.fold_in(key, t), shares_PGV)
            tokens_PGT = tokens_PGT.at[:, :, t].set(token_PG)
            chosen_PG1 = jnp.take_along_axis(shares_PGV, token_PG[:, :, None], axis=2)
            logprobs_PGT = logprobs_PGT.at[:, :, t].set(chosen_PG1[:, :, 0])
        ended_PG = jnp.zeros(token_PG.shape, bool)
        return Rollouts(prompts, tokens_PGT, all_PGT, all_PGT, logprobs_PGT, logprobs_PGT, ended_PG, Distribution())

    def vowels(example: Example, response: str) -> float:
        return sum(letter in "aeiou" for letter in response) / 3

    algorithm = build(reward=vowels, sample=jax.jit(engine, static_argnums=0), objective=dapo(), optimizer=adamw(1e-2))
    examples = [Example(text) for text in ("Say a", "Sing")]
    prompts = MODEL.tokenizer.encode_all([example.prompt for example in examples], max_tokens=64)
    state, rewards = fresh(algorithm), []
    for index in range(25):
        key = jax.random.fold_in(jax.random.key(0), index)
        state, metrics = step(algorithm, state, prompts, examples, key)
        assert metrics["sampling/sampling_logp_difference/mean"] < 2e-4
        rewards.append(metrics["reward"])
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.3


@pytest.mark.parametrize(
    "optimizer", [adamw(1e-3, 0, moments="bfloat16"), adafactor(1e-3, 0)], ids=["bf16", "factored"]
)
@pytest.mark.slow
def test_smaller_moments_save_memory_and_move_every_weight(optimizer, rollouts):
    usual, small = (
        sum(a.nbytes for a in jax.tree.leaves(init(build(optimizer=each), PARAMS).opt_state))
        for each in (adamw(), optimizer)
    )
    assert small < 0.8 * usual
    change, _ = change_of(build(optimizer=optimizer), rollouts)
    assert all(np.abs(a).max() > 1e-5 for a in jax.tree.leaves(change))
    _, after = change_of(build(optimizer=optimizer), rollouts)
    assert float(after["loss"]) == pytest.approx(float(change_of(build(), rollouts)[1]["loss"]), abs=1e-6)
