"""Scoring beside sampling: a group is judged when its last response ends, and all else is as if it came after."""

import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
import slow_rewards

import grpo_jax as gj
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.models import tiny
from grpo_jax.rewards import Guarded, Mix, workers
from grpo_jax.rollout import stages
from grpo_jax.rollout.buffer import ResponseBuffer
from grpo_jax.scoring import EarlyScoring, chosen_tokens, score_rollouts

MODEL = tiny(remat="none")
ONE = Layout().mesh(jax.devices()[:1])
PARAMS = MODEL.params(ONE)
TEXTS = ["a", "What is 2 + 2?", "Name three colours.", "Hi"]
EXAMPLES = [gj.Example(text, "e") for text in TEXTS]
PROMPTS = MODEL.tokenizer.encode_all(TEXTS, max_tokens=64)
ENDS = tuple(range(0, 257, 12))  # many tokens end a response, so that the groups of a random model end one by one
SAMPLER = gj.Sampler(ENDS, responses=3, max_tokens=48)


async def evens(example: gj.Example, response: str) -> float:
    await asyncio.sleep(0.01)
    return sum(ord(letter) % 2 == 0 for letter in response) / 10


async def ranked(example: gj.Example, responses: list[str]) -> list[dict]:
    return [{"place": sorted(responses).index(text), "length": len(text) if text else None} for text in responses]


async def of_verifiers(completion, answer) -> float:
    return float(answer in completion)


async def noted(completion_ids, log_extra, log_metric, **kwargs) -> list[float]:
    log_extra("tokens", [len(ids) for ids in completion_ids])
    log_metric("first", len(completion_ids[0]))
    return [float(len(ids)) for ids in completion_ids]


def after(example: gj.Example, response: str) -> float:
    return float(len(response))


def build(*rewards, sampler=SAMPLER) -> gj.Algorithm:
    mix = Mix(tuple((reward, 1.0) for reward in rewards))
    return gj.Algorithm(
        MODEL.policy, sampler, MODEL.tokenizer.decode, mix, gj.objectives.dapo(), gj.adamw(1e-2, warmup_steps=1)
    )


def told(algorithm: gj.Algorithm, prompts=PROMPTS, params=PARAMS, examples=EXAMPLES) -> tuple:
    """What was sampled, and what it earned with scoring beside sampling."""
    state, key = gj.init(algorithm, jax.tree.map(jax.numpy.copy, params)), jax.random.key(0)
    with EarlyScoring(algorithm, prompts, examples) as early:
        rollouts = gj.sample(algorithm, state, prompts, examples, key, early=early)
        return rollouts, gj.score(algorithm, rollouts, examples, early=early), early


def assert_same(one, other) -> None:
    np.testing.assert_array_equal(one.parts_PGR, other.parts_PGR)
    assert (one.columns, one.texts, one.extras) == (other.columns, other.texts, other.extras)
    assert one.metrics == other.metrics


@pytest.mark.parametrize("at_once", [None, 2])
def test_early_scoring_gives_what_scoring_afterwards_gives(at_once):
    rewards = (evens, after, ranked, noted, of_verifiers, Guarded(slow_rewards.of_group, workers=2))
    sampler = gj.Sampler(ENDS, responses=3, max_tokens=48, at_once=at_once)
    algorithm, other = build(*rewards, sampler=sampler), build(*rewards, sampler=sampler)
    rollouts, beside, early = told(algorithm)
    assert {r: sorted(calls) for r, calls in early.calls.begun.items()} == {
        0: [*range(12)],
        2: [*range(4)],
        4: [*range(12)],
        5: [*range(4)],
    }
    assert_same(beside, gj.score(other, rollouts, EXAMPLES))
    assert beside.columns[2:4] == ("ranked/place", "ranked/length") and len(beside.extras["tokens"]) == 4
    alone = sampler(MODEL.policy, PARAMS, PROMPTS, jax.random.key(0))
    for name in ("tokens_PGT", "action_PGT", "logprobs_PGT", "entropy_PGT", "ended_PG"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(rollouts, name))


