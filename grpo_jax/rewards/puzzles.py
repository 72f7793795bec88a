"""A reward for puzzles of reasoning-gym, by the check that each of its data sets has for answers."""

import copy
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from grpo_jax.rewards.example import Example
from grpo_jax.rewards.expressions import answered

Evaluation = Literal["refused", "unsafe"]
LONGEST = 20_000  # characters; a longer answer earns 0

_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")  # the last two call eval


@dataclass(frozen=True)
class SolvesPuzzle:
    """What reasoning-gym's own check gives for the answer, from 0 to 1; many give a small part to a wrong one.

    The answer is the text between the last `<answer>` and `</answer>`, or else the whole response. The data set is the
    one that the column `metadata` names.
    """

    evaluation: Evaluation = "refused"  # of answers as Python, as some checks do; unsafe: an answer can do all you can

    def __post_init__(self) -> None:
        if self.evaluation not in get_args(Evaluation):
            raise ValueError(f"evaluation must be {' or '.join(get_args(Evaluation))}; got {self.evaluation!r}.")

    def check(self, example: Example) -> None:
        """Refuses rows that are no puzzles, and checks that would run answers as Python."""
        name = _data_set(example)
        if self.evaluation != "unsafe" and _runs_answers(name):
            raise ValueError(
                f"the check of {name} runs answers as Python with eval, so a response could do whatever you can. Use"
                " another reward, such as exact, or write evaluation: unsafe where the machine has nothing to lose."
            )
        gold = example.columns.get("answer")
        if isinstance(gold, str):
            _scorer(name)(gold, entry=_entry(example))

    def __call__(self, example: Example, response: str) -> float:
        """From 0 to 1."""
        self.check(example)
        answer = answered(response)
        if not answer or len(answer) > LONGEST:
            return 0.0
        try:
            return float(_scorer(_data_set(example))(answer, entry=_entry(example)))
        except Exception:  # the gold could be checked, so it is the answer that could not be read
            return 0.0


def _data_set(example: Example) -> str:
    """The name of the data set that an example is from."""
    metadata = example.columns.get("metadata")
    name = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(
            "SolvesPuzzle needs rows of reasoning-gym, whose column metadata has source_dataset; read them with"
            " format: reasoning-gym, and keep this column."
        )
    return name


def _entry(example: Example) -> dict[str, Any]:
    """The row as reasoning-gym made it, in which its checks may write."""
    return copy.deepcopy(dict(example.columns))


@functools.cache
def _scorer(name: str) -> Callable[..., Any]:
    try:
        library = importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise ValueError(
            'SolvesPuzzle needs reasoning-gym, which is not installed: pip install "grpo-jax[reasoning-gym]"'
        ) from error
    return library.get_score_answer_fn(name)


@functools.cache
def _runs_answers(name: str) -> bool:
    """Whether the check of a data set, or one that it extends, has a call of eval."""
    owner = getattr(_scorer(name), "__self__", None)  # the scorer is a method of the data set
    checks = [vars(each)["score_answer"] for each in type(owner).__mro__ if "score_answer" in vars(each)]
    return not checks or any(_EVALUATES.search(inspect.getsource(check)) for check in checks)
