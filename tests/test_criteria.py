"""Rewards of several criteria, of groups and of all groups at once, and what is called how."""

import asyncio
import functools
import re
import subprocess
import sys
import time
import types
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.hosts.signals import STOP, StopRequested
from grpo_jax.metrics import describe_rewards
from grpo_jax.rewards import Batch, Example, Guarded, Mix, arrange, ask, check_examples, deadline, exact, score

NAN = np.nan
PAIR = [Example("q", "a"), Example("r", "b")]


def judge(example, response):
    """Places are letters, time the length; a question mark cannot be judged."""
    return {"places": None if response == "?" else sum(map(str.isalpha, response)), "time": len(response)}


def test_each_criterion_is_a_column_with_the_name_of_its_reward():
    mix = Mix(((exact, 1.0), (judge, 0.5)))
    rewards_PGR = score(mix, PAIR, [["a1", "?"], ["b", ""]])
    np.testing.assert_array_equal(rewards_PGR[..., 1:], [[[1, 2], [NAN, 1]], [[1, 1], [0, 0]]])
    assert mix.names == ("exact", "judge/places", "judge/time")
    np.testing.assert_array_equal(mix.weights_R, np.float32([1, 0.5, 0.5]))


class Rubric:
    """Declares its criteria, one of which is a fault and one a gate."""

    criteria = ("places", "errors", "in_osaka")
    weights = MappingProxyType({"places": 2.0, "errors": -1.0})
    gates = frozenset({"in_osaka"})

    def __call__(self, examples, responses):
        return [[VALUES[text] for text in group] for group in responses]


VALUES = {
    "good": {"places": 1.0, "errors": 0.0, "in_osaka": 1.0},
    "bad": {"errors": 1.0, "places": 1.0, "in_osaka": 1.0},
    "elsewhere": {"places": 1.0, "errors": 0.0, "in_osaka": 0.0},
    "half": {"places": 1.0, "errors": 1.0, "in_osaka": 0.5},
    "away": {"places": None, "errors": None, "in_osaka": 1.0},
    "nothing": None,
}


def test_declared_criteria_are_known_before_anything_was_judged():
    mix = Mix(((Rubric(), 3.0),))
    assert mix.names == ("Rubric/places", "Rubric/errors", "Rubric/in_osaka")
    np.testing.assert_array_equal(mix.weights_R, np.float32([6, -3, 0]))
    np.testing.assert_array_equal(score(mix, PAIR[:1], [["nothing"]]), [[[NAN, NAN, NAN]]])


def test_a_gate_multiplies_the_sum_of_the_others_and_is_logged_as_it_is():
    mix = Mix(((Rubric(), 1.0),))
    rewards_PGR = score(mix, PAIR[:1], [["good", "bad", "elsewhere", "half", "away", "nothing"]])
    np.testing.assert_array_equal(rewards_PGR[0, :, 2], [1, 1, 0, 0.5, 1, NAN])
    gated_PGR = mix.gated(rewards_PGR)
    total_G = np.where(np.isnan(gated_PGR).all(axis=2), NAN, np.nansum(gated_PGR * mix.weights_R, axis=2))[0]
    np.testing.assert_array_equal(total_G, [2, 1, 0, 0.5, NAN, NAN])
    described = describe_rewards(rewards_PGR, mix)
    assert described["reward"] == pytest.approx(3.5 / 4)
    assert described["rewards/Rubric/in_osaka/mean"] == pytest.approx(0.7)
    np.testing.assert_array_equal(rewards_PGR[0, :, 0], [1, 1, 1, 1, NAN, NAN])  # not changed by it


