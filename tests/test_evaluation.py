"""Evaluation: what is estimated from several answers to a prompt, how sure it is, and what is kept of it."""

import itertools
import math

import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.evaluation.answering import calls_of
from grpo_jax.evaluation.estimators import average, majority, majority_at, pass_at, sizes
from grpo_jax.evaluation.intervals import interval
from grpo_jax.evaluation.result import Evaluated, changes
from grpo_jax.evaluation.voting import said_by
from grpo_jax.rewards import Mix, exact, last_number, says
from grpo_jax.training.held_out import without_gain
from grpo_jax.training.record import Record

NAN = math.nan


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_that_have_a_right_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [1.0] * c + [0.0] * (n - c)
        choices = [max(chosen) for chosen in itertools.combinations(right, k)]
        found = pass_at(np.array([right]), k)[0]
        assert found == pytest.approx(np.mean(choices), abs=1e-12)
        assert found == 1 if k > n - c else found < 1  # exactly


def test_pass_at_k_of_many_answers_does_not_overflow():
    right_PG = np.zeros((1, 4096))
    right_PG[0, :5] = 1
    expected = 1 - math.comb(4091, 1000) / math.comb(4096, 1000)  # exact whole numbers
    assert pass_at(right_PG, 1000)[0] == pytest.approx(expected, rel=1e-9)


def test_answers_without_a_score_are_left_out_of_the_numbers_of_a_prompt():
    right_PG = np.array([[1, NAN, 0, NAN], [NAN, NAN, NAN, NAN], [0, 0, NAN, 1]])
    np.testing.assert_allclose(average(right_PG), [0.5, NAN, 1 / 3])
    np.testing.assert_allclose(pass_at(right_PG, 1), [0.5, NAN, 1 / 3])
    np.testing.assert_allclose(pass_at(right_PG, 2), [1, NAN, 2 / 3])  # of 0 0 1, two of three pairs have the 1
    np.testing.assert_allclose(pass_at(right_PG, 3), [NAN, NAN, 1])  # the first has two answers with a score


def test_a_single_answer_keeps_its_number_to_the_last_bit():
    values_PG = np.array([[0.1], [1.1], [NAN]], np.float32)
    assert average(values_PG).dtype == np.float32
    np.testing.assert_array_equal(average(values_PG), values_PG[:, 0])


@pytest.mark.parametrize(
    ("right", "said", "expected"),
    [
        ([1, 1, 0, 0, 0], ["7", "7", "8", "9", "6"], 1),
        ([1, 1, 0, 0, 0], ["7", "7", "8", "8", "6"], 0.5),  # a tie is drawn
        ([1, 0, 0], ["7", "8", "9"], 1 / 3),
        ([0, 0, 0], [None, None, None], 0),
        ([1, 0, 0], ["7", None, None], 1),  # what answers nothing has no vote
        ([1, 0, 0], ["7", "7", "8"], 0.5),  # the same answer, once in the wrong form
        ([NAN, 1, 0], ["7", "7", "8"], 1),
        ([NAN, NAN, 0], ["7", "7", "8"], NAN),
    ],
)
def test_the_most_frequent_answer_counts_and_ties_are_drawn(right, said, expected):
    assert majority(np.array(right, float), said) == pytest.approx(expected, nan_ok=True)


def test_a_majority_of_k_is_the_mean_over_disjoint_groups_of_k_answers():
    right_PG, said = np.array([[1, 1, 0, 0, 0, 0, 1.0]]), [["a", "a", "b", "c", "c", "b", "a"]]
    assert majority_at(right_PG, said, 3)[0] == pytest.approx(0.5)  # aab is right, ccb is not, the last is not used


