import asyncio
import copy
import functools
import json
import logging
import math
import operator
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from grpo_jax.rewards import (
    Matches,
    Mix,
    Steps,
    check_examples,
    deadline,
    exact,
    follows_template,
    judge,
    last_number,
    place_steps,
    reaches_target,
    score,
)
from grpo_jax.rewards.answers import MAX_SCANNED, read_number
from grpo_jax.rewards.expressions import evaluate
from grpo_jax.tasks import Example

SEVEN = Example("3 + 4 = ?", "7", {"question": "3 + 4 = ?", "level": 1})
CHAT = Example([{"role": "user", "content": "5 + 4 = ?"}], "9", {"question": "5 + 4 = ?", "level": 2})


def answered(answer):
    return Example("How much?", answer)


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("1000", "1,000"),
        ("1,234,567", "1234567"),
        ("3.5", "3.50"),
        ("7", "7."),
        ("7", "  007\n"),
        ("-4", "-4"),
        ("-4", "\u22124"),
        ("+4", "4"),
        ("0.5", ".5"),
        ("0.5", "1/2"),
        ("1/2", "2/4"),
        ("-1/2", "-\\frac{1}{2}"),
        ("12", "$12.00"),
        ("12", "$12$"),
        ("12000", "12{,}000"),
        ("50", "50%"),
        ("100000", "1e5"),
        ("0.1", "0.10"),
        ("Paris", "Paris."),
        ("a b", " a b "),
    ],
)
def test_exact_accepts_the_answer_in_another_form(answer, response):
    assert exact(answered(answer), response) == 1.0


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("1000", "1,00"),
        ("1000", "1,0000"),
        ("7", "The answer is 7"),
        ("7", "7 apples"),
        ("7", "7 7"),
        ("7", "7.."),
        ("7", "-7"),
        ("7", ""),
        ("7", "."),
        ("7", "7/0"),
        ("7", "\u0667"),  # an Arabic seven
        ("0.3333333333333333", "1/3"),
        ("0.5", "50%"),
        ("Paris", "paris"),
        ("Paris", "Paris, France"),
    ],
)
def test_exact_rejects_anything_else(answer, response):
    assert exact(answered(answer), response) == 0.0


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("12", "First 3, then 4, so there are 12 apples."),
        ("12", "3 * 4 = 12."),
        ("5", "10-5"),
        ("-5", "It is -5"),
        ("1500", "That makes $1,500.00!"),
        ("0.75", "three quarters, 3/4"),
        ("5", "Left are:\n- 5 apples"),
        ("12", "#### 12\nI counted 3 times."),
        ("12", "#### $12.\nI counted 3 times."),
        ("42", "#### 1. Multiply\n6 * 7\n#### 2. Conclude\nso 42"),  # headings
        ("12", "\\boxed{12} after 3 tries"),
        ("0.5", "\\boxed{\\frac{1}{2}} after 3 tries"),
        ("12", "\\boxed{3} no, \\boxed{12 \\text{ apples}} after 3 tries"),
        ("12", "#### 3\nno, \\boxed{12} after 4 tries"),
        ("12", "\\boxed{3}\nno\n#### 12\nafter 4 tries"),
    ],
)
def test_last_number_finds_the_answer(answer, response):
    assert last_number(answered(answer), response) == 1.0


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("12", "12 or 13"),
        ("12", "#### 13\n12"),
        ("12", "\\boxed{13} 12"),
        ("12", "\\boxed{12"),  # cut off, perhaps in the middle of 123
        ("12", "\\boxed{none} 12"),
        ("12", "twelve"),
        ("12", ""),
        ("5", "1e5"),
        ("0", "1/0"),
    ],
)
def test_last_number_rejects_another_number(answer, response):
    assert last_number(answered(answer), response) == 0.0


def test_an_example_without_a_readable_answer_is_named():
    with pytest.raises(ValueError, match=r"the example 'How much\?' has none"):
        exact(answered(" "), "7")
    with pytest.raises(ValueError, match=r"the example 'How much\?' is 'Paris'"):
        last_number(answered("Paris"), "7")


