"""Reward functions written for TRL, called as TRL calls them, and those for verifiers.

TRL scores a whole batch with one call by keyword: `prompts`, `completions`, `completion_ids`, every column of the data
set, `trainer_state`, `log_extra` and `log_metric`; the function, which may be async, returns a list of numbers or None.
Two things differ: (1) a function gets only the parameters that it has, so it needs no **kwargs; (2) `trainer_state` has
only `global_step`.

verifiers scores one completion with a call by keyword: `prompt`, `completion`, `answer`, `info`, `task` and `state`, a
dict of these; here every column of the data set is there, too. There is no `parser`: bind one with functools.partial.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from grpo_jax.rewards.batch import Batch
from grpo_jax.rewards.example import Example

TELLING = {"completions", "completion_ids"}  # parameters that only a function for TRL has
TELLING_VERIFIERS = {"completion", "state"}  # and those that only one for verifiers has
PASSED = {"prompts", "trainer_state", "log_extra", "log_metric"}  # that it may have instead, beside **kwargs
PASSED_BY_VERIFIERS = {"info", "task"}  # that it may have instead, if it has nothing that verifiers does not pass
OFFERED_BY_VERIFIERS = {"prompt", "answer", "info", "task"}
NOT_PASSED = {"prompt", "completion", "completion_ids"}  # columns that TRL does not pass on
WAYS_OUT = {  # for a parameter that is no column
    "parser": "There is no parser here: bind one with functools.partial.",
    "completion_ids": "Pass tokens to score, or give the parameter a default.",
    "trainer_state": "Pass step to score, or give the parameter a default.",
}
RESERVED = ("prompt", "answer", "completion", "advantage")  # columns of the recorded answers


@dataclass(frozen=True)
class TrainerState:
    """What a function for TRL may ask of the training: how many steps are done."""

    global_step: int

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"trainer_state has global_step alone here, and no {name}")


@dataclass(frozen=True)
class Notes:
    """What rewards want to be recorded beside the rewards: numbers of the step, and a value for each response."""

    count: int  # of responses
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)

    def log_metric(self, name: str, value: Any) -> None:
        """Records a number of this step; the mean, if it is called again with this name."""
        number = as_number(value)
        if not isinstance(number, numbers.Real) or not math.isfinite(number):
            raise ValueError(f"log_metric takes a finite number; got {value!r} for {name!r}.")
        self.metrics.setdefault(_named(name, "log_metric"), []).append(float(number))

    def log_extra(self, column: str, values: Any) -> None:
        """Records a value for each response, beside it among the answers."""
        if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or len(values) != self.count:
            raise ValueError(f"log_extra takes one value per completion, {self.count}; got {values!r:.200}.")
        if column in RESERVED or column.startswith("rewards/"):
            raise ValueError(f"Recorded answers have a column {column} already: give log_extra another name.")
        self.extras[_named(column, "log_extra")] = [_plain(value) for value in values]

    def means(self) -> dict[str, float]:
        """The mean of each number that was logged."""
        return {name: sum(values) / len(values) for name, values in self.metrics.items()}


def as_number(value: Any) -> Any:
    """The Python number in a scalar of NumPy, JAX or torch; anything else as it is."""
    is_array = hasattr(value, "dtype") and hasattr(value, "item") and tuple(getattr(value, "shape", (1,))) == ()
    return value.item() if is_array else value


def offered(batch: Batch, notes: Notes) -> dict[str, Any]:
    """What TRL passes to a function that scores all responses, group after group."""
    repeated = [example for example, _ in batch.pairs()]
    found = _columns(repeated) | _messages(repeated, [response for _, response in batch.pairs()])
    if batch.tokens is not None:
        found["completion_ids"] = [list(ids) for group in batch.tokens for ids in group]
    if batch.step is not None:
        found["trainer_state"] = TrainerState(batch.step)
    return found | {"log_extra": notes.log_extra, "log_metric": notes.log_metric}


def offered_to_verifiers(example: Example, response: str) -> dict[str, Any]:
    """What verifiers passes to a function that scores one response, and the columns of the data."""
    both = {name.removesuffix("s"): values[0] for name, values in _messages([example], [response]).items()}
    info, task = example.columns.get("info", {}), example.columns.get("task", "default")
    both |= {"answer": example.answer, "info": info, "task": task}
    return dict(example.columns) | both | {"state": dict(both)}


def accepted(reward: Callable[..., Any], label: str, offered: dict[str, Any]) -> dict[str, Any]:
    """What the function has parameters for; refuses one that needs more than is offered."""
    parameters = inspect.signature(reward).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {parameter.name: parameter for parameter in parameters if parameter.kind not in variadic}
    missing = [
        name for name, parameter in named.items() if parameter.default is parameter.empty and name not in offered
    ]
    if missing:
        way_out = WAYS_OUT.get(missing[0], "Add the column to the data set, or give the parameter a default.")
        raise ValueError(f"Reward {label} needs {', '.join(missing)}; available are {', '.join(offered)}. {way_out}")
    return offered if takes_all else {name: value for name, value in offered.items() if name in named}


def _columns(examples: Sequence[Example]) -> dict[str, Any]:
    names = dict.fromkeys(name for example in examples for name in example.columns)
    return {name: [example.columns.get(name) for example in examples] for name in names if name not in NOT_PASSED}


def _messages(examples: Sequence[Example], responses: Sequence[str]) -> dict[str, Any]:
    """Prompts and completions: strings where the prompt is a string, messages where it is a chat. As with TRL, an
    assistant's message that was continued is the beginning of the completion.
    """
    completions = [
        response if isinstance(example.prompt, str) else [{"role": "assistant", "content": _begun(example) + response}]
        for example, response in zip(examples, responses, strict=True)
    ]
    prompts = [
        example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]
        for example in examples
    ]
    return {"prompts": prompts, "completions": completions}


def _begun(example: Example) -> str:
    """The assistant's message at the end of a chat, which the response continues."""
    last = {} if isinstance(example.prompt, str) or not example.prompt else example.prompt[-1]
    return str(last["content"]) if last.get("role") == "assistant" else ""


def _named(name: Any, function: str) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{function} takes a name, and then what is logged; got {name!r}.")
    return name


def _plain(value: Any) -> Any:
    """A value as JSON holds it: what is neither a number nor a text is written as Python shows it."""
    value = as_number(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
