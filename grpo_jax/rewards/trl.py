"""Reward functions written for TRL, called as TRL calls them.

TRL scores a whole batch with one call by keyword: `prompts`, `completions`, `completion_ids`, every column of the data
set, `trainer_state`, `log_extra` and `log_metric`; the function, which may be async, returns a list of numbers or None.
Two things differ: (1) a function gets only the parameters that it has, so it needs no **kwargs; (2) `trainer_state`
has only `global_step`, and `log_extra` and `log_metric` are never passed; TRL functions usually default them to None.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np

from grpo_jax.rewards.example import Example

TELLING = {"completions", "completion_ids"}  # parameters that only a function for TRL has
PASSED = {"prompts", "trainer_state", "log_extra", "log_metric"}  # that it may have instead, beside **kwargs
FAILURES = (Exception, SystemExit, asyncio.CancelledError)  # of a reward; sys.exit would end the run as if complete
NOT_PASSED = {"prompt", "completion", "completion_ids"}  # columns that TRL does not pass on


def is_trl(reward: Callable[..., Any]) -> bool:
    """Whether the reward was written for TRL: by the names of its parameters, as TRL passes all by keyword."""
    parameters = inspect.signature(reward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return bool(TELLING & set(parameters) or (takes_all and PASSED & set(parameters)))


def call(
    reward: Callable[..., Any],
    label: str,
    examples: Sequence[Example],
    responses: Sequence[Sequence[str]],
    tokens: Sequence[Sequence[Sequence[int]]] | None,
    step: int | None,
) -> list[object]:
    """What the function returns for all responses, group after group."""
    repeated = [example for example, group in zip(examples, responses, strict=True) for _ in group]
    offered = _columns(repeated) | _batch(repeated, [response for group in responses for response in group])
    if tokens is not None:
        offered["completion_ids"] = [list(ids) for group in tokens for ids in group]
    if step is not None:
        offered["trainer_state"] = SimpleNamespace(global_step=step)
    accepted = _accepted(reward, label, offered)
    try:
        values = reward(**accepted)
        values = _finished(values) if inspect.isawaitable(values) else values
    except FAILURES as error:
        raise ValueError(
            f"Reward {label} failed on a batch of {len(repeated)} responses to {len(examples)} examples:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not isinstance(values, list | tuple) and not (isinstance(values, np.ndarray) and values.ndim == 1):
        raise ValueError(
            f"Reward {label} must return a list with one value per completion; got a {type(values).__name__}."
        )
    if len(values) != len(repeated):
        raise ValueError(f"Reward {label} must return one value per completion: {len(repeated)}; got {len(values)}.")
    return list(values)


def _columns(examples: Sequence[Example]) -> dict[str, Any]:
    names = dict.fromkeys(name for example in examples for name in example.columns)
    return {name: [example.columns.get(name) for example in examples] for name in names if name not in NOT_PASSED}


def _batch(examples: Sequence[Example], responses: Sequence[str]) -> dict[str, Any]:
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


def _accepted(reward: Callable[..., Any], label: str, offered: dict[str, Any]) -> dict[str, Any]:
    """What the function has parameters for; refuses one that needs more than is offered."""
    parameters = inspect.signature(reward).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {parameter.name: parameter for parameter in parameters if parameter.kind not in variadic}
    missing = [
        name for name, parameter in named.items() if parameter.default is parameter.empty and name not in offered
    ]
    if missing:
        raise ValueError(
            f"Reward {label} needs {', '.join(missing)}; available are {', '.join(offered)}."
            " Add the column to the data set, or give the parameter a default."
        )
    return offered if takes_all else {name: value for name, value in offered.items() if name in named}


def _finished(values: Awaitable[Any]) -> Any:
    """The awaited result. The event loop runs in a thread of its own, because in a notebook the main one has a loop.

    Ctrl-C leaves it at once: the thread is a daemon, which neither this function nor the end of Python waits for.
    """
    future: Future[Any] = Future()

    async def result() -> Any:
        return await values

    def run() -> None:
        try:
            future.set_result(asyncio.run(result()))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="async reward").start()
    return future.result()