@pytest.mark.parametrize(
    "piece", ["1", "1,000,", "-", "#### ", "#### 1", "\\boxed{", "{", "}", "1/", "1e9", "\\frac{1", "1."]
)
def test_a_hostile_response_scores_zero(piece):
    response = piece * (1_000_000 // len(piece))
    assert exact(answered("7"), response) == 0.0
    assert last_number(answered("7"), response) == 0.0
    assert follows_template(answered("7"), response) == 0.0


def test_only_the_end_of_a_response_is_searched():
    assert last_number(answered("7"), "x " * MAX_SCANNED + "7") == 1.0
    assert last_number(answered("7"), "7" + " x" * MAX_SCANNED) == 0.0


def test_a_run_of_digits_too_long_for_an_answer_is_no_number():
    assert read_number("1" * 101) is None


@pytest.mark.parametrize(
    ("response", "follows"),
    [
        ("<think>3 + 4</think> <answer>7</answer>", True),
        ("\n<think>\n3 + 4\n</think>\n<answer>\n7\n</answer>\n", True),
        ("<think>3 + 4</think><answer>7</answer>", True),
        ("<answer>7</answer>", False),
        ("<answer>7</answer> <think>3 + 4</think>", False),
        ("<think><answer>7</think></answer>", False),
        ("<think>3 + 4</think> so <answer>7</answer>", False),
        ("So <think>3 + 4</think> <answer>7</answer>", False),
        ("<think>3 + 4</think> <answer>7</answer> done", False),
        ("<think>3 + 4</think> <answer>6</answer> <answer>7</answer>", False),
        ("<think>3 + 4</think> <answer>7", False),
        ("", False),
    ],
)
def test_the_template_must_be_followed_exactly(response, follows):
    assert follows_template(SEVEN, response) == float(follows)


@pytest.mark.parametrize(
    ("opened", "response", "follows"),
    [
        ("<think>\n", "3 + 4</think> <answer>7</answer>", True),
        ("<think>\n", "3 + 4 <answer>7</answer>", False),
        ("<think>\n\n</think>\n\n", "<answer>7</answer>", True),
        ("", "3 + 4</think> <answer>7</answer>", False),
        ("", "<think>3 + 4</think> <answer>7</answer>", True),
        (None, "3 + 4</think> <answer>7</answer>", True),
        (None, "3 + 4 <answer>7</answer>", False),
    ],
)
def test_tags_that_the_prompt_opened_belong_to_the_format(opened, response, follows):
    example = Example("3 + 4 = ?", "7", opened=opened)
    assert follows_template(example, response) == float(follows)
    if opened is not None:
        framed = Matches(r"<think>.*</think>\s*<answer>.*</answer>")
        assert framed(example, response) == float(follows)


def test_a_function_for_trl_gets_the_message_that_a_response_continues():
    def lengths(prompts, completions):
        return [len(completion[0]["content"]) for completion in completions]

    prefilled = Example([*CHAT.prompt, {"role": "assistant", "content": "It is "}])
    assert score(lengths, [prefilled, CHAT], [["9"], ["9"]]).ravel().tolist() == [7.0, 1.0]


def test_matches_compares_the_whole_response():
    number = Matches(r"\d+")
    assert [number(SEVEN, response) for response in (" 7\n", "7 apples", "")] == [1.0, 0.0, 0.0]
    assert Matches(".*")(SEVEN, "two\nlines") == 1.0


def test_an_invalid_pattern_is_refused_when_the_reward_is_made():
    with pytest.raises(ValueError, match=r"'\(' is not one"):
        Matches("(")


@pytest.mark.parametrize(
    ("response", "reached"),
    [
        ("(10 - 4) * 4", True),
        ("4 * (10 - 4)", True),
        ("Let me see. <answer> 4*(10-4) </answer>", True),
        ("<answer>4 * 4</answer> <answer>4 * (10 - 4)</answer>", True),
        ("<answer>4 * (10 - 4)</answer> <answer>4 * 4</answer>", False),
        ("10 + 4 + 10", False),  # 24, but 10 is used twice
        ("24", False),
        ("4 * (10 - 4) = 24", False),
        ("10 + 4 + 4", False),
        ("4 * (10 - 4", False),
        ("4 * (10 - 4) * __import__('os').getpid()", False),
        ("", False),
    ],
)
def test_countdown_requires_the_target_and_each_number_once(response, reached):
    example = Example("Make 24.", columns={"target": 24, "numbers": [4, 4, 10]})
    assert reaches_target(example, response) == float(reached)


def test_countdown_names_the_columns_that_are_missing():
    with pytest.raises(ValueError, match="got target '24' and numbers None"):
        reaches_target(Example("Make 24.", columns={"target": "24"}), "24")


@pytest.mark.parametrize(("expression", "value"), [("1/3*3", 1), ("-(2-5)", 3), ("2 + 3 * 4", 14), ("7/2*2", 7)])
def test_arithmetic_is_exact(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "1/0",
        "9**9**9**9",
        "7//2",
        "(1)(2)",
        "1 2",
        "007",
        "()",
        "",
        "a",
        "1.5",
        "+1",
        "\x00",
        "(" * 200,
        "-" * 199 + "1" * 9,
        "9" * 5000,
        "1+" * 100 + "1",
    ],
)
def test_text_that_is_not_arithmetic_has_no_value(expression):
    assert evaluate(expression) is None


