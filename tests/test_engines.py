"""Engines: any function answers prompts, trains and evaluates on any mesh; an object may say more about itself."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.cli import main
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place, place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.models import tiny
from grpo_jax.structs import Rollouts

MODEL = tiny(remat="none")
EXAMPLES = [gj.Example(f"Say {letter}", letter) for letter in "abcdefgh"]
PROMPTS = MODEL.tokenizer.encode_all([example.prompt for example in EXAMPLES], max_tokens=64)


def one_token(policy, params, prompts, key):
    """Four responses of one token to each prompt, read off the last hidden state of the prompt."""
    last_PD, _ = policy.read(params, prompts)
    P, G = len(prompts.tokens_PL), 4
    logprobs_PV = jax.nn.log_softmax(policy.unembed(params, last_PD))
    tokens_PG = jax.random.categorical(key, logprobs_PV[:, None], shape=(P, G))
    chosen_PG = jnp.take_along_axis(logprobs_PV, tokens_PG, axis=1)
    all_PG1, numbers_PG1 = np.ones((P, G, 1), bool), np.asarray(chosen_PG)[..., None]
    tokens_PG1, ended_PG = np.asarray(tokens_PG)[..., None].astype(np.int32), np.zeros((P, G), bool)
    return Rollouts(prompts, tokens_PG1, all_PG1, all_PG1, numbers_PG1, 0 * numbers_PG1, ended_PG, Distribution())


def even(example: gj.Example, response: str) -> float:
    return float(sum(ord(letter) % 2 == 0 for letter in response))


def build(sample=one_token, **changes) -> gj.Algorithm:
    optimizer = gj.adamw(1e-2, warmup_steps=1, epsilon=1e-3)  # or rounding turns the sign of a step of a tiny gradient
    parts = {"objective": gj.objectives.dapo(), "optimizer": optimizer} | changes
    return gj.Algorithm(MODEL.policy, sample, MODEL.tokenizer.decode, even, **parts)


def trained(mesh, steps: int) -> tuple[list[float], dict[str, float]]:
    """The rewards of each step on these devices, and the evaluation of what was learned."""
    algorithm = build()
    state = gj.init(algorithm, MODEL.params(mesh))
    state = jax.tree.map(place, state, weight_shardings(state, mesh))
    prompts, rewards = place_prompts(PROMPTS, mesh), []
    for index in range(steps):
        key = jax.random.fold_in(jax.random.key(0), index)
        state, metrics = gj.step(algorithm, state, prompts, EXAMPLES, key)
        rewards.append(float(metrics["reward"]))
    return rewards, gj.evaluate(algorithm, MODEL, EXAMPLES, state.params)


@pytest.mark.slow
def test_a_function_trains_and_evaluates_on_a_mesh_of_eight_devices_as_on_one():
    alone, evaluated = trained(Layout().mesh(jax.devices()[:1]), 12)
    rewards, also = trained(Layout(2, 2, 2).mesh(), 12)
    np.testing.assert_allclose(rewards, alone, atol=1e-6)
    assert also == pytest.approx(evaluated, abs=1e-6)
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2
    assert evaluated["reward"] > np.mean(rewards[:3])


def test_an_engine_that_asks_for_examples_gets_those_of_its_prompts():
    seen = []

    def engine(policy, params, prompts, key, examples):
        lengths_P = np.asarray(prompts.valid_PL).sum(axis=1)
        expected = [len(MODEL.tokenizer.encode(example.prompt)) for example in examples]
        assert lengths_P.tolist() == expected
        seen.extend(example.answer for example in examples)
        return one_token(policy, params, prompts, key)

    algorithm = build(engine)
    state = gj.init(algorithm, MODEL.params(Layout().mesh(jax.devices()[:1])))
    gj.sample(algorithm, state, PROMPTS, EXAMPLES, jax.random.key(0))
    assert seen == list("abcdefgh")


@dataclass
class Whole:
    """An engine with the whole protocol, made of the native sampler; it notes what it is asked for."""

    inner: gj.Sampler
    asked: list = field(default_factory=list)

    @property
    def responses(self) -> int:
        return self.inner.responses

    def __call__(self, policy, params, prompts, key, examples=()) -> Rollouts:
        self.asked.append(("sample", self.responses))
        return self.inner(policy, params, prompts, key)

    def greedy(self) -> "Whole":
        return Whole(self.inner.greedy(), self.asked)

    def with_room(self, policy, prompts, multiple) -> "Whole":
        self.asked.append(("room", multiple))
        return self

    def check(self, policy, prompts) -> None:
        self.asked.append(("check", len(prompts.tokens_PL)))


@pytest.mark.slow
def test_an_object_with_the_whole_protocol_is_used_as_it_is():
    engine = Whole(gj.Sampler(MODEL.tokenizer.end_ids, responses=4, max_tokens=3))
    assert isinstance(engine, gj.Engine) and gj.as_engine(engine) is engine
    algorithm = build(engine, objective=gj.objectives.remax())
    state = gj.init(algorithm, MODEL.params(Layout().mesh(jax.devices()[:1])))
    rollouts = gj.sample(algorithm, state, PROMPTS, EXAMPLES, jax.random.key(0))
    assert engine.asked == [("sample", 4), ("sample", 1)]
    assert rollouts.greedy.tokens_PGT.shape == (8, 1, 3)
    rewards = gj.score(algorithm, rollouts, EXAMPLES)
    assert rewards.greedy_P1R.shape == (8, 1, 1)
    gj.evaluate(algorithm, MODEL, EXAMPLES, state.params)
    assert engine.asked[2:] == [("room", 1), ("sample", 1)]


def test_a_function_cannot_be_asked_for_greedy_baselines():
    with pytest.raises(ValueError, match="compares with greedy answers, which this engine cannot give"):
        build(objective=gj.objectives.remax())


@pytest.mark.slow
def test_a_config_names_an_engine(tmp_path, monkeypatch, capsys):
    """What a config names is called with the end tokens and the tokenizer's `decode`, and gives the engine."""
    (tmp_path / "my_engines.py").write_text(
        "import grpo_jax as gj\n\n\n"
        "def short(ends, decode, tokens: int = 2):\n"
        "    sampler = gj.Sampler(ends, responses=4, max_tokens=tokens)\n"
        "    return lambda policy, params, prompts, key: sampler(policy, params, prompts, key)\n"
    )
    (tmp_path / "config.yaml").write_text(
        "model: {name: tiny}\n"
        "task: {use: arithmetic, train: 16, held_out: 4, largest: 9}\n"
        "rollout: {use: 'my_engines:short', tokens: 3}\n"
        "train: {steps: 1, prompts: 8}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["train", "config.yaml"]) == 0
    run = gj.RunDirectory("runs/grpo")
    assert len(run.answers(1)) == 8 * 4
    assert [row["step"] for row in run.metrics()] == [0, 1]
    assert "1 prompt(s) a device" in capsys.readouterr().out


def test_rollouts_of_a_function_are_divided_by_prompts_over_the_mesh():
    mesh = Layout(2, 2, 2).mesh()
    algorithm = build()
    state = gj.init(algorithm, MODEL.params(mesh))
    rollouts = gj.sample(algorithm, state, place_prompts(PROMPTS, mesh), EXAMPLES, jax.random.key(0))
    assert rollouts.tokens_PGT.sharding.shard_shape((8, 4, 1)) == (2, 4, 1)
