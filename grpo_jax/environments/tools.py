"""Functions as an environment: the model calls them by name, and is shown what they return."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.environments.calls import BadCall, ToolCall, calls_in
from grpo_jax.environments.environment import Bounded, Turn
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.mixing import name

Tool = Callable[..., Any]


class Tools:
    """The environment of functions that a model may call.

    They need type hints, and a docstring that describes their arguments (`Args:`), as the model is shown both by its
    chat template. A reply may make several calls; each is answered by a message of role `tool`, and what a function
    raises is shown to the model. A reply without a call is the last one. A turn's metrics count its `calls`, those of
    them that can be read (`calls_parsed`), and those that failed (`calls_failed`).
    """

    def __init__(self, *functions: Tool):
        names = [name(function) for function in functions]
        if not names:
            raise ValueError("tools needs at least one function, such as tools(search).")
        twice = [each for each in names if names.count(each) > 1]
        if twice:
            raise ValueError(f"The model calls tools by name, and two are called {twice[0]}: rename one.")
        self.functions = dict(zip(names, functions, strict=True))

    @property
    def offered(self) -> Sequence[Tool]:
        """The functions that the model is told of."""
        return list(self.functions.values())

    def reset(self, example: Example, seed: int) -> Sequence[Message]:
        """Nothing is shown but the example's prompt."""
        return ()

    def step(self, reply: Message) -> Turn:
        """What the functions return that the reply calls."""
        calls = calls_in(reply["content"])
        if not calls:
            return Turn(done=True, metrics={"calls": 0.0, "calls_parsed": 0.0, "calls_failed": 0.0})
        answers = [self._answer(call) for call in calls]
        counts = {
            "calls": len(calls),
            "calls_parsed": sum(isinstance(call, ToolCall) for call in calls),
            "calls_failed": sum(failed for _, failed in answers),
        }
        return Turn([message for message, _ in answers], metrics={name: float(count) for name, count in counts.items()})

    def _answer(self, call: ToolCall | BadCall) -> tuple[Message, bool]:
        """What the model is shown, and whether the call has failed."""
        text, failed = self._called(call)
        named = {"name": call.name} if isinstance(call, ToolCall) else {}
        return {"role": "tool", **named, "content": text}, failed

    def _called(self, call: ToolCall | BadCall) -> tuple[str, bool]:
        if isinstance(call, BadCall):
            return f"Error: this call cannot be read: {call.why}.", True
        if call.name not in self.functions:
            return f"Error: there is no tool {call.name!r}. There are {', '.join(self.functions)}.", True
        function = self.functions[call.name]
        try:
            arguments = inspect.signature(function).bind(**call.arguments)
        except TypeError as error:
            return f"Error: {call.name} was called with other arguments than it takes: {error}.", True
        try:
            return as_text(function(*arguments.args, **arguments.kwargs)), False
        except Exception as error:
            return f"Error: {type(error).__name__}: {error}", True


def tools(*functions: Tool, **limits: Any) -> Bounded:
    """An environment of functions, as in `tools(search, calculate, turns=4)`; `limits` are those of `Bounded`."""
    return Bounded(Tools(*functions), **limits)


def as_text(result: Any) -> str:
    """What a function has returned as the model is shown it: text as it is, anything else as JSON or as Python does."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(result)
