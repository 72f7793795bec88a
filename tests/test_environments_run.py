"""Trainings with environments: prompts, rewards of turns, records; a sampler that reads all again is the engine."""

import json
from dataclasses import replace

import numpy as np
import pytest
from misbehaving import AlwaysFailing, Counting, Misbehaving, multiply
from reading_again import ReadingAgain

import grpo_jax as gj
from grpo_jax.algorithm import Algorithm
from grpo_jax.environments import Bounded, tools
from grpo_jax.evaluation.offered import with_environment
from grpo_jax.models import tiny
from grpo_jax.objectives.presets import dapo
from grpo_jax.optimizers import adamw
from grpo_jax.rewards import Batch, Conversation, Example, Mix, Steps, environment, judge, place_steps, score
from grpo_jax.rewards.signatures import Kind, kind_of
from grpo_jax.rewards.steps import TokenCount
from grpo_jax.rollout import Sampler
from grpo_jax.tasks import Task
from grpo_jax.training import Run, RunDirectory, Settings, train

MODEL = tiny()
EXAMPLES = tuple(Example(f"{n}?", str(n)) for n in range(16))


def turns(example, conversation):
    """How many replies there were."""
    return float(len(conversation.replies))


def length(example, response):
    """The characters of the last reply."""
    return float(len(response))


def algorithm_of(reward, **changes):
    sampler = Sampler(MODEL.tokenizer.end_ids, responses=2, max_tokens=96, min_tokens=1)
    sampler = replace(sampler, **changes)
    return Algorithm(MODEL.policy, ReadingAgain(sampler), MODEL.tokenizer.decode, reward, dapo(), adamw())


def test_a_reward_that_asks_for_a_conversation_gets_it():
    assert kind_of(turns) is Kind.CONVERSATION and kind_of(environment) is Kind.CONVERSATION
    assert kind_of(lambda completions, conversation: []) is Kind.TRL
    talks = [[Conversation([{"role": "assistant", "content": "a"}] * n, [1.0] * n, [2] * n) for n in (1, 3)]]
    batch = Batch(EXAMPLES[:1], [["a", "a"]], [[[5] * 2, [5] * 6]], None, talks)
    assert [batch.conversation(0, g) for g in (0, 1)] == talks[0]
    # A response of one turn is a conversation of one reply.
    np.testing.assert_array_equal(score(turns, EXAMPLES[:1], [["hello", ""]])[..., 0], [[1, 1]])
    rewards_PGR, steps = judge(environment, EXAMPLES[:1], [["hello"]], [[[1, 2, 3]]])
    assert rewards_PGR.tolist() == [[[0.0]]] and steps == {(0, 0): [(3, 0.0)]}


def test_rewards_of_turns_stand_at_the_last_token_of_each_reply():
    talk = Conversation([{"role": "assistant", "content": "x"}] * 2, [0.5, -1.0], [2, 3])
    found = environment(EXAMPLES[0], talk)
    assert found.total == -0.5 and list(found.ends) == [2, 5] and isinstance(found.ends[0], TokenCount)
    assert environment(EXAMPLES[0], replace(talk, rewards=[None, 1.0])) is None
    action_PGT = np.array([[[True, True, False, False, True, True, True, False]]])
    pairs = {(0, 0): list(zip(found.ends, found.rewards, strict=True))}
    nan = np.nan
    placed = place_steps(pairs, [[[1, 2, 3, 4, 5]]], str, action_PGT, [[talk]])
    np.testing.assert_array_equal(placed[0, 0], [nan, 0.5, nan, nan, nan, nan, -1.0, nan])
    # Steps in characters are those of the last reply, which a reward of one turn has seen.
    steps = {(0, 0): [(1, 2.0), (3, 3.0)]}
    last = place_steps(steps, [[[1, 2, 3, 4, 5]]], lambda ids: "".join(map(str, ids)), action_PGT, [[talk]])
    np.testing.assert_array_equal(last[0, 0], [nan, nan, nan, nan, 2.0, nan, 3.0, nan])
    assert Steps([1.0], [3]).total == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    reward = Mix(((turns, 1.0), (length, 0.0), (environment, 1.0)))
    task = Task(EXAMPLES, EXAMPLES[:8], reward, Bounded(Counting(), turns=3, workers=2))
    settings = Settings(steps=2, prompts=8, evaluate_every=2, max_prompt_tokens=64)
    root = tmp_path_factory.mktemp("runs")
    return RunDirectory(train(MODEL, task, algorithm_of(reward), settings, run=Run("talk", str(root))).path)


def test_a_training_converses_and_records_it(run):
    rows = [json.loads(line) for path in sorted(run.path.glob("completions/*")) for line in path.open()]
    assert len(rows) == 2 * 8 * 2
    for row in rows:
        said = [message["content"] for message in row["conversation"] if message["role"] == "assistant"]
        assert row["rewards/turns"] == len(said) == len(row["turn_rewards"])
        assert row["rewards/length"] == len(said[-1]) and row["completion"] == said[-1]
        assert row["rewards/environment"] == sum(row["turn_rewards"])
        assert row["stop_reason"] in ("turns", "tokens") and row["errors"] == []
        assert row["prompt"][-1]["content"].startswith(f"begin {row['answer']} ")
    metrics = [row for row in run.metrics() if row["step"] > 0]
    assert all(1 <= row["environment/turns"] <= 3 for row in metrics)
    assert all(row["environment/ended_by_turns"] + row["environment/ended_by_tokens"] == 1 for row in metrics)
    np.testing.assert_allclose(
        metrics[0]["environment/turns"], np.mean([row["rewards/turns"] for row in rows[:16]]), rtol=1e-6
    )


def test_a_failed_step_leaves_its_response_without_a_score(tmp_path):
    reward = Mix(((turns, 1.0),))
    task = Task(EXAMPLES, (), reward, Bounded(AlwaysFailing(), turns=2, workers=2))
    settings = Settings(steps=1, prompts=8, evaluate_every=0, max_prompt_tokens=64)
    path = train(MODEL, task, algorithm_of(reward), settings, run=Run("failing", str(tmp_path))).path
    rows = [json.loads(line) for path in path.glob("completions/*") for line in path.open()]
    assert [row["stop_reason"] for row in rows] == ["error"] * 16
    assert [row["reward"] for row in rows] == [None] * 16


def test_tools_are_told_of_in_words_where_the_template_knows_none():
    task = Task(
        [Example([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}])],
        (),
        Mix(((turns, 1.0),)),
    )
    model, told, bounded = with_environment(MODEL, replace(task, environment=tools(multiply, turns=2)))
    (example,) = told.train
    assert model is MODEL and bounded.turns == 2
    assert example.prompt[0]["content"].endswith("\nBe brief.") and '"multiply"' in example.prompt[0]["content"]
    assert with_environment(MODEL, task) == (MODEL, task, None)


def test_what_cannot_work_is_refused_before_anything_is_compiled(tmp_path):
    reward, settings = Mix(((turns, 1.0),)), Settings(steps=1, prompts=8, evaluate_every=0)
    task = Task(EXAMPLES, (), reward, Misbehaving(True))
    with pytest.raises(ValueError, match="cannot begin with the example '0\\?': ValueError: no beginning"):
        train(MODEL, task, algorithm_of(reward), settings, run=Run("never", str(tmp_path)))
    assert gj.Task is Task