def length(example, response):
    return len(response)


def undecided(example, response):
    return None if response == "?" else 1


def test_scores_have_axes_for_prompt_response_and_reward():
    rewards_PGR = score(Mix(((exact, 1.0), (length, 0.5))), [SEVEN, CHAT], [["7", "17", "77"], ["9", "", "123"]])
    np.testing.assert_array_equal(rewards_PGR[..., 0], [[1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(rewards_PGR[..., 1], [[1, 2, 2], [1, 0, 3]])
    assert rewards_PGR.dtype == np.float32


def test_a_bare_function_is_a_mix_of_one():
    np.testing.assert_array_equal(score(exact, [SEVEN], [["7", "8"]]), [[[1], [0]]])


def test_a_response_that_cannot_be_scored_is_nan_and_not_zero():
    np.testing.assert_array_equal(score(undecided, [SEVEN], [["?", "!"]]), [[[math.nan], [1]]])


def test_booleans_are_accepted_as_rewards():
    assert score(lambda example, response: np.bool_(response == "7"), [SEVEN], [["7"]]) == 1.0


def test_rewards_are_named_after_their_functions_and_numbered_if_names_repeat():
    partial = functools.partial(length)
    mix = Mix(((exact, 1.0), (length, 0.5), (partial, 0.0), (Matches("a"), 1.0), (Matches("b"), 1.0)))
    assert mix.names == ("exact", "length", "length_2", "Matches", "Matches_2")
    np.testing.assert_array_equal(mix.weights_R, np.float32([1, 0.5, 0, 1, 1]))


@pytest.mark.parametrize("parts", [(), ((exact, math.nan),), ((exact, 1.0), (length, math.inf))])
def test_an_empty_mix_and_weights_that_are_not_finite_are_refused(parts):
    with pytest.raises(
        ValueError, match=r"needs at least one|weight of exact must be .* nan|weight of length must be .* inf"
    ):
        Mix(parts)


@pytest.mark.faults
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39, "1", [1.0], np.ones(2), 1j])
def test_a_reward_that_is_not_a_finite_number_is_named_with_example_and_response(value):
    def odd(example, response):
        return value if response == "b" else 0.0

    with pytest.raises(ValueError, match=r"Reward odd must return a finite number.* example 1, response 1 it returned"):
        score(odd, [SEVEN, SEVEN], [["a", "a"], ["a", "b"]])


def test_a_reward_that_raises_is_named_with_example_and_response():
    with pytest.raises(ValueError, match=r"Reward exact failed on example 1, response 0: ValueError: exact compares"):
        score(exact, [SEVEN, answered("")], [["7"], ["7"]])


# Rewards of steps


def by_line(example, response):
    """Two for the first line, one for each other; a step ends where its line does."""
    ends = [place + 1 for place, letter in enumerate(response) if letter == "\n"]
    return Steps([2.0] + [1.0] * (len(ends) - 1), ends) if ends else Steps([], [])


def test_the_reward_of_steps_is_their_sum_and_their_ends_are_returned():
    mix = Mix(((by_line, 0.5), (exact, 1.0)))
    rewards_PGR, ends = judge(mix, [Example("", "a")], [["a\nbc\n", "none"]])
    np.testing.assert_array_equal(rewards_PGR[0, :, 0], [3.0, 0.0])
    assert ends == {(0, 0): [(2, 1.0), (5, 0.5)], (0, 1): []}


def test_steps_of_a_reward_with_weight_zero_are_not_returned():
    rewards_PGR, ends = judge(Mix(((by_line, 0.0), (exact, 1.0))), [Example("", "a")], [["a\nbc\n", "a"]])
    assert rewards_PGR[0, 0, 0] == 3.0
    assert ends == {}


def test_the_reward_of_a_step_is_at_the_token_that_completes_it():
    # Of the first response the third token was not chosen, the last response is empty.
    action_PGT = np.array([[[True, True, False, True, True], [True] * 5, [False] * 5]])
    pieces = ["a\n", "b", "c\n", ""]

    def decode(ids):
        return "".join(pieces[index] for index in ids)

    steps = {(0, 0): [(2, 1.0), (5, 0.5), (99, 4.0)], (0, 1): [], (0, 2): [(0, 1.0)]}
    steps_PGT = place_steps(steps, [[[0, 1, 2, 3], [0] * 5, []]], decode, action_PGT)
    nan = np.nan
    np.testing.assert_array_equal(steps_PGT, [[[1.0, nan, nan, 0.5, 4.0], [nan] * 5, [nan] * 5]])


@pytest.mark.parametrize(("rewards", "ends", "words"), [([1.0], [], "1 and 0"), ([np.nan], [3], "finite")])
def test_invalid_steps_are_refused(rewards, ends, words):
    with pytest.raises(ValueError, match=words):
        Steps(rewards, ends)


# Needs


@pytest.mark.parametrize(
    ("reward", "fine", "useless"),
    [
        (exact, answered("7"), [answered(""), answered(" . ")]),
        (last_number, answered("1,000"), [answered("Paris"), answered(""), answered("1 2")]),
        (
            reaches_target,
            Example("", columns={"target": 5, "numbers": [2, 3]}),
            [
                Example("", columns={}),
                Example("", columns={"target": 5, "numbers": []}),
                Example("", columns={"target": True, "numbers": [1]}),
                Example("", columns={"target": 1, "numbers": [2, -1]}),
            ],
        ),
    ],
)
def test_an_example_is_refused_where_no_response_could_be_scored(reward, fine, useless):
    check_examples(functools.partial(reward), [fine] * 3, "training")
    for example in useless:
        with pytest.raises(ValueError, match=f"held-out example 1: reward {reward.__name__} cannot score"):
            check_examples(Mix(((reward, 0.0),)), [fine, example], "held-out")


def test_a_reward_may_have_its_check_as_a_method():
    class Known:
        def __call__(self, example, response):
            return 1.0

        def check(self, example):
            assert example.answer == "7", "unknown"

    check_examples(Known(), [SEVEN], "training")
    with pytest.raises(ValueError, match=r"rows\.jsonl:4: reward Known cannot score any response to it: unknown"):
        check_examples(Known(), [Example("", "8", source="rows.jsonl:4")], "training")


# Examples


CHANGES = {
    "a column": lambda example: example.columns.update(level=2),
    "a column, by assignment": lambda example: operator.setitem(example.columns, "level", 2),
    "a column, removed": lambda example: example.columns.pop("question"),
    "a list inside": lambda example: example.columns["numbers"].sort(),
    "a dict inside a list": lambda example: example.columns["parts"][0].clear(),
    "the prompt": lambda example: example.prompt.append({"role": "user", "content": "?"}),
    "a message": lambda example: operator.setitem(example.prompt[0], "content", "?"),
}


@pytest.mark.faults
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_reward_that_changes_an_example_is_named_and_the_example_stays(change):
    row = {"question": "q", "level": 1, "numbers": [2, 1], "parts": [{"a": 1}]}
    example, before = (Example([{"role": "user", "content": "q"}], "1", copy.deepcopy(row)) for _ in range(2))

    def greedy_for_columns(example, response):
        change(example)
        return 0.0

    with pytest.raises(ValueError, match=r"Reward greedy_for_columns failed on example 0.* cannot be changed"):
        score(greedy_for_columns, [example], [["a"]])
    assert example == before
    assert repr(example) == repr(before)
    assert json.loads(json.dumps(example.columns)) == row


def test_copies_of_an_examples_columns_are_plain_and_may_be_changed():
    example = Example("q", columns={"numbers": [2, 1], "parts": {"a": []}})
    for copied in (copy.deepcopy(example.columns), pickle.loads(pickle.dumps(example.columns))):
        copied["numbers"].sort()
        copied["parts"]["a"].append(1)
        assert copied == {"numbers": [1, 2], "parts": {"a": [1]}}
    assert pickle.loads(pickle.dumps(example)) == example
    assert sorted(example.columns["numbers"]) == [1, 2]


# Deadline


def spins(example, response):
    while response == "b":
        pass
    return 0.0


def waits(example, response):
    time.sleep(60)


def backtracks(example, response):
    return float(re.fullmatch(r"(a+)+b", "a" * 60) is not None)


def is_stubborn(example, response):
    for _ in range(60):
        try:
            time.sleep(1)
        except Exception:
            continue


async def never_returns(completions):
    await asyncio.sleep(60)


@pytest.mark.faults
@pytest.mark.parametrize("reward", [spins, waits, backtracks, is_stubborn, never_returns])
def test_a_reward_that_does_not_end_is_named_at_the_deadline_with_its_stack(reward, capfd, monkeypatch, caplog):
    monkeypatch.setattr(deadline, "SLOW", 0.1)
    monkeypatch.setattr(logging.getLogger("grpo_jax"), "propagate", True)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=rf"longer than 0\.3 s, and was at reward {reward.__name__}.*reward_seconds"):
        score(reward, [Example("q", source="rows.jsonl:12")], [["a", "b"]], seconds=0.3)
    assert "(most recent call first)" in capfd.readouterr().err
    assert any(f"is at reward {reward.__name__}" in record.message for record in caplog.records)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == handler  # math-verify's
    assert score(exact, [SEVEN], [["7"]], seconds=0.3) == 1.0


