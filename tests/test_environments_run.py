"""Trainings with environments: prompts, rewards of turns, records; a sampler that reads all again is the engine."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from misbehaving import Counting, Misbehaving, multiply
from reading_again import ReadingAgain, Saying

import grpo_jax as gj
from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout
from grpo_jax.environments import Bounded, tools
from grpo_jax.evaluation.answering import evaluate
from grpo_jax.evaluation.offered import with_environment
from grpo_jax.models import tiny
from grpo_jax.objectives.presets import dapo
from grpo_jax.optimizers import adamw
from grpo_jax.rewards import Batch, Conversation, Example, Mix, Steps, environment, judge, place_steps, score
from grpo_jax.rewards.signatures import Kind, kind_of
from grpo_jax.rewards.steps import TokenCount
from grpo_jax.rollout import Sampler, as_engine
from grpo_jax.saved.directory import RunDirectory
from grpo_jax.structs import TrainState
from grpo_jax.tasks import Task
from grpo_jax.training import Run, Settings, train
from grpo_jax.training.asking import ask
from grpo_jax.training.session import Questions, Session

MODEL = tiny()
EXAMPLES = tuple(Example(f"{n}?", str(n)) for n in range(16))


ONE = Layout().mesh(jax.devices()[:1])
STATE = TrainState(jnp.zeros((), jnp.int32), {}, None)


def turns(example, conversation):
    """How many replies there were."""
    return float(len(conversation.replies))


def length(example, response):
    """The characters of the last reply."""
    return float(len(response))


MIX = Mix(((turns, 1.0), (length, 0.0), (environment, 1.0)))


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


def session_of(environment, texts, reward=MIX):
    """A session whose rows say these texts, without sampling from a model."""

    def encode(text):
        return MODEL.tokenizer.backend(text, add_special_tokens=False)["input_ids"]

    engine = Saying(encode, MODEL.tokenizer.end_ids[0], texts)
    algorithm = Algorithm(MODEL.policy, engine, MODEL.tokenizer.decode, reward, dapo(), adamw())
    settings = Settings(steps=8, prompts=2, max_prompt_tokens=64)
    questions = Questions(EXAMPLES, MODEL, 64, environment)
    return Session(settings, MODEL, ONE, algorithm, questions, held_out=None)


def test_a_step_asks_conversations_and_scores_them():
    session = session_of(Bounded(Counting(), turns=3, workers=2), (("1", "2", "3"), ("4", "bye")))
    answers = ask(session, STATE, 0, set(), nullcontext)
    rewards, rollouts = answers.rewards, answers.rollouts
    assert rewards.parts_PGR.tolist() == [[[3, 1, 6], [2, 3, 4]]] * 2
    assert rewards.texts == [["3", "bye"]] * 2
    assert rewards.extras["stop_reason"] == [["turns", "done"]] * 2
    assert rewards.extras["turn_rewards"] == [[[1, 2, 3], [4, 0]]] * 2
    assert rewards.metrics["environment/turns"] == 2.5 and rewards.metrics["environment/ended_by_done"] == 0.5
    begun = [example.prompt[-1]["content"] for example in rewards.examples]
    assert [text.split()[1] for text in begun] == [str(index) for index in answers.indices]
    # The rewards of turns are at the ends of their replies, and no token of the environment has any.
    steps_PGT, action_PGT = np.asarray(rewards.steps_PGT), np.asarray(rollouts.action_PGT)
    tokens_PGT = np.asarray(rollouts.tokens_PGT)
    assert (tokens_PGT[~np.isnan(steps_PGT)] == MODEL.tokenizer.end_ids[0]).all()
    assert steps_PGT[~np.isnan(steps_PGT)].tolist() == [1, 2, 3, 4, 0] * 2
    assert np.isnan(steps_PGT[~action_PGT]).all()
    assert action_PGT.sum(axis=2).tolist() == [[6, 6]] * 2 and (~action_PGT & np.asarray(rollouts.valid_PGT)).any()


def test_the_same_seed_begins_the_same_conversations_and_another_step_others():
    session = session_of(Bounded(Counting(), turns=2, workers=2), (("1", "2"),))
    first, again, other = (session.questions.begin([3, 5], seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert [each.messages for each in first.begun] == [each.messages for each in again.begun]
    assert [each.messages for each in first.begun] != [each.messages for each in other.begun]
    np.testing.assert_array_equal(first.prompts.tokens_PL, again.prompts.tokens_PL)
    (alone,) = session.questions.begin([5], (0, 1)).begun
    assert alone.messages == first.begun[1].messages  # whatever else is asked with it


def test_a_failed_step_leaves_its_response_without_a_score():
    session = session_of(Bounded(Misbehaving(), turns=2, workers=2), (("go", "raise"), ("go", "go")))
    rewards = ask(session, STATE, 0, set(), nullcontext).rewards
    assert np.isnan(rewards.parts_PGR[:, 0]).all() and (rewards.parts_PGR[:, 1, 0] == 2).all()
    assert rewards.extras["stop_reason"] == [["error", "turns"]] * 2
    assert np.isnan(np.asarray(rewards.steps_PGT)[:, 0]).all()


def test_an_evaluation_converses_too():
    session = session_of(None, (("5", "bye"),), Mix(((turns, 1.0), (environment, 1.0))))
    bounded = Bounded(Counting(), workers=2)
    found = evaluate(session.algorithm, MODEL, EXAMPLES[:2], MODEL.params(ONE), environment=bounded)
    assert found["rewards/turns/mean"] == 2 and found["rewards/environment/mean"] == 5
    assert found.answers[0]["stop_reason"] == "done" and len(found.answers[0]["conversation"]) == 4


def test_an_engine_that_cannot_converse_is_refused():
    session = session_of(Bounded(Counting()), (("5",),))
    for engine in (Alone(), as_engine(lambda policy, params, prompts, key: None)):
        algorithm = replace(session.algorithm, sample=replace(engine, responses=1))
        with pytest.raises(ValueError, match=r"environment.*`partner`"):
            ask(replace(session, algorithm=algorithm), STATE, 0, set(), nullcontext)


@dataclass(frozen=True)
class Alone:
    """An engine that takes no partner."""

    responses: int = 1

    def greedy(self):
        return self

    def with_room(self, policy, prompts, multiple):
        return self

    def check(self, policy, prompts):
        """There is room for anything."""

    def __call__(self, policy, params, prompts, key, examples=()):
        raise AssertionError


@pytest.mark.slow
@pytest.mark.long
def test_a_training_converses_and_records_it(tmp_path):
    task = Task(EXAMPLES, EXAMPLES[:8], MIX, Bounded(Counting(), turns=3, workers=2))
    sampler = Sampler(MODEL.tokenizer.end_ids, responses=2, max_tokens=96)
    algorithm = Algorithm(MODEL.policy, ReadingAgain(sampler), MODEL.tokenizer.decode, MIX, dapo(), adamw())
    settings = Settings(steps=2, prompts=8, evaluate_every=2, max_prompt_tokens=64)
    run = RunDirectory(train(MODEL, task, algorithm, settings, run=Run("talk", str(tmp_path))).path)
    rows = [json.loads(line) for path in sorted(run.path.glob("completions/step*")) for line in path.open()]
    assert len(rows) == 2 * 8 * 2
    for row in rows:
        said = [message["content"] for message in row["conversation"] if message["role"] == "assistant"]
        assert row["rewards/turns"] == len(said) == len(row["turn_rewards"]) and row["completion"] == said[-1]
        assert row["stop_reason"] in ("turns", "tokens") and row["errors"] == []
        assert row["prompt"][-1]["content"].startswith(f"begin {row['answer']} ")
    turns_of = [
        float(row["environment/turns"]) for row in map(json.loads, (run.path / "metrics.jsonl").open()) if row["step"]
    ]
    np.testing.assert_allclose(turns_of[0], np.mean([row["rewards/turns"] for row in rows[:16]]), rtol=1e-6)


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
        train(MODEL, task, session_of(None, (("5",),) * 8, reward).algorithm, settings, run=Run("never", str(tmp_path)))
    assert gj.Task is Task