def test_a_group_is_judged_before_the_others_have_been_sampled(monkeypatch):
    """Each stage after the first group has ended waits until its reward has been called."""
    begun, called, later = [], threading.Event(), []
    decode = stages.decode

    async def judged(example, response):
        called.set()
        return 1.0

    def decode_later(*inputs):
        if begun:
            assert called.wait(60)
            later.append(1)
        return decode(*inputs)

    algorithm = build(judged)
    monkeypatch.setattr(stages, "decode", decode_later)
    monkeypatch.setattr(EarlyScoring, "_begin", lambda *given, begin=EarlyScoring._begin: begun.append(begin(*given)))
    told(algorithm)
    assert len(begun) == 4 and later


def test_nothing_is_asked_of_a_sampler_whose_rewards_need_all_responses(monkeypatch):
    untils = []
    decode = stages.decode
    monkeypatch.setattr(stages, "decode", lambda *inputs: untils.append(inputs[7]) or decode(*inputs))
    _, _, early = told(build(after, noted))
    assert early.heard is None and not early.calls.begun
    assert {until.cursor for until in untils} == {2**30}


def test_a_group_on_two_devices_is_told_once_when_both_have_ended():
    """Two prompts with four responses each, of which each device writes two."""
    buffer = ResponseBuffer(P=4, G=2, T=3, held=4, padding=0)
    buffer.tokens_PGT[:] = np.arange(24).reshape(4, 2, 3)
    buffer.length_PG[:] = [[1, 2], [3, 0], [0, 1], [1, 1]]
    assert list(buffer.newly_complete(2)) == []
    buffer.length_PG[1, 1] = 1
    assert list(buffer.newly_complete(2)) == [(0, [[0], [3, 4], [6, 7, 8], [9]])]
    buffer.length_PG[2, 0] = 2
    assert list(buffer.newly_complete(2)) == [(1, [[12, 13], [15], [18], [21]])]
    assert list(buffer.newly_complete(2)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "prompts"),
    [
        pytest.param((8, 1, 1), 8, marks=pytest.mark.long),
        ((1, 8, 1), 6),
        pytest.param((2, 2, 2), 2, marks=pytest.mark.long),
    ],
)
def test_groups_on_several_devices_are_told_once_and_whole(layout, prompts):
    mesh = Layout(*layout).mesh()
    examples = [gj.Example(f"{n} plus {n + 1} is?", str(n)) for n in range(prompts)]
    encoded = place_prompts(MODEL.tokenizer.encode_all([example.prompt for example in examples], 32), mesh)
    algorithm = build(evens, sampler=gj.Sampler(ENDS, responses=8, max_tokens=24))
    rollouts, beside, early = told(algorithm, encoded, MODEL.params(mesh), examples)
    assert [early.ids[p] for p in range(prompts)] == chosen_tokens(rollouts)
    assert len(early.calls.begun[0]) == prompts * 8
    assert_same(beside, gj.score(algorithm, rollouts, examples))


def test_groups_that_a_stop_string_ends_are_told_as_they_are_returned():
    decode = MODEL.tokenizer.decode
    sampler = gj.Sampler(ENDS, responses=3, max_tokens=48, stop=("t", "o", "n"), decode=decode)
    rollouts, _, early = told(build(evens, sampler=sampler))
    assert [early.ids[p] for p in range(4)] == chosen_tokens(rollouts)


def test_an_error_names_the_response_that_it_names_without_early_scoring():
    async def fails(example, response):
        if example.prompt == TEXTS[2]:
            raise KeyError("missing")
        return 1.0

    async def of_group(example, responses):
        return [1.0] * (len(responses) - (example.prompt == TEXTS[1]))

    for reward, place in ((fails, r"failed on example 2, response \d: KeyError"), (of_group, "got 2 for example 1")):
        algorithm = build(reward)
        rollouts = SAMPLER(MODEL.policy, PARAMS, PROMPTS, jax.random.key(0))
        with pytest.raises(ValueError, match=place) as late:
            gj.score(algorithm, rollouts, EXAMPLES)
        with pytest.raises(ValueError, match=place) as early:
            told(algorithm)
        assert str(early.value) == str(late.value)