@pytest.mark.parametrize(
    ("gates", "weights", "words"),
    [
        (frozenset({"else"}), {}, "a weight to else, or takes it for a gate"),
        (frozenset(), {"else": 1.0}, "a weight to else"),
        (frozenset({"one"}), {}, "Every criterion of reward wrong is a gate"),
        (frozenset(), {"one": NAN}, "The weight of wrong/one must be"),
        (frozenset(), {"one": "2"}, "The weight of wrong/one must be a number; got '2'"),
        (frozenset(), [1.0], r"The weights of reward wrong must be a mapping, such as .*; got \[1\.0\]"),
        ("one", {}, "The gates of reward wrong must be a set of names, such as .*; got 'one'"),
        (frozenset({"one"}), {"one": 3.0}, "wrong/one is a gate, which multiplies the others and has no weight"),
    ],
)
def test_gates_and_weights_are_of_criteria_that_there_are(gates, weights, words):
    def wrong(example, response):
        return {"one": 1.0}

    wrong.criteria, wrong.gates, wrong.weights = ("one",), gates, weights
    with pytest.raises(ValueError, match=words):
        Mix(((wrong, 1.0),))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"a": 1, "c": 1}, r"the criterion c for example 0, response 1; its criteria are a, b\. They never change"),
        ({"a": 1}, "nothing for the criterion b"),
        (1.0, r"returned 1\.0 for example 0, response 1, and it has the criteria a, b"),
    ],
)
def test_criteria_never_change_once_they_are_learned(second, words):
    def learned(example, response):
        return {"a": 1, "b": 2} if response == "first" else second

    with pytest.raises(ValueError, match=words):
        score(learned, PAIR[:1], [["first", "second"]])
    mix = Mix(((learned, 1.0),))
    assert score(mix, PAIR[:1], [["first"]]).shape == (1, 1, 2)
    with pytest.raises(ValueError, match=words.replace("response 1", "response 0")):
        score(mix, PAIR[:1], [["second"]])


def test_a_reward_that_returned_a_number_returns_no_criteria_later():
    def changes(example, response):
        return 1.0 if response == "first" else {"a": 1.0}

    with pytest.raises(ValueError, match="returned a mapping of a for example 0, response 1, and a number before"):
        score(changes, PAIR[:1], [["first", "second"]])


def test_criteria_stay_unknown_while_nothing_could_be_judged():
    mix = Mix(((lambda example, response: None if response == "?" else {"a": 1.0, "b": 2.0}, 1.0),))
    np.testing.assert_array_equal(score(mix, PAIR[:1], [["?"]]), [[[NAN]]])
    assert mix.undecided == (0,)
    np.testing.assert_array_equal(score(mix, PAIR[:1], [["?", "!"]]), [[[NAN, NAN], [1, 2]]])


# What a reward is called with


def longest(example, responses):
    """Relative: 1 for the longest response of a group."""
    return [float(len(text) == max(map(len, responses))) for text in responses]


def ranks(examples, responses):
    return [[{"rank": rank, "size": len(examples)} for rank, _ in enumerate(group)] for group in responses]


async def longest_async(example, responses):
    await asyncio.sleep(0)
    return longest(example, responses)


async def each_async(example, response):
    await asyncio.sleep(0)
    return float(example.answer == response)


class Calls:
    async def __call__(self, example, response):
        return float(example.answer == response)


def test_a_relative_reward_sees_one_group_and_judges_all_of_it():
    for reward in (longest, longest_async, functools.partial(longest)):
        rewards_PGR = score(reward, PAIR, [["a", "aa"], ["bbb", "b"]])
        np.testing.assert_array_equal(rewards_PGR[..., 0], [[0, 1], [1, 0]])


def test_a_reward_may_judge_all_groups_at_once():
    rewards_PGR = score(ranks, PAIR, [["a", "aa"], ["bbb", "b"]])
    np.testing.assert_array_equal(rewards_PGR, [[[0, 2], [1, 2]]] * 2)


def test_parameters_may_come_in_any_order_and_by_keyword_alone():
    def other_order(response, example):
        return float(example.answer == response)

    def by_keyword(*, example, response):
        return other_order(response, example)

    def by_position(example, response, /):
        return other_order(response, example)

    def of_a_row(response, row):
        return other_order(response, row)

    def of_a_group(responses, row):
        return [other_order(response, row) for response in responses]

    def of_all(responses, examples):
        return [of_a_group(*pair) for pair in zip(responses, examples, strict=True)]

    for reward in (other_order, by_keyword, by_position, of_a_row, of_a_group, of_all):
        np.testing.assert_array_equal(score(reward, PAIR, [["a", "b"], ["a", "b"]])[..., 0], [[1, 0], [0, 1]])


