"""Environments that were written for other libraries, as environments of this one.

TRL (`environment_factory`): the public methods of an object are the tools, `reset(**row)` may return text that is added
to the prompt, and `get_reward()`, if there is one, is the reward of the whole conversation. OpenEnv: `reset()` and
`step(action)` return an observation with `reward` and `done`. Both are plain objects here, which worker processes run:
no server is started, and what is async is waited for.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from grpo_jax.environments.environment import Environment, Turn
from grpo_jax.environments.tools import Tool, Tools, as_text
from grpo_jax.rewards.example import Example, Message

OF_TRL = ("reset", "get_reward")  # public methods that are no tools


class OfTRL:
    """An object whose public methods are tools."""

    def __init__(self, inner: Any):
        self.inner = inner

    @property
    def offered(self) -> Sequence[Tool]:
        """The methods that the model is told of."""
        return list(self._tools.functions.values())

    @property
    def _tools(self) -> Tools:
        names = [name for name, _ in inspect.getmembers(type(self.inner), inspect.isfunction)]
        return Tools(*(getattr(self.inner, name) for name in names if name not in OF_TRL and not name.startswith("_")))

    def reset(self, example: Example, seed: int) -> Sequence[Message]:
        """Resets the object with the row of the data set; text that it returns is shown to the model."""
        text = _finished(self.inner.reset(prompt=example.prompt, answer=example.answer, **_others(example)))
        return () if text is None else [{"role": "user", "content": as_text(text)}]

    def step(self, reply: Message) -> Turn:
        """Calls the methods that the reply names. `get_reward` is asked after each reply, and its gain is paid."""
        turn, reward = self._tools.step(reply), getattr(self.inner, "get_reward", None)
        total = 0.0 if reward is None else _finished(reward())
        if total is None:
            return replace(turn, reward=None)
        gained, self.paid = float(total) - getattr(self, "paid", 0.0), float(total)
        return replace(turn, reward=gained)


class OfOpenEnv:
    """An object with `reset()` and `step(action)`; an action is made of the text of a reply."""

    def __init__(self, inner: Any, action: Callable[[str], Any]):
        self.inner, self.action = inner, action

    def reset(self, example: Example, seed: int) -> Sequence[Message]:
        """Resets the object, and shows its first observation."""
        takes_seed = "seed" in inspect.signature(self.inner.reset).parameters
        first = _finished(self.inner.reset(seed=seed) if takes_seed else self.inner.reset())
        return [{"role": "user", "content": observed(first)}]

    def step(self, reply: Message) -> Turn:
        """Takes the action that the reply stands for, and shows what is observed."""
        try:
            action = self.action(reply["content"])
        except ValueError as error:
            return Turn([{"role": "user", "content": f"Error: {error}"}], error=f"no action: {error}")
        found = _finished(self.inner.step(action))
        reward = getattr(found, "reward", None)
        answer = [{"role": "user", "content": observed(found)}]
        return Turn(answer, 0.0 if reward is None else float(reward), bool(getattr(found, "done", False)))


def from_trl(inner: Any) -> Environment:
    """An object of a class that TRL's `environment_factory` takes, as an environment."""
    return OfTRL(inner)


def from_openenv(inner: Any, action: Callable[[str], Any] | None = None) -> Environment:
    """An object with OpenEnv's `reset()` and `step(action)`, as an environment.

    `action` makes an action of the text of a reply, and raises a ValueError for one that stands for none; without it
    the object's own `action_of(text)` does, if there is one, or else the text is the action.
    """
    own = getattr(inner, "action_of", as_text)
    return OfOpenEnv(inner, own if action is None else action)


def observed(observation: Any) -> str:
    """The text of an observation: what it has beside reward, done and metadata; a single text without its name."""
    inner = getattr(observation, "observation", observation)  # of a result that has an observation in it
    if isinstance(inner, str):
        return inner
    found = asdict(inner) if is_dataclass(inner) and not isinstance(inner, type) else _fields(inner)
    shown = {name: value for name, value in found.items() if name not in ("reward", "done", "metadata")}
    values = list(shown.values())
    return values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(shown, default=str)


def _fields(value: Any) -> Mapping[str, Any]:
    dumped = getattr(value, "model_dump", None)  # of pydantic
    if callable(dumped):
        return dict(dumped())
    return dict(value) if isinstance(value, Mapping) else dict(vars(value))


def _others(example: Example) -> dict[str, Any]:
    return {name: value for name, value in example.columns.items() if name not in ("prompt", "answer")}


def _finished(value: Any) -> Any:
    """What a call gave, waited for if it is async."""

    async def waited() -> Any:
        return await value

    return asyncio.run(waited()) if inspect.isawaitable(value) else value
