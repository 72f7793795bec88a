"""Supervised fine-tuning: given answers as groups of one, against torch, and as a run."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import GOLDEN, ONE, load_golden

from grpo_jax import grpo
from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place, place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.learner.update import add_gradient, microbatches, shardings_of
from grpo_jax.models.weights import load_weights
from grpo_jax.objectives.presets import likelihood
from grpo_jax.optimizers import adamw
from grpo_jax.rollout import as_engine
from grpo_jax.rollout.given import Answered, GivenAnswers
from grpo_jax.structs import Prompts, Rollouts

EXPECTED = np.load(GOLDEN / "sft" / "expected.npz")
OPTIMIZER = {"learning_rate": 1e-3, "warmup_steps": 2, "clip_norm": 0.5, "weight_decay": 0.1}  # of golden/make_sft.py


def batch_of(step: int) -> tuple[Prompts, list[Answered]]:
    """The examples of a step of golden/make_sft.py."""
    rows = [[EXPECTED[f"{kind}_{step}_{index}"] for kind in ("prompt", "answer", "said")] for index in range(4)]
    tokens_PL, valid_PL = np.zeros((4, 24), np.int32), np.zeros((4, 24), bool)
    for index, (prompt, _, _) in enumerate(rows):
        tokens_PL[index, 24 - len(prompt) :], valid_PL[index, 24 - len(prompt) :] = prompt, True
    examples = [
        Answered("?", tokens_T=answer.astype(np.int32), said_T=said, ended=True) for _, answer, said in rows
    ]
    return Prompts(tokens_PL, valid_PL), examples


def algorithm_of(policy, **changes) -> Algorithm:
    engine = GivenAnswers(as_engine(lambda *given: None), max_tokens=128)
    parts = {"objective": likelihood(), "optimizer": adamw(**OPTIMIZER)}
    return Algorithm(policy, engine, str, lambda example, response: 0.0, **parts | changes)


def rollouts_of_step(algorithm: Algorithm, step: int, mesh=ONE) -> Rollouts:
    prompts, examples = batch_of(step)
    prompts = place_prompts(prompts, mesh)
    return algorithm.engine(algorithm.policy, {}, prompts, jax.random.key(0), examples)


def stored(policy, name: str):
    """Arrays that torch has written under the names of the weights."""
    return load_weights(GOLDEN / "sft" / name, policy.shapes, weight_shardings(policy.shapes, ONE))


def state_of(algorithm: Algorithm, params, mesh=ONE):
    state = grpo.init(algorithm, params)
    return jax.tree.map(place, state, weight_shardings(state, mesh))


def learned_from(algorithm: Algorithm, state, step: int, mesh=ONE):
    prompts, examples = batch_of(step)
    return grpo.step(algorithm, state, place_prompts(prompts, mesh), examples, jax.random.key(step))


def same(found, expected, tolerance: float = 1e-5):
    """All weights the same, as parts of the largest number of each."""
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        size = np.abs(np.asarray(b)).max()
        np.testing.assert_allclose(np.asarray(a) / size, np.asarray(b) / size, atol=tolerance, err_msg=str(path))


def gradient_of(algorithm: Algorithm, params, mesh=ONE):
    """The loss and its gradient on the first batch, of all microbatches together."""
    state, rollouts = state_of(algorithm, params, mesh), rollouts_of_step(algorithm, 0, mesh)
    batch = grpo.prepare(algorithm, state, rollouts, grpo.score(algorithm, rollouts, batch_of(0)[1]), jax.random.key(0))
    batch, shardings, total = replace(batch, metrics={}), shardings_of(state), None
    from grpo_jax.learner.microbatches import choose

    for each in microbatches(algorithm, state.params, rollouts)[1][0]:
        chosen = choose(batch, each.index_p, each.index_pg, mesh)
        found = add_gradient(algorithm, shardings, state.params, None, chosen, each.slots_PBW)[0]
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total[0], total[2]


def test_loss_and_gradient_are_those_of_transformers():
    policy, params = load_golden("llama")
    loss, gradient = gradient_of(algorithm_of(policy), params)
    np.testing.assert_allclose(loss, EXPECTED["losses"][0], rtol=1e-5)
    same(gradient, stored(policy, "gradient"))


def test_three_steps_are_those_of_torch():
    policy, params = load_golden("llama")
    algorithm = algorithm_of(policy)
    state = state_of(algorithm, params)
    for step in range(3):
        state, metrics = learned_from(algorithm, state, step)
        np.testing.assert_allclose(metrics["loss"], EXPECTED["losses"][step], rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], EXPECTED["norms"][step], rtol=1e-5)
    before = load_golden("llama")[1]
    moved = jax.tree.map(jnp.subtract, state.params, before)
    same(moved, jax.tree.map(jnp.subtract, stored(policy, "trained"), before), tolerance=1e-3)
    same(state.params, stored(policy, "trained"))