def test_a_judge_of_a_group_that_returns_none_has_judged_none_of_it():
    for reward in (
        lambda example, responses: None if example.answer == "a" else [1, 2],
        lambda examples, responses: [None, np.array([1, 2])],
    ):
        np.testing.assert_array_equal(score(reward, PAIR, [["a", "b"]] * 2)[..., 0], [[NAN, NAN], [1, 2]])
    assert np.isnan(score(lambda examples, responses: None, PAIR, [["a", "b"]] * 2)).all()
    ones = score(lambda examples, responses: jnp.ones((2, 2)), PAIR, [["a", "b"]] * 2)
    np.testing.assert_array_equal(ones[..., 0], np.ones((2, 2)))


@pytest.mark.parametrize("reward", [each_async, Calls(), functools.partial(each_async), lambda e, r: each_async(e, r)])
def test_a_reward_of_one_response_may_be_async(reward):
    np.testing.assert_array_equal(score(reward, PAIR, [["a", "b"], ["a", "b"]])[..., 0], [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda example, responses: [1.0], r"one value per response: 2; got 1 for example 0 \(a\.jsonl:3\)"),
        (lambda example, responses: 1.0, "a list with one value per response; got a float"),
        (lambda examples, responses: [[1.0, 1.0]] * 2, "a list of lists, one per group.*: 1; got 2"),
        (lambda examples, responses: [[1.0]], r"2; got 1 for example 0 \(a\.jsonl:3\)"),
        (lambda examples, response: 1.0, "Rename a parameter"),
    ],
)
def test_a_reward_of_a_group_says_something_of_each_response(reward, words):
    with pytest.raises(ValueError, match=words):
        score(reward, [Example("q", source="a.jsonl:3")], [["a", "b"]])


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), jnp.float32(0.5), jnp.bfloat16(0.5), np.bool_(1)])
def test_scalars_of_numpy_and_jax_are_numbers(value):
    assert score(lambda example, response: value, PAIR[:1], [["a"]]) == float(value)
    assert score(lambda example, response: {"c": value}, PAIR[:1], [["a"]]) == float(value)
    assert score(lambda completions: [value], PAIR[:1], [["a"]]) == float(value)


def test_functions_for_trl_may_return_arrays_with_one_axis():
    for values in (np.array([1.0, 2.0]), jnp.array([1.0, 2.0])):
        np.testing.assert_array_equal(score(lambda completions, v=values: v, PAIR[:1], [["a", "b"]]), [[[1], [2]]])


# TRL and verifiers


def overlong(completion_ids, **kwargs):
    return [-float(len(ids) > 3) for ids in completion_ids]


def by_kwargs(**kwargs):
    return [float(text == answer) for text, answer in zip(kwargs["completions"], kwargs["answer"], strict=True)]


def by_column(answer, **kwargs):
    return [float(len(each)) for each in answer]


def by_columns(answer, level, **kwargs):
    return [float(each) for each in level]


def test_functions_that_name_only_what_trl_passes_are_called_as_trl_does():
    row = Example("q", "a", {"answer": "a", "level": 3})
    for reward, expected in ((overlong, [0, -1]), (by_kwargs, [1, 0]), (by_column, [1, 1]), (by_columns, [3, 3])):
        rewards_PGR = score(reward, [row], [["a", "b"]], [[[1, 2], [1, 2, 3, 4]]], 0)
        np.testing.assert_array_equal(rewards_PGR[0, :, 0], expected)


def soft_limit(longest, cushion):
    """As TRL's soft punishment of overlong completions (DAPO): a function that names completion_ids alone."""

    def punished(completion_ids: list[list[int]], **kwargs) -> list[float]:
        over = [len(ids) - (longest - cushion) for ids in completion_ids]
        return [-1.0 if each > cushion else -max(each, 0) / cushion for each in over]

    return punished


def repeated(size, most):
    """As TRL's repetition penalty: of the words of each completion's first message."""

    def penalty(completions, **kwargs):
        words = [completion[0]["content"].lower().split() for completion in completions]
        grams = [[*zip(*(each[start:] for start in range(size)), strict=False)] for each in words]
        return [most * (1 - len(set(each)) / len(each)) if each else 0.0 for each in grams]

    return penalty


class Named:
    def __init__(self, name):
        self.__name__ = name

    async def __call__(self, prompts, completions, completion_ids, **kwargs):
        return [1.0, None]


def only_prompts(prompts):
    return [float(len(prompt)) for prompt in prompts]


def with_environments(completions, environments=None, **kwargs):
    return [float(environments is None) for _ in completions]