def test_a_reward_that_cannot_be_called_is_refused_by_scoring_on_all_hosts_at_once():
    """Not by sampling, in which other hosts would wait."""
    algorithm = build(Guarded(lambda example, response: 1.0, workers=1))
    state = gj.init(algorithm, jax.tree.map(jax.numpy.copy, PARAMS))
    with EarlyScoring(algorithm, PROMPTS, EXAMPLES) as early:
        rollouts = gj.sample(algorithm, state, PROMPTS, EXAMPLES, jax.random.key(0), early=early)
        assert not early.calls.begun
        with pytest.raises(ValueError, match="cannot be sent to them"):
            gj.score(algorithm, rollouts, EXAMPLES, early=early)


def test_ctrl_c_while_sampling_leaves_no_reward_running(monkeypatch):
    ended, decode = threading.Event(), stages.decode
    guarded = Guarded(slow_rewards.waits, workers=2)

    async def hangs(example, response):
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    def interrupted(*inputs):
        if early.calls.begun:
            raise KeyboardInterrupt
        return decode(*inputs)

    algorithm = build(hangs, guarded)
    state = gj.init(algorithm, jax.tree.map(jax.numpy.copy, PARAMS))
    monkeypatch.setattr(stages, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt), EarlyScoring(algorithm, PROMPTS, EXAMPLES) as early:
        gj.sample(algorithm, state, PROMPTS, EXAMPLES, jax.random.key(0), early=early)
    assert all(future.cancelled() for calls in early.calls.begun.values() for future in calls.values())
    assert ended.wait(60)
    pool, end = workers._pools[guarded], time.monotonic() + 60
    while any(worker.call is not None for worker in pool.workers):
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass
class Telling:
    """An engine that tells of other responses than it returns."""

    inner: gj.Sampler
    heard: list = field(default_factory=list)
    responses: int = 3

    def __call__(self, policy, params, prompts, key, examples=(), heard=None):
        if heard is not None:
            heard(1, [[65], [66, 256], [67]])
        return self.inner(policy, params, prompts, key)

    def greedy(self):
        return None

    def with_room(self, policy, prompts, multiple):
        return self

    def check(self, policy, prompts) -> None:
        pass


def test_an_engine_that_tells_of_other_responses_than_it_returns_is_refused():
    with pytest.raises(ValueError, match=r"called `heard` for prompt 1 with other responses than it then returned"):
        told(build(evens, sampler=Telling(SAMPLER)))


def test_an_evaluation_is_scored_beside_sampling_too():
    whole = build(evens, sampler=gj.Sampler(ENDS, responses=3, max_tokens=48))
    rollouts = whole.engine.greedy()(MODEL.policy, PARAMS, PROMPTS, jax.random.key(0))
    expected = score_rollouts(whole, rollouts, EXAMPLES, 0).parts_PGR.mean()
    assert gj.evaluate(whole, MODEL, EXAMPLES, PARAMS)["reward"] == pytest.approx(expected)


BLOCKED = """
import re, sys, time
from grpo_jax.rewards import deadline
deadline.GRACE = 1.0
with deadline.interpreter_watched(1.0):
    time.sleep(4.0)
print("still here", flush=True)
with deadline.interpreter_watched(None):
    pass
with deadline.interpreter_watched(1.0):
    time.sleep(1.5)
    re.fullmatch(r"(a+)+b", "a" * 60)
"""


@pytest.mark.slow
def test_a_reward_that_blocks_the_interpreter_beside_sampling_ends_the_process():
    ended = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1 and ended.stdout == "still here\n"
    assert "fullmatch" in ended.stderr
