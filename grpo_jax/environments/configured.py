"""An environment as a config names it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from grpo_jax.environments.adapters import from_openenv, from_trl
from grpo_jax.environments.environment import Bounded, as_bounded
from grpo_jax.environments.tools import Tools

KINDS: Mapping[str, Callable[[Any], Any]] = {"own": lambda given: given, "trl": from_trl, "openenv": from_openenv}


@dataclass(frozen=True)
class Configured:
    """What answers the model's replies: an environment by its `name`, functions as `tools`, or else that of the task.

    Limits that are not given are those that the environment has, such as in its task.
    """

    name: str | None = None  # of a class or function that makes one, as module:name; null: the task's environment
    arguments: dict[str, Any] = field(default_factory=dict)  # that it is made with
    kind: Literal["own", "trl", "openenv"] = "own"  # whose convention it follows
    tools: tuple[str, ...] = ()  # functions that the model may call, as module:name
    turns: int | None = None  # replies of the model in a conversation, at most; null: 8, or the task's
    seconds: float | None = None  # that a conversation may take, its sampling included; null: no limit
    characters: int | None = None  # of a message of the environment, from which on it is cut off; null: 4000
    workers: int | None = None  # processes that take steps; null: 8
    deadline: float | None = None  # seconds that one step may take; null: 10
    on_error: Literal["mask", "show", "stop"] | None = None  # what a failed step does: null is mask, no score

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"environment.kind is one of {', '.join(KINDS)}; got {self.kind!r}.")
        if self.name is not None and self.tools:
            raise ValueError("environment.tools makes an environment of functions, so environment.name is left out.")
        if self.name is None and (self.arguments or self.kind != "own"):
            raise ValueError("environment.arguments and kind belong to an environment that is named: environment.name.")

    def built(self, load: Callable[[str], Any], of_task: Any) -> Bounded:
        """The environment with its limits. `load` finds what a name stands for; `of_task` is the task's, if any."""
        limits = {name: getattr(self, name) for name in OF_LIMITS}
        return replace(as_bounded(self._made(load, of_task)), **{k: v for k, v in limits.items() if v is not None})

    def _made(self, load: Callable[[str], Any], of_task: Any) -> Any:
        if self.tools:
            return Tools(*map(load, self.tools))
        if self.name is not None:
            return KINDS[self.kind](load(self.name)(**self.arguments))
        if of_task is None:
            raise ValueError(
                "the task has no environment: name one (environment.name: module:name), or functions that the model may"
                " call (environment.tools: [module:name])."
            )
        return of_task


OF_LIMITS = ("turns", "seconds", "characters", "workers", "deadline", "on_error")