def test_rewards_in_the_shapes_that_trl_has_are_called_as_trl_does():
    chat = [{"role": "user", "content": "q"}]
    row = Example(chat, "a", {"prompt": chat, "prompts": "a column", "completion_ids": [9], "level": 2})
    cases = [
        (soft_limit(5, 4), [-0.25, -1.0]),
        (repeated(1, -1.0), [0.0, -0.5]),
        (functools.partial(repeated(2, -1.0)), [0.0, -1 / 3]),
        (Named("mine"), [1.0, NAN]),
        (only_prompts, [1.0, 1.0]),
        (lambda **kwargs: [float(kwargs["level"] == [2, 2] and kwargs["prompts"][0] == chat)] * 2, [1.0, 1.0]),
        (with_environments, [1.0, 1.0]),
    ]
    for reward, expected in cases:
        rewards_PGR = score(reward, [row], [["a", "b a b a"]], [[[1, 2], [1, 2, 3, 4, 5, 6]]], 0)
        np.testing.assert_allclose(rewards_PGR[0, :, 0], expected)
    assert Mix(((Named("mine"), 1.0),)).names == ("mine",)


def test_functions_for_trl_log_numbers_and_columns():
    def logs(completions, log_metric, log_extra, trainer_state, **kwargs):
        log_metric("short", np.float32(trainer_state.global_step))
        log_metric("short", 5)
        log_extra("upper", [text.upper() for text in completions])
        log_extra("size", jnp.arange(len(completions)))
        return [0.0] * len(completions)

    mix = Mix(((logs, 1.0),))
    judged = arrange(mix, ask(mix, Batch(PAIR, [["a", "b"], ["c", "d"]], step=3)))
    assert judged.metrics == {"short": 4.0}
    assert judged.extras == {"upper": ["A", "B", "C", "D"], "size": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (lambda log_metric, log_extra: log_metric("x", NAN), "log_metric takes a finite number; got nan for 'x'"),
        (lambda log_metric, log_extra: log_extra("x", [1]), "one value per completion, 2"),
        (lambda log_metric, log_extra: log_extra("completion", [1, 2]), "have a column completion already"),
    ],
)
def test_what_cannot_be_logged_is_refused(log, words):
    def logs(completions, log_metric, log_extra):
        log(log_metric, log_extra)
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=words):
        score(logs, PAIR[:1], [["a", "b"]])


async def correct(completion, answer):
    return float(completion[-1]["content"] == answer)


def stateful(state, info, **kwargs):
    return float(state["completion"] == info["gold"] and state["answer"] == "a")


def test_functions_for_verifiers_judge_one_completion():
    chat = Example([{"role": "user", "content": "q"}], "a")
    np.testing.assert_array_equal(score(correct, [chat], [["a", "b"]])[0, :, 0], [1, 0])
    row = Example("q", "a", {"info": {"gold": "g"}})
    np.testing.assert_array_equal(score(stateful, [row], [["g", "b"]])[0, :, 0], [1, 0])
    with pytest.raises(ValueError, match="Reward needy needs parser; available are prompt, completion, answer"):
        score(_needy(), [chat], [["a"]])


def test_functions_for_verifiers_need_not_look_at_the_completion():
    def known(prompt, answer, info, task, **kwargs):
        return float(answer == "a" and info == {} and task == "default")

    assert score(known, [Example("q", "a")], [["b"]]) == 1.0
    both = Mix(((known, 1.0), (correct, 0.5)))  # as the funcs and weights of a Rubric are
    np.testing.assert_array_equal(score(both, [Example([{"role": "user", "content": "q"}], "a")], [["a"]]), [[[1, 1]]])


def _needy():
    def needy(completion, parser):
        return 1.0

    return needy


# Async rewards


def test_a_semaphore_that_a_reward_keeps_works_in_the_second_step():
    gate = asyncio.Semaphore(2)

    async def one(text):
        async with gate:
            await asyncio.sleep(0.001)
            return float(len(text))

    async def in_trl(prompts, completions, **kwargs):
        return await asyncio.gather(*map(one, completions))

    async def in_ours(example, response):
        return await one(response)

    for _ in range(3):
        for reward in (in_trl, in_ours):
            np.testing.assert_array_equal(score(reward, PAIR[:1], [["a", "bb", "ccc"]])[0, :, 0], [1, 2, 3])