def test_the_numbers_k_are_powers_of_two_and_the_number_of_answers():
    assert [sizes(n) for n in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def shares(rng: np.random.Generator, prompts: int) -> np.ndarray:
    """pass@4 of eight answers each to prompts of which some are always right, and others nearly never."""
    right_PG = rng.random((prompts, 8)) < rng.beta(0.5, 0.5, (prompts, 1))
    return pass_at(right_PG.astype(float), 4)


KINDS = {  # how values are drawn, their mean, and their range
    "half right": (lambda rng: (rng.random(64) < 0.5).astype(float), 0.5, (0.0, 1.0)),
    "nearly all right": (lambda rng: (rng.random(64) < 0.97).astype(float), 0.97, (0.0, 1.0)),
    "hardly any right": (lambda rng: (rng.random(32) < 0.05).astype(float), 0.05, (0.0, 1.0)),
    "lengths": (lambda rng: rng.gamma(4, 1, 64), 4.0, (None, None)),
    "pass at 4": (lambda rng: shares(rng, 64), None, (0.0, 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_the_truth_as_often_as_they_say(kind):
    """Of 200 intervals at 95 %, 190 are expected; 178 would be 4 deviations less. Exact ones cover more."""
    draw, mean, ends = KINDS[kind]
    rng = np.random.default_rng(5)
    mean = shares(rng, 200_000).mean() if mean is None else mean
    found = [interval(draw(rng), 0.95, *ends) for _ in range(200)]
    hits = sum(each.low - 1e-9 <= mean <= each.high + 1e-9 for each in found)
    assert hits >= 178, hits


def test_equal_numbers_have_the_exact_interval_of_their_range_and_none_without_one():
    ones = np.ones(64)
    assert interval(ones, 0.95) is None
    found = interval(ones, 0.95, 0.0, 1.0)
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 64)), 1)  # Clopper and Pearson, 64 of 64
    found = interval(0 * ones, 0.95, -1.0, 1.0)
    assert found.low == -found.high and 0.05 < found.high < 0.06
    assert interval(np.array([0.3]), 0.95, 0.0, 1.0) is None is interval(np.array([NAN, NAN]), 0.95, 0.0, 1.0)


def test_the_same_numbers_have_the_same_interval_and_missing_ones_do_not_count():
    values_P = np.random.default_rng(0).random(40)
    first = interval(values_P, 0.95)
    assert first == interval(np.append(values_P, NAN), 0.95)
    assert first.low < values_P.mean() < first.high
    wider = interval(values_P, 0.99)
    assert wider.low < first.low and first.high < wider.high


def result(values, prompts=None, name="reward") -> Evaluated:
    values = np.array(values, float)
    prompts = list(map(str, range(len(values)))) if prompts is None else prompts
    return Evaluated({name: values.mean()}, {name: values}, {}, prompts=prompts)


def test_a_difference_is_taken_prompt_by_prompt_so_its_interval_is_narrower_than_theirs():
    rng = np.random.default_rng(1)
    hard_P = rng.random(64)  # how hard each prompt is
    before, after = result(hard_P), result(hard_P + 0.1 + 0.01 * rng.standard_normal(64))
    found = changes(before, after)["reward"]
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert found.interval.high - found.interval.low < 0.02
    alone = interval(before.of_prompts["reward"], 0.95)
    assert alone.high - alone.low > 0.1


def test_a_difference_leaves_out_prompts_that_one_side_could_not_score():
    assert changes(result([NAN, 1, 2, 4]), result([5, 2, NAN, 6]))["reward"].mean == pytest.approx(1.5)


def test_other_prompts_cannot_be_compared():
    with pytest.raises(ValueError, match=r"compared prompt by prompt.*same examples"):
        changes(result([1, 2]), result([1, 2], ["other", "prompts"]))


@says(lambda response: response.strip()[:1] or None)
def letters(example, response):
    return 0.5


class Guide:
    """A reward of two criteria that says what a response answers."""

    criteria = ("dishes", "time")

    def __call__(self, example, response):
        return {"dishes": 1.0, "time": 0.0}

    def said(self, response):
        return response.split()


def test_rewards_say_which_answers_are_the_same():
    numbers = said_by(Mix(((last_number, 1.0),)))
    assert numbers("It is 12.0 apples") == numbers("12") != numbers("13")
    assert numbers("no idea") is None
    whole = said_by(Mix(((last_number, 0.1), (exact, 1.0))))  # the larger weight
    assert whole("12.") == whole("12") != whole("It is 12") and whole(" ") is None
    assert said_by(Mix(((exact, 1.0), (last_number, 0.1))), "last_number")("It is 12") == 12
    assert said_by(Mix(((letters, 1.0),)))(" b) Rome") == "b"
    assert said_by(Mix(((gj.rewards.Guarded(letters, workers=1), 1.0),)))(" b) Rome") == "b"
    assert said_by(Mix(((lambda example, response: 1.0, 1.0),))) is None
    boxed = said_by(Mix(((gj.rewards.boxed_number, 1.0),)))
    assert boxed(r"so \boxed{12.0}") == boxed(r"\boxed{ 12 }") != boxed(r"\boxed{}") is boxed("#### 12") is None


def test_what_math_equal_marks_as_right_is_what_votes():
    said = said_by(Mix(((gj.rewards.MathEqual(), 1.0),)))
    assert said(r"so \boxed{\frac12}") == said("#### 0.5") == said(" 1/2 ")  # without a mark, all of it is the answer
    assert said(r"\boxed{ x + 1 }") == "x+1" and said("") is said("x" * 2000) is None


def test_the_reward_of_a_named_criterion_says_what_is_the_same():
    mix = Mix(((last_number, 1.0), (Guide(), 0.1)))
    assert said_by(mix)("It is 12") == 12
    with pytest.raises(ValueError, match=r"said of reward Guide .* a string, a tuple.*got \['It', 'is', '12'\]"):
        said_by(mix, "Guide/time")("It is 12")


def test_a_reward_that_says_what_is_right_is_known_or_may_be_a_criterion_of_one_that_was_not_called_yet():
    mix = Mix(((last_number, 1.0), (letters, 0.1)))  # functions, which may return criteria
    gj.Evaluation(right="letters/first").check_right(mix)
    assert gj.Evaluation(right="letters").column(mix) == 1 and gj.Evaluation().column(mix) is None
    for wrong in ("latters", "letter/first"):
        with pytest.raises(ValueError, match=r"and the rewards are last_number, letters\. Name one of them"):
            gj.Evaluation(right=wrong).check_right(mix)
    mix.learn({1: ("first", "last")})
    assert gj.Evaluation(right="letters/last").column(mix) == 2
    with pytest.raises(ValueError, match="the rewards are last_number, letters/first, letters/last"):
        gj.Evaluation(right="letters").column(mix)


def test_calls_are_alike_and_divide_over_the_devices():
    assert calls_of(5, 64, 8) == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert [len(call) for call in calls_of(100, 40, 1)] == [34, 34, 34]
    assert [len(call) for call in calls_of(100, 40, 8)] == [40, 40, 40]
    assert {index for call in calls_of(100, 40, 8) for index in call} == set(range(100))
    assert calls_of(3, 0, 1) == [[0], [1], [2]]  # more responses to a prompt than fit in a call


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"responses": 0}, "evaluation.responses must be at least 1"),
        ({"responses": 4, "temperature": 0.0}, "evaluation.temperature is 0, so all 4 answers .* the same"),
        ({"temperature": -1.0}, "evaluation.temperature must be at least 0.001"),
        ({"top_p": 0.0}, "evaluation.top_p must be above 0"),
        ({"confidence": 95.0}, "evaluation.confidence must be at least 0.5 and at most 0.9999; got 95.0"),
        ({"seed": -1}, "evaluation.seed"),
        ({"max_tokens": 0}, "evaluation.max_tokens"),
        ({"responses_at_once": 0}, "evaluation.responses_at_once"),
        ({"right_from": NAN}, "evaluation.right_from must be a finite number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        gj.Evaluation(**settings)


def test_patience_counts_evaluations_since_the_best():
    rows = [{"step": n, "eval/reward": value} for n, value in enumerate([0.3, 0.5, None, 0.5, 0.4])]
    assert [without_gain("eval/reward", rows[:n]) for n in range(6)] == [0, 0, 0, 1, 2, 3]
    assert without_gain("eval/reward", [{"step": 1, "reward": 1.0}]) == 0
    with pytest.raises(ValueError, match=r"train\.patience is 3: .*keep_best.* that is None\. Set it to eval/reward"):
        gj.Settings(steps=1, patience=3)
    with pytest.raises(ValueError, match=r"that is reward\."):
        gj.Settings(steps=1, patience=3, keep_best="reward")


def test_held_out_answers_are_read_as_they_were_written_and_written_anew_in_place(tmp_path):
    record, rows = Record(tmp_path), [{"step": 8, "prompt": "1 + 1", "reward": NAN, "sample": 0}]
    record.held_out(8, rows * 3)
    record.held_out(8, rows)  # as a resumed run does
    record.held_out(0, [])
    record.completions(9, rows)
    found = gj.RunDirectory(tmp_path)
    assert found.held_out_steps() == [0, 8] and found.held_out(8) == [rows[0] | {"reward": None}]
    assert found.held_out(0) == [] == found.held_out(5)
    assert len(found.answers(9)) == 1 and found.answers(8) == []
    record.held_out(16, rows, host=0, hosts=2)
    record.held_out(16, rows, host=1, hosts=2)
    assert found.held_out_steps() == [0, 8, 16] and len(found.held_out(16)) == 2
    assert not list(tmp_path.rglob("*.new"))
    record.close()


@pytest.mark.parametrize("kind", ["held_out", "completions"])
def test_answers_of_an_earlier_run_on_more_hosts_are_no_part_of_a_later_one(tmp_path, kind):
    found = gj.RunDirectory(tmp_path)
    read = found.held_out if kind == "held_out" else found.answers

    def hosts_of(step: int, hosts: int) -> list[int]:
        """The hosts whose answers to a step are read, once so many have written theirs."""
        records = [Record(tmp_path, step, writes=False) for _ in range(hosts)]
        for host, record in enumerate(records):
            getattr(record, kind)(step, [{"host": host, "of": hosts}], host, hosts)
        assert all(row["of"] == hosts for row in read(step))
        return [row["host"] for row in read(step)]

    assert hosts_of(100_000, 12) == list(range(12))  # in their order, not in that of file names
    assert hosts_of(1_000_000, 4) == [0, 1, 2, 3]
    (tmp_path / "completions" / f"{'held_out' if kind == 'held_out' else 'step'}_100000.host_1.jsonl").unlink()
    for hosts in (4, 2, 1, 2):
        assert hosts_of(100_000, hosts) == list(range(hosts))
    assert len(read(1_000_000)) == 4 and len(list(tmp_path.rglob("*_100000*.jsonl"))) == 6
