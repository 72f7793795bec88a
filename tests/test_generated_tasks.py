import json
import re
from fractions import Fraction

import numpy as np
import pytest

from grpo_jax.rewards import score
from grpo_jax.tasks import boxed_math, json_format, letter_counting, reverse_text

MAKERS = [boxed_math, json_format, letter_counting, reverse_text]


def asked(example):
    return example.prompt[-1]["content"]


@pytest.mark.parametrize("make", MAKERS)
def test_gold_answers_earn_every_reward(make):
    task = make(train=40, held_out=10)
    examples = [*task.train, *task.held_out]
    np.testing.assert_array_equal(score(task.reward, examples, [[each.answer] for each in examples]), 1.0)


@pytest.mark.parametrize("make", MAKERS)
def test_an_empty_answer_and_the_question_itself_earn_nothing(make):
    task = make(train=20, held_out=0)
    rewards_PGR = score(task.reward, task.train, [["", "no"] for _ in task.train])
    assert (rewards_PGR[..., 0] == 0).all()
    repeated_PGR = score(task.reward, task.train, [[asked(each)] for each in task.train])
    assert (repeated_PGR[..., 0] == 0).all()


@pytest.mark.parametrize("make", MAKERS)
def test_a_task_is_a_function_of_its_seed_and_holds_out_what_it_does_not_train_on(make):
    task = make(train=300, held_out=60, seed=1)
    assert task == make(train=300, held_out=60, seed=1)
    assert task != make(train=300, held_out=60, seed=2)
    assert (len(task.train), len(task.held_out)) == (300, 60)
    questions = {tuple(sorted(re.findall(r"\w+", asked(each)))) for each in task.train}
    assert not questions & {tuple(sorted(re.findall(r"\w+", asked(each)))) for each in task.held_out}


def test_more_questions_than_exist_are_refused():
    with pytest.raises(ValueError, match=r"ask for 400 different questions, and after \d+ no more were found"):
        reverse_text(train=300, held_out=100, words=1)
    with pytest.raises(ValueError, match="words must be"):
        letter_counting(words=0)
    with pytest.raises(ValueError, match="largest must be"):
        boxed_math(largest=1)


def test_a_text_is_reversed_letter_by_letter():
    for example in reverse_text(train=20, held_out=0, words=3).train:
        text = re.search('"(.*)"', asked(example))[1]
        assert example.answer == "".join(reversed(text))
        assert len(text.split()) == 3


def test_letters_are_counted_in_the_text_alone():
    examples = letter_counting(train=200, held_out=0).train
    for example in examples:
        letter, text = re.search('letter "(.)" occur in "(.*)"', asked(example)).groups()
        assert int(example.answer) == sum(character == letter for character in text)
    assert {example.answer for example in examples} >= {"0", "1", "2", "3"}


def value(text):
    """A fraction as LaTeX writes it."""
    found = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", text)
    return Fraction(text) if found is None else Fraction(int(found[1] + found[2]), int(found[3]))


def test_the_answers_of_problems_solve_them():
    kinds = set()
    for example in boxed_math(train=300, held_out=0).train:
        answer, numbers = value(example.columns["answer"]), list(map(int, re.findall(r"\d+", asked(example))))
        kinds.add(example.columns["kind"])
        match example.columns["kind"], numbers:
            case "equation", [a, b, c]:
                assert a * answer + b == c
            case "average", [a, b, c, mean]:
                assert (a + b + c + answer) / 4 == mean
            case "fractions", [a, b, c, d]:
                sign = 1 if " + " in asked(example) else -1
                assert answer * b * d == a * d + sign * c * b
            case "percentage", [price, percent]:
                assert answer + Fraction(percent, 100) * price == price
            case "triangle", [base, height]:
                assert 2 * answer == base * height
            case "probability", [red, blue]:
                pairs = [(a, b) for a in range(red + blue) for b in range(red + blue) if a != b]
                assert answer == Fraction(sum(a < red and b < red for a, b in pairs), len(pairs))
            case "slope", [a, b, c, d]:
                assert b + answer * (c - a) == d
            case "divisor", [a, b]:
                assert answer == max(n for n in range(1, min(a, b) + 1) if a % n == b % n == 0)
            case other:
                raise AssertionError(other)
    assert len(kinds) == 8


def test_the_facts_of_a_text_are_in_the_object_and_its_keys_in_the_question():
    for example in json_format(train=60, held_out=0).train:
        for key, fact in json.loads(example.answer).items():
            assert f'"{key}"' in asked(example)
            facts = fact if isinstance(fact, list) else [fact]
            shown = [each for each in facts if each is not None and not isinstance(each, bool)]
            assert all(str(each) in example.columns["text"] for each in shown)


def test_json_must_be_all_there_is():
    task = json_format(train=1, held_out=0)
    gold = task.train[0].answer
    for wrapped in (f"```json\n{gold}\n```", f"Here: {gold}", gold[:-1], f"[{gold}]"):
        assert score(task.reward, task.train, [[wrapped]]).tolist() == [[[0.0, 0.0]]]
    assert score(task.reward, task.train, [[f" {gold}\n"]]).tolist() == [[[1.0, 1.0]]]
