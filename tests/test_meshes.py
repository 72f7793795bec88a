"""A step on every mesh of eight devices equals that on one device: tokens, metrics, and the weights after it."""

import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import optax
import pytest

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place, place_prompts
from grpo_jax.devices.sharding import devices_per_group, weight_shardings
from grpo_jax.grpo import init, prepare, sample, score, update
from grpo_jax.models import Model, decoder_policy, tiny
from grpo_jax.models.decoder import Experts
from grpo_jax.objectives import grpo
from grpo_jax.rollout import Sampler, stages
from grpo_jax.tasks import Example

pytestmark = pytest.mark.slow  # compiles for meshes of eight devices

MODEL = tiny()
MESHES = [(2, 2, 2), (8, 1, 1)]
MORE_MESHES = [
    (1, 8, 1),
    (1, 1, 8),
    (1, 2, 4),
    (1, 4, 2),
    (2, 1, 4),
    (2, 4, 1),
    (4, 1, 2),
    (4, 2, 1),
]  # all others of eight devices


def rows_of(rewards, advantages) -> list[tuple]:
    """The prompts, responses, rewards and advantages, in the order of the prompts."""
    told = zip(rewards.examples, rewards.texts, rewards.parts_PGR, np.asarray(advantages), strict=True)
    return [
        (example.prompt, text, rewards_R.tolist(), round(float(advantage), 3))
        for example, group, rewards_GR, advantages_G in told
        for text, rewards_R, advantage in zip(group, rewards_GR, advantages_G, strict=True)
    ]


def evens(example: Example, response: str) -> float:
    return sum(ord(letter) % 2 == 0 for letter in response) / 10 + 0.01 * float(example.answer)


def with_experts(experts: Experts | None, replay: bool) -> Model:
    """The tiny model, with these experts in its layers."""
    if experts is None:
        return MODEL
    policy = decoder_policy(replace(MODEL.shape, experts=experts), replay_experts=replay)

    def params(mesh):
        return jax.jit(policy.init, out_shardings=weight_shardings(policy.shapes, mesh))(jax.random.key(0))

    return replace(MODEL, policy=policy, params=params)


@cache
def one_step(layout: tuple[int, ...] | None, prompts: int, experts: Experts | None = None, replay=False, **more):
    """The rows, the metrics and the change of the weights of one step on this mesh."""
    model = with_experts(experts, replay)
    mesh = Layout().mesh(jax.devices()[:1]) if layout is None else Layout(*layout).mesh()
    examples = [Example(f"{n} plus {n + 1} is?", str(n)) for n in range(prompts)]
    sampler = Sampler(ends=MODEL.tokenizer.end_ids, responses=8, max_tokens=8)
    objective = grpo(kl=0.05)
    algorithm = Algorithm(model.policy, sampler, model.tokenizer.decode, evens, objective, optax.sgd(0.1), **more)
    params = model.params(mesh)
    before = jax.tree.map(np.asarray, params)
    state = init(algorithm, params)
    state = jax.tree.map(place, state, weight_shardings(state, mesh))
    encoded = place_prompts(MODEL.tokenizer.encode_all([example.prompt for example in examples], 32), mesh)
    key = jax.random.key(1)
    rollouts = sample(algorithm, state, encoded, examples, key)
    rewards = score(algorithm, rollouts, examples)
    batch = prepare(algorithm, state, rollouts, rewards, key)
    state, metrics = update(algorithm, state, batch)
    change = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, before)
    return rows_of(rewards, batch.advantages), {name: float(value) for name, value in metrics.items()}, change


def assert_same(one, other) -> None:
    (rows, metrics, change), (other_rows, other_metrics, other_change) = one, other
    assert rows == other_rows
    for name in metrics.keys() - {"padding_frac"}:  # a group on several devices is packed, and its prompt read, on each
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(change), jax.tree.leaves(other_change), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "layout",
    [*MESHES, *(pytest.param(layout, marks=pytest.mark.long) for layout in MORE_MESHES)],
    ids=lambda layout: "x".join(map(str, layout)),
)
def test_a_step_does_not_depend_on_the_mesh(layout):
    assert_same(one_step(None, 8), one_step(layout, 8))


@pytest.mark.parametrize("prompts", [*(pytest.param(number, marks=pytest.mark.long) for number in (1, 2)), 6])
def test_a_step_with_fewer_prompts_than_devices_spreads_the_responses_and_equals_one_device(prompts):
    """1, 2 and 6 prompts with 8 responses each become 8, 8 and 24 rows of 1, 4 and 2 responses on 8 devices."""
    assert_same(one_step(None, prompts), one_step((1, 8, 1), prompts))


@pytest.mark.parametrize(
    ("layout", "prompts", "replay"),  # of four axes, the last is `expert`
    [
        ((1, 2, 2, 2), 8, False),
        pytest.param((1, 2, 1, 4), 2, True, marks=pytest.mark.long),
        pytest.param((2, 4, 1), 8, True, marks=pytest.mark.long),
    ],
    ids=["tensor and expert", "expert, spread groups, replay", "no expert, replay"],
)
def test_a_step_of_a_model_with_experts_does_not_depend_on_the_mesh(layout, prompts, replay):
    experts = Experts(count=8, chosen=2, feedforward=24, normalized=True, shared=16)
    assert_same(one_step(None, prompts, experts, replay), one_step(layout, prompts, experts, replay))


@pytest.mark.parametrize("vocabulary", [1000, 1001])
def test_sampling_keeps_logits_divided_by_vocabulary(vocabulary, monkeypatch):
    """Otherwise the compiler may gather the whole output head for every token."""
    programs, decode = [], stages.decode

    def recorded(*inputs):
        programs.append(decode.lower(*inputs).as_text())
        return decode(*inputs)

    monkeypatch.setattr(stages, "decode", recorded)
    mesh, policy = Layout(1, 4, 2).mesh(), decoder_policy(replace(MODEL.shape, vocabulary=vocabulary))
    params = policy.init(jax.random.key(0))
    params = jax.tree.map(place, params, weight_shardings(params, mesh))
    prompts = place_prompts(MODEL.tokenizer.encode_all(["one", "two", "three", "four"], 32), mesh)
    Sampler(ends=(0,), responses=3, max_tokens=4)(policy, params, prompts, jax.random.key(0))
    constraint = rf'sharding_constraint .*"tensor".* : tensor<4x3x{vocabulary}xf32>'
    assert programs and all(re.search(constraint, program) for program in programs)


@pytest.mark.parametrize("more", [{}, pytest.param({"minibatches": 2}, marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize("at_once", [pytest.param(8, marks=pytest.mark.long), 2])
def test_groups_on_several_devices_may_be_learned_from_one_at_a_time_and_in_minibatches(more, at_once):
    more = more | {"responses_at_once": at_once}
    assert_same(one_step(None, 4, **more), one_step((1, 4, 2), 4, **more))


def test_a_group_is_spread_over_as_few_devices_as_needed():
    mesh = Layout(data=1, fsdp=8).mesh()
    assert [devices_per_group(prompts, 8, mesh) for prompts in (16, 8, 4, 6, 3)] == [1, 1, 2, 4, 8]
    with pytest.raises(
        ValueError, match="multiple of 8, or the responses to each a multiple of 4; got 6 prompts and 6"
    ):
        devices_per_group(6, 6, mesh)
