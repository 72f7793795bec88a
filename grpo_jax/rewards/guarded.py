"""How a reward is called: in which processes, for how long, and what an exception in it does."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from grpo_jax.ranges import check_range

MOST_WORKERS = 1024
LONGEST = 86_400.0  # seconds


@dataclass(frozen=True, eq=False)
class Guarded:
    """A reward with limits: in a config they are keys of its item in `rewards`.

    With `workers`, so many processes call it, which know no JAX, beside the other rewards. What takes one of them
    longer than `deadline` seconds is not scored, and the process is replaced. With `on_error` mask, a response in which
    the reward raises an exception is not scored either; stop ends the run.
    """

    reward: Callable[..., Any]
    workers: int = 0  # processes that call the reward; 0: it is called in this one
    deadline: float | None = None  # seconds that a worker may take for one call; null: no limit
    on_error: Literal["stop", "mask"] = "stop"  # what an exception does: ends the run, or leaves the response unscored

    def __post_init__(self) -> None:
        if isinstance(self.reward, Guarded):
            raise ValueError("A reward has its limits once: give workers, deadline and on_error to one Guarded.")
        check_range("workers", self.workers, least=0, most=MOST_WORKERS)
        if self.deadline is not None:
            check_range("deadline", self.deadline, above=0, most=LONGEST)
        if self.deadline is not None and not self.workers:
            raise ValueError(
                f"A deadline needs workers, as a process cannot end a reward that it computes itself; got a deadline of"
                f" {self.deadline} s and no workers. Add workers: 1, or more."
            )
        if self.on_error not in ("stop", "mask"):
            raise ValueError(f"on_error must be stop or mask; got {self.on_error!r}.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the reward in this process, without limits."""
        return self.reward(*args, **kwargs)


def unguarded(reward: Callable[..., Any]) -> Callable[..., Any]:
    """What is called: the reward without its limits, or its `judge_group`, an async function of (example, responses).

    An object has that, or has None there, if it judges all groups at once but could as well judge each by itself, while
    others are decoded. A worker gets the object itself.
    """
    inner, in_workers = (reward.reward, reward.workers > 0) if isinstance(reward, Guarded) else (reward, False)
    by_group = None if in_workers else getattr(inner, "judge_group", None)
    return by_group if callable(by_group) else inner


def judge_of(reward: Callable[..., Any]) -> Any:
    """The judge that a reward asks, which may have no verdict on a response; None if it asks none."""
    return getattr(innermost(reward), "judge", None)


def innermost(reward: Callable[..., Any]) -> Callable[..., Any]:
    """The function or object that was written, without limits and without arguments that were bound to it."""
    while isinstance(reward, functools.partial | Guarded):
        reward = reward.func if isinstance(reward, functools.partial) else reward.reward
    return reward