def test_all_async_rewards_of_a_step_wait_beside_each_other_and_beside_the_others():
    async def slow(example, response):
        await asyncio.sleep(0.3)
        return 1.0

    async def slow_in_a_thread(completions):
        await asyncio.to_thread(time.sleep, 0.3)
        return [1.0 for _ in completions]

    def slow_here(completions):
        time.sleep(0.3)
        return [1.0 for _ in completions]

    mix = Mix(tuple((reward, 1.0) for reward in (slow_here, slow, slow_in_a_thread, slow, slow_in_a_thread)))
    begun = time.monotonic()
    assert score(mix, PAIR, [["a"] * 8] * 2).all()
    assert time.monotonic() - begun < 4  # one after the other, 10.5 s


@pytest.mark.faults
@pytest.mark.parametrize("wrong", [lambda: 1 / 0, lambda: sys.exit(0), lambda: __import__("os")._exit(0)])
def test_an_async_reward_that_fails_is_named_with_its_response_and_its_line(wrong):
    async def fails(example, response):
        await asyncio.sleep(0)
        return wrong() if response == "b" else 0.0

    with pytest.raises(ValueError, match=r"Reward fails failed on example 0, response 1: .* \(test_criteria\.py:\d+"):
        score(fails, PAIR[:1], [["a", "b"]])


async def in_a_task_group(example, response):
    async with asyncio.TaskGroup() as group:
        group.create_task(fails_in_a_task())


async def fails_in_a_task():
    await asyncio.sleep(0)
    raise KeyError("judge")


async def cancels_itself(example, response):
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def forgets_await(example, response):
    return each_async(example, response)


class LibraryTimeout(BaseException):
    """As math-verify raises one."""


async def times_out(example, response):
    raise LibraryTimeout("late")


def times_out_here(example, response):
    raise LibraryTimeout("late")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (times_out, r"LibraryTimeout: late \(test_criteria\.py:\d+: raise LibraryTimeout"),
        (times_out_here, r"LibraryTimeout: late \(test_criteria\.py:\d+: raise LibraryTimeout"),
        (in_a_task_group, r"KeyError: 'judge' \(test_criteria\.py:\d+: raise KeyError"),
        (cancels_itself, r"CancelledError \(test_criteria\.py:\d+: await asyncio\.sleep"),
        (forgets_await, "it returned a coroutine: write await before it"),
    ],
)
def test_a_reward_is_named_or_masked_however_it_fails(reward, words):
    with pytest.raises(ValueError, match=rf"Reward \w+ failed on example 0, response 0: .*{words}"):
        score(reward, PAIR[:1], [["a"]])
    assert np.isnan(score(Guarded(reward, on_error="mask"), PAIR[:1], [["a"]])).all()


@pytest.mark.faults
def test_an_exception_has_the_innermost_line_of_the_users_code():
    def fails(example, response):
        return re.compile(response)

    with pytest.raises(ValueError, match=r"\(test_criteria\.py:\d+: return re\.compile\(response\)\)"):
        score(fails, PAIR[:1], [["("]])