@pytest.mark.faults
def test_a_reward_that_ignores_its_deadline_ends_the_process_with_all_stacks():
    program = (
        "from grpo_jax.rewards import Example, deadline, score\n"
        "deadline.GRACE = 0.5\n"
        "def ignores(example, response):\n"
        "    while True:\n"
        "        try:\n"
        "            while True: pass\n"
        "        except BaseException: pass\n"
        "score(ignores, [Example('q')], [['a']], seconds=0.5)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "in ignores" in ended.stderr


@pytest.mark.faults
def test_a_reward_that_exits_has_failed():
    def leaves(example, response):
        sys.exit(0)

    def leaves_trl(completions):
        sys.exit(0)

    for reward in (leaves, leaves_trl):
        with pytest.raises(ValueError, match=f"Reward {reward.__name__} failed on .* SystemExit: 0"):
            score(reward, [SEVEN], [["7"]])


@pytest.mark.faults
def test_a_reward_is_at_most_as_large_as_float32_has_room_for_its_square():
    largest = score(lambda example, response: 1e12, [SEVEN], [["7"]])
    assert np.isfinite(np.square(largest) * np.float32(1e6)).all()
    for value in (3e38, -3e38, 2e12):
        with pytest.raises(ValueError, match=r"a finite number of at most 1e\+12"):
            score(lambda example, response, value=value: value, [SEVEN], [["7"]])


@pytest.mark.parametrize("responses", [[], [["7"]], [["7"], ["7", "8"]], [[], []]])
def test_groups_that_do_not_match_the_examples_are_refused(responses):
    with pytest.raises(ValueError, match="a group of responses for each, all of one size"):
        score(exact, [SEVEN, SEVEN], responses)


def trl_levels(completions, level, **kwargs):
    return [None if "?" in text else float(number) for text, number in zip(completions, level, strict=True)]


async def trl_async(prompts, completions):
    await asyncio.sleep(0)
    return [float(len(prompt) + len(text)) for prompt, text in zip(prompts, completions, strict=True)]


def test_a_trl_function_sees_all_responses_and_columns_in_order():
    other = Example("1 + 1 = ?", "2", {"question": "1 + 1 = ?", "level": 5})
    rewards_PGR = score(trl_levels, [SEVEN, other], [["a", "?"], ["c", "d"]])
    np.testing.assert_array_equal(rewards_PGR[..., 0], [[1, math.nan], [5, 5]])


def test_a_trl_function_may_be_async_and_be_mixed_with_others():
    rewards_PGR = score(Mix(((exact, 1.0), (trl_async, 1.0))), [SEVEN], [["7", "77"]])
    np.testing.assert_array_equal(rewards_PGR, [[[1, 10], [0, 11]]])


def test_a_trl_function_may_be_async_where_an_event_loop_already_runs():
    async def notebook_cell():
        return score(trl_async, [SEVEN], [["7"]])

    assert asyncio.run(notebook_cell()) == 10.0


def test_a_trl_function_gets_messages_if_the_prompt_is_a_chat():
    def trl_chat(prompts, completions, **kwargs):
        assert prompts == [[{"role": "user", "content": "5 + 4 = ?"}]] * 2
        return [
            float(completion[0]["role"] == "assistant") + len(completion[0]["content"]) for completion in completions
        ]

    np.testing.assert_array_equal(score(trl_chat, [CHAT], [["9", "99"]]), [[[2], [3]]])


def test_a_trl_function_gets_tokens_and_step_if_they_are_given():
    seen = {}

    def trl_curious(completions, **kwargs):
        seen.update(kwargs)
        return [0.0 for _ in completions]

    score(trl_curious, [SEVEN], [["7", "8"]], tokens=[[[5], [6, 2]]], step=3)
    assert seen["completion_ids"] == [[5], [6, 2]]
    assert seen["trainer_state"].global_step == 3
    assert seen["question"] == ["3 + 4 = ?"] * 2
    score(functools.partial(trl_curious, scale=2), [SEVEN], [["7"]])
    assert seen["scale"] == 2


def test_a_trl_function_gets_none_for_a_column_that_an_example_lacks():
    def trl_hints(completions, hint):
        return [len(text) if text else 0.0 for text in hint]

    rewards_PGR = score(trl_hints, [SEVEN, Example("?", "1", {"hint": "look"})], [["a"], ["b"]])
    np.testing.assert_array_equal(rewards_PGR[:, 0, 0], [0, 4])


@pytest.mark.faults
@pytest.mark.parametrize(
    "values", [{"a": 1.0, "b": 2.0}, {1.0, 2.0}, "12", iter([1.0, 2.0]), np.ones((2, 1)), 1.0, None]
)
def test_a_trl_function_returns_a_list_and_nothing_else(values):
    def trl_odd(completions):
        return values

    with pytest.raises(ValueError, match="Reward trl_odd must return a list with one value per completion; got a"):
        score(trl_odd, [SEVEN], [["7", "8"]])


def test_a_function_is_trls_by_any_parameter_that_only_trl_passes():
    def overlong(completion_ids, **kwargs):
        return [-float(len(ids) > 3) for ids in completion_ids]

    def by_prompt(prompts, **kwargs):
        return [float(len(prompt)) for prompt in prompts]

    rewards_PGR = score(overlong, [Example("q")], [["a", "b"]], [[[1, 2], [1, 2, 3, 4]]], 0)
    np.testing.assert_array_equal(rewards_PGR[0, :, 0], [0.0, -1.0])
    np.testing.assert_array_equal(score(by_prompt, [Example("four")], [["a", "b"]]), [[[4], [4]]])
    assert score(lambda example, response, **kwargs: 2.0, [SEVEN], [["7"]]) == 2.0


def test_a_missing_column_that_a_trl_function_needs_is_named():
    def trl_solution(completions, solution):
        return [1.0]

    with pytest.raises(ValueError, match="Reward trl_solution needs solution; available are question, level"):
        score(trl_solution, [SEVEN], [["7"]])


def test_a_trl_function_that_fails_or_skips_a_response_is_named():
    def trl_short(completions):
        return [1.0]

    def trl_broken(completions):
        raise KeyError("answer")

    def trl_nan(completions):
        return [0.0, math.nan]

    with pytest.raises(ValueError, match="Reward trl_short must return one value per completion: 2; got 1"):
        score(trl_short, [SEVEN], [["7", "8"]])
    with pytest.raises(ValueError, match="Reward trl_broken failed on a batch of 2 responses to 1 examples: KeyError"):
        score(trl_broken, [SEVEN], [["7", "8"]])
    with pytest.raises(ValueError, match=r"Reward trl_nan must return a finite number.* example 0, response 1"):
        score(trl_nan, [SEVEN], [["7", "8"]])
