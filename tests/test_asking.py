"""Which prompts a step learns from: groups that differ are looked for in other prompts, and solved ones stay out."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_metrics_page import unexplained

from grpo_jax.algorithm import Algorithm
from grpo_jax.cli import main
from grpo_jax.devices.mesh import Layout
from grpo_jax.distribution import Distribution
from grpo_jax.models import tiny
from grpo_jax.objectives import dapo
from grpo_jax.rewards import Mix
from grpo_jax.structs import Rollouts, TrainState
from grpo_jax.tasks import Example
from grpo_jax.training.asking import Answers, ask
from grpo_jax.training.order import pick
from grpo_jax.training.record import Record
from grpo_jax.training.session import Questions, Session, Settings

ONE = Layout().mesh(jax.devices()[:1])
MODEL = tiny()
STATE = TrainState(jnp.zeros((), jnp.int32), {}, None)
DIFFER, AGREE, HALF = (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)
NAN = float("nan")


@dataclass
class Engine:
    """Answers g to the g-th time a prompt is asked, with log-probs that no other answer has; keeps what it was asked.

    Reading nothing but prompts, it needs no model.
    """

    responses: int = 2
    asked: list = field(default_factory=list)

    def greedy(self) -> "Engine":
        return Engine(1)

    def with_room(self, policy, prompts, multiple) -> "Engine":
        return self

    def check(self, policy, prompts) -> None:
        """There is room for anything."""

    def __call__(self, policy, params, prompts, key, examples=()) -> Rollouts:
        P, G = len(prompts.tokens_PL), self.responses
        self.asked.append(np.asarray(prompts.valid_PL).sum(axis=1).tolist())
        tokens_PGT = jnp.broadcast_to(jnp.arange(G, dtype=jnp.int32)[None, :, None] + ord("0"), (P, G, 3))
        action_PGT = jnp.broadcast_to(jnp.arange(3)[None, None] < 1, (P, G, 3))
        logprobs_PGT = -jax.random.uniform(key, (P, G, 3)) * action_PGT
        ended_PG = jax.random.uniform(key, (P, G)) < 0.5
        return Rollouts(
            prompts, tokens_PGT, action_PGT, action_PGT, logprobs_PGT, 2 * logprobs_PGT, ended_PG, Distribution()
        )


def session_of(groups: list[tuple[float, ...]], prompts: int = 2, resample: int = 1, lengthen=()) -> Session:
    """A session whose n-th example has the n-th group of rewards, and a prompt of a length of its own.

    Some prompts are longer than all others.
    """
    lengths = [1 + place + 40 * (place in lengthen) for place in range(len(groups))]
    examples = [Example("x" * length, str(place)) for place, length in enumerate(lengths)]

    def reward(example: Example, response: str) -> float | None:
        value = groups[int(example.answer)][int(response)]
        return None if np.isnan(value) else value

    algorithm = Algorithm(
        policy=MODEL.policy,
        sample=Engine(len(groups[0])),
        decode=MODEL.tokenizer.decode,
        reward=reward,
        objective=dapo(),
        optimizer=optax.sgd(1.0),
    )
    settings = Settings(steps=8, prompts=prompts, resample=resample)
    questions = Questions(examples, MODEL, 128)
    return Session(settings, MODEL, ONE, algorithm, questions, held_out=None)


def rounds_of(session: Session) -> int:
    return len(session.algorithm.sample.asked)


def rewards_of(answers: Answers) -> list[tuple[float, ...]]:
    return [tuple(rewards_G) for rewards_G in answers.rewards.parts_PGR[:, :, 0].tolist()]


def first_asked(examples: int, prompts: int, index: int = 0) -> list[int]:
    return pick(0, index, prompts, examples)


def groups_where(chosen: list[int], there: tuple[float, ...], elsewhere: tuple[float, ...], examples: int) -> list:
    """Rewards of all examples: some for those that are asked first, others for the rest."""
    return [there if place in chosen else elsewhere for place in range(examples)]


# Resampling.


def test_without_resampling_a_step_learns_from_those_whose_turn_it_is():
    session = session_of([AGREE] * 6)
    answers = ask(session, STATE, 1, set(), nullcontext)
    asked = answers.indices
    assert asked == pick(0, 1, 2, 6)
    assert [example.answer for example in answers.rewards.examples] == [str(place) for place in asked]
    assert rounds_of(session) == 1


def test_prompts_whose_groups_agree_make_room_for_others():
    first = first_asked(6, 2)
    session = session_of(groups_where(first, AGREE, DIFFER, 6), resample=10)
    answers = ask(session, STATE, 0, set(), nullcontext)
    asked = answers.indices
    assert rewards_of(answers) == [DIFFER, DIFFER]
    assert not set(asked) & set(first)
    assert rounds_of(session) == 2


def test_a_group_that_differs_keeps_its_place_when_others_are_asked():
    first = first_asked(8, 4)
    session = session_of(groups_where(first[1:3], AGREE, DIFFER, 8), prompts=4, resample=10)
    answers = ask(session, STATE, 0, set(), nullcontext)
    asked = answers.indices
    assert rewards_of(answers) == [DIFFER] * 4
    assert asked[:2] == [first[0], first[3]]
    assert not set(asked[2:]) & set(first)


def test_a_full_batch_asks_no_further():
    session = session_of([DIFFER] * 6, resample=10)
    ask(session, STATE, 0, set(), nullcontext)
    assert rounds_of(session) == 1


@pytest.mark.parametrize("resample", [1, 2, 3])
def test_rounds_are_at_most_as_many_as_the_setting_says(resample):
    session = session_of([AGREE] * 20, resample=resample)
    answers = ask(session, STATE, 0, set(), nullcontext)
    asked = answers.indices
    assert rounds_of(session) == resample
    assert len(asked) == len(answers.rewards.examples) == 2


def test_rounds_end_when_no_other_prompts_are_left():
    session = session_of([AGREE] * 5, resample=10)
    answers = ask(session, STATE, 0, set(), nullcontext)
    asked = answers.indices
    assert rounds_of(session) == 2
    assert len(set(asked)) == len(answers.rewards.examples) == 2


def test_groups_that_agree_fill_what_is_left():
    """Of six examples one differs: whichever round it comes in, the other place is the first prompt that was asked."""
    first = first_asked(6, 2)
    for lively in range(6):
        session = session_of(groups_where([lively], DIFFER, AGREE, 6), resample=3)
        answers = ask(session, STATE, 0, set(), nullcontext)
        asked = answers.indices
        other = first[1] if lively == first[0] else first[0]
        assert set(asked) == {lively, other}
        assert sorted(rewards_of(answers)) == [DIFFER, AGREE]


def test_groups_are_judged_by_their_spread_and_not_by_their_mean():
    """All 0.5 teaches nothing, though its mean is that of 0 and 1."""
    first = first_asked(4, 2)
    for there, rounds in ((HALF, 2), (DIFFER, 1), ((0.5, NAN), 2)):
        session = session_of(groups_where(first, there, DIFFER, 4), resample=2)
        answers = ask(session, STATE, 0, set(), nullcontext)
        assert rounds_of(session) == rounds
        assert rewards_of(answers) == [DIFFER, DIFFER]


def test_groups_are_judged_by_what_the_objective_makes_of_their_rewards():
    session = session_of([DIFFER] * 6, resample=2)

    def nothing(scored):
        return replace(scored, rewards_PG=jnp.zeros_like(scored.rewards_PG))

    session = replace(session, algorithm=replace(session.algorithm, objective=replace(dapo(), shaping=(nothing,))))
    ask(session, STATE, 0, set(), nullcontext)
    assert rounds_of(session) == 2


def test_groups_are_judged_by_the_weighted_total_of_their_rewards():
    """A part of weight zero only watches: that it differs does not make a group differ."""
    session = session_of([AGREE] * 6, resample=2)
    watched = Mix(((session.algorithm.reward, 1.0), (lambda example, response: float(response), 0.0)))
    session = replace(session, algorithm=replace(session.algorithm, reward=watched))
    ask(session, STATE, 0, set(), nullcontext)
    assert rounds_of(session) == 2


def test_no_prompt_is_asked_twice_though_rounds_do_not_divide_the_prompts():
    session = session_of([AGREE] * 9, prompts=4, resample=2)
    ask(session, STATE, 0, set(), nullcontext)
    lengths = [length for asked in session.algorithm.sample.asked for length in asked]
    assert len(lengths) == len(set(lengths)) == 8


@pytest.mark.parametrize("index", [0, 1, 8])
def test_no_prompt_is_asked_twice_in_a_step(index):
    session = session_of([AGREE] * 24, prompts=4, resample=6)
    ask(session, STATE, index, set(), nullcontext)
    lengths = [length for asked in session.algorithm.sample.asked for length in asked]
    expected = session.questions.prompts.valid_PL.sum(axis=1)
    assert sorted(lengths) == sorted(expected.tolist())
    assert len(set(lengths)) == 24


def test_every_round_has_its_own_noise():
    session = session_of([AGREE] * 4, resample=2)
    keys = []
    engine = session.algorithm.sample

    def listening(policy, params, prompts, key):
        keys.append(jax.random.key_data(key).tolist())
        return engine(policy, params, prompts, key)

    session = replace(session, algorithm=replace(session.algorithm, sample=listening))
    ask(session, STATE, 0, set(), nullcontext)
    ask(session, STATE, 1, set(), nullcontext)
    assert len({tuple(key) for key in keys}) == 4


def test_merged_answers_equal_their_originals():
    """Each of the merged groups is the group of its own round; only the left padding of its prompt may differ."""
    examples, rounds = 8, []
    first = first_asked(examples, 4)
    groups = [(float(place), float(place + (place not in first[:3]))) for place in range(examples)]
    session = session_of(groups, prompts=4, resample=2, lengthen=first)
    engine = session.algorithm.sample

    def kept(*inputs):
        rounds.append(engine(*inputs))
        return rounds[-1]

    session = replace(session, algorithm=replace(session.algorithm, sample=kept))
    answers = ask(session, STATE, 0, set(), nullcontext)
    asked = answers.indices
    widths = [rollouts.prompts.tokens_PL.shape[1] for rollouts in rounds]
    assert len(rounds) == 2 and widths[0] > widths[1]
    everything = session.questions.prompts
    originals = {
        int(np.asarray(rollouts.prompts.valid_PL)[p].sum()): (rollouts, p)
        for rollouts in rounds
        for p in range(len(rollouts.prompts.tokens_PL))
    }
    merged = answers.rollouts
    assert merged.prompts.tokens_PL.shape[1] == max(widths)
    for place, example in enumerate(asked):
        original, p = originals[int(everything.valid_PL[example].sum())]
        for name in ("tokens_PGT", "valid_PGT", "action_PGT", "logprobs_PGT", "entropy_PGT", "ended_PG"):
            np.testing.assert_array_equal(getattr(merged, name)[place], getattr(original, name)[p])
        for name in ("tokens_PL", "valid_PL"):
            row_L, own_L = getattr(merged.prompts, name)[place], getattr(original.prompts, name)[p]
            np.testing.assert_array_equal(row_L[-len(own_L) :], own_L)
            assert not row_L[: -len(own_L)].any()
        assert answers.rewards.examples[place].answer == str(example)
        assert answers.rewards.texts[place] == ["0", "1"]
        assert rewards_of(answers)[place] == groups[example]
    assert merged.distribution == rounds[0].distribution


def test_greedy_baselines_stay_with_their_prompts_when_rounds_are_merged():
    """Example 0 agrees on zero, so a step that begins with it asks another round."""
    index = next(index for index in range(3) if 0 in first_asked(6, 2, index))
    session = session_of([DIFFER] * 6, resample=2)
    objective = replace(dapo(), greedy_baseline=True)
    session = replace(session, algorithm=replace(session.algorithm, objective=objective))
    session = replace(session, algorithm=replace(session.algorithm, reward=own_number_first))
    answers = ask(session, STATE, index, set(), nullcontext)
    asked = answers.indices
    assert rounds_of(session) == 2 and 0 not in asked
    np.testing.assert_array_equal(answers.rewards.greedy_P1R[:, 0, 0], asked)


def own_number_first(example: Example, response: str) -> float:
    """The number of the example for its first response, and for the only one; zero for the second."""
    return float(example.answer) if response == "0" else 0.0


# Retiring.


def test_what_is_left_out_is_not_picked():
    for step in range(6):
        chosen = pick(0, step, 3, 10, without={2, 5, 7})
        assert len(chosen) == 3 and not set(chosen) & {2, 5, 7}


def test_without_the_retired_every_pass_sees_all_others_once():
    seen = [place for step in range(7) for place in pick(0, step, prompts=4, examples=10, without={0, 4, 9})]
    others = [1, 2, 3, 5, 6, 7, 8]
    assert [sorted(seen[start : start + 7]) for start in range(0, 28, 7)] == [others] * 4


def test_too_few_prompts_left_are_refused_with_their_number():
    with pytest.raises(ValueError, match="3 prompts are asked in a step, and only 2 of 4 are left to ask"):
        pick(0, 0, 3, 4, without={0, 1})


def test_retired_prompts_are_asked_in_no_round():
    retired = {0, 3, 4}
    session = session_of([AGREE] * 9, resample=10)
    questions = session.questions.prompts.valid_PL.sum(axis=1)
    ask(session, STATE, 0, retired, nullcontext)
    asked = {length for lengths in session.algorithm.sample.asked for length in lengths}
    assert rounds_of(session) == 3
    assert asked == set(questions.tolist()) - {questions[place] for place in retired}


def test_prompts_that_made_room_for_others_have_their_mean_reward_too():
    """They are solved, so they may be retired, though nothing is learned from them."""
    first = first_asked(6, 2)
    session = session_of(groups_where(first, AGREE, DIFFER, 6), resample=10)
    answers = ask(session, STATE, 0, set(), nullcontext)
    assert answers.means == dict.fromkeys(first, 1.0) | dict.fromkeys(answers.indices, 0.5)


def test_a_record_knows_who_was_retired_up_to_its_step(tmp_path):
    record = Record(tmp_path)
    record.retire(1, [4, 2])
    record.retire(2, [])
    record.retire(3, [0])
    record.close()
    for step, expected in ((3, [4, 2, 0]), (2, [4, 2]), (0, [])):
        again = Record(tmp_path, step)
        again.close()
        assert again.retired == expected
    assert Record(tmp_path, 3).retired == []  # what came after the step that was resumed is forgotten


CONFIG = """
run: {name: NAME, root: ROOT}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 20, held_out: 8, largest: 9}
rewards: [{use: Matches, pattern: "(?s).*"}]
rollout: {responses: 4, max_tokens: 6}
objective: {use: grpo, kl: 0.0}
optimizer: {learning_rate: 1e-3}
mesh: {data: 1, fsdp: 2, tensor: 4}
train: {steps: 4, prompts: 4, evaluate_every: 0, save_every: 1, max_prompt_tokens: 96, retire: 0.9}
"""


def prompts_asked(path) -> list[list[str]]:
    """The prompts of each step, in the order of steps."""
    files = sorted((path / "completions").iterdir())
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [list(dict.fromkeys(str(row["prompt"]) for row in step)) for step in rows]


@pytest.mark.slow
def test_solved_prompts_are_not_asked_again_whether_or_not_the_run_was_stopped(tmp_path):
    """Every answer earns 1, so every prompt that was asked is solved."""
    config = tmp_path / "some.yaml"
    config.write_text(CONFIG.replace("ROOT", str(tmp_path)).replace("NAME", "whole"))
    assert main(["train", str(config)]) == 0
    assert main(["train", str(config), "train.steps=2", "run.name=halted"]) == 0
    assert main(["train", str(config), "run.name=halted", "--resume"]) == 0
    whole, halted = (prompts_asked(tmp_path / name) for name in ("whole", "halted"))
    assert len({prompt for step in whole for prompt in step}) == 16
    assert whole == halted
    rows = [json.loads(line) for line in (tmp_path / "halted" / "metrics.jsonl").read_text().splitlines()]
    assert [row["retired_prompts"] for row in rows] == [4, 8, 12, 16]
    assert unexplained(rows) == []


@pytest.mark.slow
def test_a_run_whose_prompts_are_all_solved_ends_and_saves(tmp_path, capsys):
    config = tmp_path / "some.yaml"
    config.write_text(
        CONFIG.replace("ROOT", str(tmp_path)).replace("NAME", "some").replace("save_every: 1", "save_every: 99")
    )
    for resume in ([], ["--resume"]):
        assert main(["train", str(config), "train.steps=9", *resume]) == 0
        assert "20 prompts are solved: too few are left for a step" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "some" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert (tmp_path / "some" / "checkpoints" / "5").exists()