ENDS = """
import asyncio, os, signal, threading, time
from grpo_jax.rewards import Example, score
signal.signal(signal.SIGINT, signal.default_int_handler)
async def waits(example, response):
    await asyncio.sleep(60)
async def in_a_thread(completions):
    await asyncio.to_thread(time.sleep, 60)
async def blocks(completions):
    time.sleep(60)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    score({reward}, [Example("q")], [["a"]])
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.faults
@pytest.mark.parametrize("reward", ["waits", "in_a_thread", "blocks"])
def test_ctrl_c_waits_for_no_async_reward(reward):
    begun = time.monotonic()
    program = [sys.executable, "-c", ENDS.replace("{reward}", reward)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout == "interrupted\n"
    assert time.monotonic() - begun < 30


@pytest.mark.faults
def test_a_loop_that_a_reward_blocked_is_replaced():
    async def blocks(example, response):
        time.sleep(3)

    with pytest.raises(TimeoutError, match="was at reward blocks"):
        score(blocks, PAIR[:1], [["a"]], seconds=0.3)
    begun = time.monotonic()
    assert score(each_async, PAIR[:1], [["a"]]) == 1.0
    assert time.monotonic() - begun < 1.5


def sleeps(example, response):
    time.sleep(60)


def backtracks(example, response):
    re.fullmatch(r"(a+)+b", "a" * 60)


async def sleeps_async(example, response):
    await asyncio.sleep(60)


@pytest.mark.faults
@pytest.mark.parametrize("reward", [sleeps, backtracks, sleeps_async])
def test_a_reward_is_left_soon_after_the_run_was_told_to_stop(reward, monkeypatch):
    monkeypatch.setattr(deadline, "PATIENCE", 0.1)
    monkeypatch.setattr(STOP, "listening", True)
    monkeypatch.setattr(STOP, "asked", time.monotonic())
    begun = time.monotonic()
    with pytest.raises(StopRequested):
        score(reward, PAIR[:1], [["a"]])
    assert time.monotonic() - begun < 10
    monkeypatch.setattr(STOP, "asked", None)
    assert score(exact, PAIR[:1], [["a"]]) == 1.0


# Policies


def test_a_failure_is_masked_where_that_is_asked_for(caplog, monkeypatch):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)

    def shaky(example, response):
        return {"fails": 1 / 0 if response == "b" else 1.0, "text": "?" if response == "c" else 1.0}

    mix = Mix(((Guarded(shaky, on_error="mask"), 1.0), (exact, 1.0)))
    judged = arrange(*_learned(mix, ask(mix, Batch(PAIR[:1], [["a", "b", "c"]]))))
    np.testing.assert_array_equal(judged.rewards_PGR[0, :, :2], [[1, 1], [NAN, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(judged.rewards_PGR[0, :, 2], [1, 0, 0])
    assert judged.metrics == {"rewards/failed_frac": pytest.approx(2 / 3)}
    assert mix.names == ("shaky/fails", "shaky/text", "exact")


def _learned(mix, answers):
    mix.learn(answers.found)
    return mix, answers


def test_the_check_of_a_guarded_reward_is_made_and_its_criteria_are_known():
    def checked(example, response):
        return {"a": 1.0, "b": 1.0}

    checked.check, checked.criteria = lambda example: int(example.answer), ("a", "b")
    mix = Mix(((Guarded(functools.partial(checked), on_error="mask"), 1.0),))
    assert mix.names == ("checked/a", "checked/b")
    with pytest.raises(ValueError, match="training example 1: reward checked cannot score any response to it"):
        check_examples(mix, [Example("q", "1"), Example("r", "b")], "training")


def test_limits_that_cannot_hold_are_refused():
    for given, words in (
        ({"deadline": 1.0}, "needs workers"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"workers": 1, "deadline": 0.0}, "deadline must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            Guarded(exact, **given)
    with pytest.raises(ValueError, match="A reward has its limits once"):
        Guarded(Guarded(exact, workers=1, deadline=1.0), on_error="mask")


@pytest.mark.parametrize("value", ["x" * 10_000_000, 10**5000, [0] * 1_000_000], ids=["text", "number", "list"])
def test_what_is_no_reward_is_shown_in_a_few_words(value):
    with pytest.raises(ValueError, match="must return a finite number of at most 1e") as refused:
        score(lambda example, response: value, PAIR[:1], [["a"]])
    assert len(str(refused.value)) < 400


def test_what_trl_or_verifiers_would_pass_and_is_not_there_is_told_with_the_way_out():
    for reward, words in (
        (lambda parser, completion: 1.0, "bind one with functools.partial"),
        (lambda completion_ids: [1.0], "Pass tokens to score"),
        (lambda completions, trainer_state: [1.0], "Pass step to score"),
        (lambda completions, level: [1.0], "Add the column to the data set"),
    ):
        with pytest.raises(ValueError, match=words):
            score(reward, PAIR[:1], [["a"]])
    with pytest.raises(ValueError, match="trainer_state has global_step alone here, and no max_steps"):
        score(lambda completions, trainer_state: [trainer_state.max_steps], PAIR[:1], [["a"]], step=3)
    mix = object.__new__(Mix)  # the types of arguments are checked in tests, and not where users call it
    object.__setattr__(mix, "parts", ((types.SimpleNamespace(funcs=[exact], weights=[1.0]), 1.0),))
    with pytest.raises(ValueError, match=r"got a SimpleNamespace\. Give each of its funcs, with its weight"):
        mix.__post_init__()
