"""Puzzles of reasoning-gym as data: with the library where it is installed, else with a stand-in of its interface."""

import random
import sys
import types
from dataclasses import dataclass

import pytest

from grpo_jax.rewards import Example, SolvesPuzzle, check_examples, score
from grpo_jax.tasks import data


@dataclass
class Options:
    seed: int | None = None
    size: int = 500
    least: int = 1

    def __post_init__(self):
        assert self.size > 0, "size must be positive"


class Sums:
    """As the data sets of reasoning-gym: items by number from the seed, and a check for answers."""

    name = "sums"

    def __init__(self, options):
        self.options = options

    def __len__(self):
        return self.options.size

    def __getitem__(self, index):
        drawn = random.Random(self.options.seed + index)
        a, b = drawn.randint(self.options.least, 9), random.randint(0, 10**6)  # the second one from Python's generator
        return {
            "question": f"{a} + {b}",
            "answer": str(a + b),
            "metadata": {"source_dataset": self.name, "source_index": index, "terms": (a, b)},
        }

    def score_answer(self, answer, entry):
        entry["metadata"]["terms"].append(0)  # some checks write into what they are given
        return 1.0 if int(answer) == sum(entry["metadata"]["terms"]) else 0.01


class Evaluated(Sums):
    name = "evaluated"

    def score_answer(self, answer, entry):
        return float(eval(answer) == int(entry["answer"]))


@pytest.fixture
def gym(monkeypatch):
    known = {"sums": Sums, "evaluated": Evaluated}
    module, factory = types.ModuleType("reasoning_gym"), types.ModuleType("reasoning_gym.factory")
    factory.DATASETS = known
    module.create_dataset = lambda name, **options: known[name](Options(**options))
    module.get_score_answer_fn = lambda name: known[name](Options()).score_answer
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)


def sums(**options):
    return data("sums", format="reasoning-gym", prompt="question", options=options)


@pytest.mark.usefixtures("gym")
def test_puzzles_are_the_same_for_the_same_seed_and_solved_by_their_own_check():
    task = sums(size=6)
    random.random()
    assert task == sums(size=6, seed=0) != sums(size=6, seed=1)
    example = task.train[2]
    assert example.source == "sums, row 2" and example.columns["metadata"]["source_index"] == 2
    answer = example.answer
    responses = [f"It is <answer>\n{answer}</answer>.", answer, "<answer>1</answer>", "", "no number", "1" * 10**5]
    assert score(task.reward, [example], [responses])[0, :, 0].tolist() == pytest.approx([1, 1, 0.01, 0, 0, 0])
    check_examples(task.reward, task.train, "training")
    assert len(data("sums", format="reasoning-gym", prompt="question", held_out_share=0.3).held_out) > 100


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": "sum"}, "reasoning-gym has no data set 'sum'; it has 2 others. Did you mean sums?"),
        ({"options": {"size": 0}}, "task.options are not those of sums: AssertionError: size must be positive"),
        ({"options": {"sise": 1}}, "task.options are not those of sums: TypeError: .*sise"),
        ({"held_out": "sums"}, "set task.held_out_share instead of held_out"),
        ({"split": "test"}, "task.split and task.subset are for datasets"),
        ({"format": "jsonl", "options": {"size": 1}}, "task.options are for reasoning-gym; sums is read as jsonl"),
        ({"prompt": "prompt"}, "sums, row 0: no column 'prompt'; the line has question, answer, metadata"),
    ],
)
def test_what_is_no_puzzle_is_refused_with_the_way_out(arguments, words):
    with pytest.raises(ValueError, match=words):
        data(**{"path": "sums", "format": "reasoning-gym", "prompt": "question", **arguments})


@pytest.mark.usefixtures("gym")
def test_a_check_that_runs_answers_as_python_needs_the_word_unsafe():
    task = data("evaluated", format="reasoning-gym", prompt="question", options={"size": 1})
    with pytest.raises(ValueError, match=r"evaluated, row 0: .* runs answers as Python with eval.*evaluation: unsafe"):
        check_examples(task.reward, task.train, "training")
    with pytest.raises((TypeError, ValueError), match="evaluation"):
        SolvesPuzzle("yes")
    answer = f"{task.train[0].answer} + 0"
    assert score(SolvesPuzzle("unsafe"), task.train, [[answer]]).item() == 1.0


def test_other_rows_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .* format: reasoning-gym, and keep this column"):
        check_examples(SolvesPuzzle(), [Example("q", source="a.jsonl:1")], "training")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r'not installed: pip install "grpo-jax\[reasoning-gym\]"'):
        sums()
    row = Example("q", columns={"metadata": {"source_dataset": "no_such_puzzle"}})
    with pytest.raises(ValueError, match=r'SolvesPuzzle needs reasoning-gym.*pip install "grpo-jax\[reasoning-gym\]"'):
        check_examples(SolvesPuzzle(), [row], "training")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain_sum", "list_functions", "zebra_puzzles"])
def test_gold_answers_of_the_library_solve_its_puzzles(name):
    pytest.importorskip("reasoning_gym")
    arguments = {"path": name, "format": "reasoning-gym", "prompt": "question", "options": {"size": 3, "seed": 4}}
    task = data(**arguments)
    assert task == data(**arguments)
    golds = [[example.answer] for example in task.train]
    assert score(task.reward, task.train, golds).tolist() == [[[1.0]]] * 3
