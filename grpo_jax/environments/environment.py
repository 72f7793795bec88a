"""What an environment is: an object that answers what the model says, for one conversation, and its limits.

An environment is plain Python: no server, nothing async. It is picklable, as its steps are taken in worker processes:
it travels there with the reply and comes back with its answer, so a step that hangs or ends its process loses nothing
but that step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

from grpo_jax.environments.stepping import Stepper
from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.guarded import LONGEST, MOST_WORKERS, Guarded

MOST_TURNS = 10_000
MOST_CHARACTERS = 10_000_000


@dataclass(frozen=True)
class Turn:
    """What an environment answers to a reply of the model.

    `messages` are shown to the model, which then replies again, unless the conversation is `done` or there are none.
    `reward` is that of the reply alone; None: it could not be scored. `error` says what went wrong, if something did.
    `metrics` are numbers about the reply, such as how many calls it made: a run records their means.
    """

    messages: Sequence[Message] = ()
    reward: float | None = 0.0
    done: bool = False
    error: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Environment(Protocol):
    """One conversation. An environment is copied for each, and may change itself in its methods."""

    def reset(self, example: Example, seed: int) -> Sequence[Message]:
        """Begins a conversation. What it returns is shown to the model after the example's prompt; usually nothing.

        It is called once for a prompt, and what it leaves is copied for each response to it.
        """
        ...

    def step(self, reply: Message) -> Turn:
        """The answer to what the model has said."""
        ...


@dataclass(frozen=True, eq=False)
class Bounded:
    """An environment with the limits of its conversations: in a config they are keys of the section `environment`.

    With `on_error` mask, a step that raises an exception, takes longer than the deadline or ends its process ends its
    conversation, whose response is not scored; with show, the model reads what went wrong and goes on; stop ends the
    run.
    """

    environment: Environment
    turns: int = 8  # replies of the model in a conversation, at most
    seconds: float | None = None  # that a conversation may take, its sampling included; null: no limit
    characters: int = 4000  # of a message of the environment, from which on it is cut off
    workers: int = 8  # processes that take steps
    deadline: float = 10.0  # seconds that one step may take
    on_error: Literal["mask", "show", "stop"] = "mask"  # what a failed step does: see above

    def __post_init__(self) -> None:
        check_range("environment.turns", self.turns, least=1, most=MOST_TURNS)
        if self.seconds is not None:
            check_range("environment.seconds", self.seconds, above=0, most=LONGEST, note="(null is no limit)")
        check_range("environment.characters", self.characters, least=1, most=MOST_CHARACTERS)
        check_range("environment.workers", self.workers, least=1, most=MOST_WORKERS)
        check_range("environment.deadline", self.deadline, above=0, most=LONGEST)
        if self.on_error not in ("mask", "show", "stop"):
            raise ValueError(f"environment.on_error is mask, show or stop; got {self.on_error!r}.")
        if isinstance(self.environment, type) or not isinstance(self.environment, Environment):
            raise ValueError(
                "An environment is an object with the methods reset(example, seed) and step(reply); got"
                f" {self.environment!r:.200}. Give an object, not its class."
            )

    @property
    def name(self) -> str:
        """What messages call the environment: its class."""
        return type(self.environment).__name__

    @cached_property
    def guard(self) -> Guarded:
        """What worker processes are given to call."""
        return Guarded(Stepper(self.environment, self.characters), self.workers, self.deadline)


def as_bounded(environment: Environment | Bounded) -> Bounded:
    """The environment with its limits: those given, or the defaults."""
    return environment if isinstance(environment, Bounded) else Bounded(environment)
