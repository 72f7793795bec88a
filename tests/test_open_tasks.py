"""Tasks with open answers: what a good answer earns, what a cheat earns, and what is held out."""

import re
from collections.abc import Iterator

import pytest

from grpo_jax.rewards import Example, check_examples
from grpo_jax.rewards.rubrics import Rubric
from grpo_jax.rewards.rubrics.wording import plain
from grpo_jax.tasks import grounded, travel

TASKS = {"travel": travel(), "grounded": grounded()}
BOTH = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def rubric_of(task) -> Rubric:
    ((rubric, weight),) = task.reward.parts
    assert weight == 1.0
    return rubric


def earned(task, example: Example, response: str) -> float:
    """The whole reward: the weighted sum of the criteria times the gates."""
    rubric = rubric_of(task)
    ((values,),) = rubric([example], [[response]])
    total = sum(rubric.weights[name] * value for name, value in values.items() if name not in rubric.gates)
    for gate in rubric.gates:
        total *= values[gate]
    return total


@BOTH
@pytest.mark.slow
def test_every_gold_answer_earns_one(task):
    for example in (*task.train[::3], *task.held_out):
        assert earned(task, example, example.answer) == pytest.approx(1), example.label


@BOTH
def test_there_are_a_few_hundred_examples_all_different_and_checked(task):
    questions = [example.prompt[-1]["content"] for example in (*task.train, *task.held_out)]
    assert len(set(questions)) == len(questions) and 200 < len(task.train) < 1000 and len(task.held_out) >= 48
    check_examples(task.reward, task.train[::5], "training")
    assert all(example.source for example in task.train)


def test_no_city_that_is_held_out_is_trained_on():
    task = TASKS["travel"]
    trained, kept = ({example.columns["city"] for example in part} for part in (task.train, task.held_out))
    assert not trained & kept and len(kept) == 6 and "Osaka" in kept
    for example in task.train:
        assert not any(city in example.prompt[-1]["content"] for city in kept)
    everything = travel(held_out=0)
    assert everything.held_out == () and len(everything.train) == len(task.train) + len(task.held_out)
    with pytest.raises(ValueError, match=r"task\.held_out must be at least 0 and below 39"):
        travel(held_out=39)


def test_no_document_that_is_held_out_is_trained_on():
    task = TASKS["grounded"]
    trained, kept = ({example.columns["document"] for example in part} for part in (task.train, task.held_out))
    names = {
        re.findall(r"The \w+ \w+", document)[0] for document in kept if " crowns" in document and "founded" in document
    }
    assert not trained & kept and len(kept) == 12
    assert names and not any(name in document for name in names for document in trained)
    assert grounded(seed=1).train != task.train and grounded().train == task.train
    assert grounded(documents=0, held_out=0).held_out == ()


def cheats(example: Example) -> Iterator[str]:
    """Answers that earn nothing if a person judges them."""
    columns = example.columns
    values = [each for value in columns.values() for each in ([value] if isinstance(value, str) else value)]
    yield ""
    yield example.prompt[-1]["content"]
    yield ", ".join(each if isinstance(each, str) else each[0] for each in values)
    yield "I'm sorry, as an AI I cannot."
    if "elsewhere" in columns:
        yield f"Go to {', '.join(columns['elsewhere'][:40])} in the morning, the evening or at night."
        yield f"Do not go to {columns['places'][0]}, and not in the evening."


@BOTH
def test_nothing_that_fools_a_rubric_earns_half_of_what_an_answer_does(task):
    for example in task.train[::23]:
        for cheat in cheats(example):
            assert earned(task, example, cheat) <= 0.5, (example.label, cheat[:200])


def example_of(city: str) -> Example:
    return next(example for example in TASKS["travel"].held_out if example.columns["city"] == city)


def test_an_answer_about_osaka_has_to_stay_there():
    task, osaka = TASKS["travel"], example_of("Osaka")
    ((good, far, not_there, vague),) = rubric_of(task)(
        [osaka],
        [
            [
                "In Osaka go to D\u014dtonbori in the evening. Try takoyaki and okonomiyaki there.",
                "In Osaka go to Shibuya or Asakusa in the evening.",
                "Do not go to Dotonbori, it is the place for tourists.",
                "You can find many restaurants and shops in the city at any time.",
            ]
        ],
    )
    assert (good["places"], good["dishes"], good["time"], good["stays"]) == (1, 1, 1, 1)
    assert (far["places"], far["stays"]) == (0, 0)
    assert (not_there["places"], not_there["stays"]) == (0, 1)
    assert (vague["places"], vague["dishes"], vague["time"], vague["prose"]) == (0, 0, 0, 1)


def test_no_city_counts_its_own_names_as_being_elsewhere():
    for example in (*TASKS["travel"].train, *TASKS["travel"].held_out):
        columns = example.columns
        own = {plain(each) for item in columns["places"] for each in ([item] if isinstance(item, str) else item)}
        assert not own & {plain(each) for each in columns["elsewhere"]}
        assert columns["city"] not in columns["elsewhere"]


def test_what_a_document_does_not_say_is_not_to_be_answered():
    task = TASKS["grounded"]
    known = next(example for example in task.held_out if "Who keeps the parcels?" in example.columns["question"])
    unknown = next(example for example in task.held_out if "What does the repair" in example.columns["question"])
    assert earned(task, known, "Mr Oduya, the porter.") == pytest.approx(1)
    assert earned(task, known, "The document does not say.") == pytest.approx(0)  # complete, but it evades
    assert earned(task, known, "The porter, Mr Oduya, and his friend Alice.") < 0.9
    assert earned(task, unknown, "It costs 900 crowns.") == 0
    assert earned(task, unknown, "The document doesn\u2019t say.") == pytest.approx(1)
