"""What a worker process does for an environment: one `reset` or one `step`, whose result is checked before it travels.

Between steps an environment is bytes, which only workers read: the training process runs none of its code.
"""

import copy
import io
import math
import pickle
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any

from grpo_jax.rewards.example import Message

MOST_PRINTED = 2000  # characters that one step may print; the rest is dropped
MOST_STATE = 2**28  # bytes of an environment


@dataclass(frozen=True)
class Stepped:
    """An environment after a step, and what it answered: the fields of its `Turn`, checked."""

    state: bytes
    messages: list[Message]
    reward: float | None = 0.0
    done: bool = False
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Stepper:
    """Resets and steps copies of an environment. Messages with more `characters` are cut off."""

    def __init__(self, environment: Any, characters: int):
        self.environment, self.characters = environment, characters

    def __call__(self, state: bytes | None, *arguments: Any) -> Stepped:
        """A `step(reply)` of the environment in these bytes; without any, the `reset(example, seed)` of a new copy."""
        with _printing_little():
            if state is None:
                environment = copy.deepcopy(self.environment)
                messages = self._messages(environment.reset(*arguments) or ())
                return Stepped(_bytes_of(environment), messages)
            environment = ForkingPickler.loads(state)
            turn = environment.step(*arguments)
        return self._checked(environment, turn)

    def _checked(self, environment: Any, turn: Any) -> Stepped:
        if not all(hasattr(turn, name) for name in ("messages", "reward", "done", "error", "metrics")):
            raise TypeError(f"step must return a Turn of grpo_jax.environments; it returned a {type(turn).__name__}")
        error = None if turn.error is None else str(turn.error)[: self.characters]
        messages = self._messages(turn.messages)
        return Stepped(
            _bytes_of(environment), messages, _number(turn.reward), bool(turn.done), error, _numbers(turn.metrics)
        )

    def _messages(self, messages: Any) -> list[Message]:
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise TypeError(f"messages must be a list of messages; got a {type(messages).__name__}")
        return [self._message(message) for message in messages]

    def _message(self, message: Any) -> Message:
        fine = isinstance(message, Mapping) and all(isinstance(each, str) for pair in message.items() for each in pair)
        if not fine or not {"role", "content"} <= {*message}:
            raise TypeError(f"a message is a dict of strings with role and content; got {message!r:.200}")
        if message["role"] == "assistant":
            raise ValueError("a message of the environment has the role user, tool or system; assistant is the model's")
        return dict(message) | {"content": shortened(message["content"], self.characters)}


def shortened(text: str, characters: int) -> str:
    """The text, or so much of its beginning and a note of how long it was. Lone surrogates, no text, are replaced."""
    kept = text if len(text) <= characters else f"{text[:characters]}\n[cut off: {len(text)} characters]"
    return kept.encode(errors="replace").decode()


def _bytes_of(environment: Any) -> bytes:
    state = pickle.dumps(environment)
    if len(state) > MOST_STATE:
        raise ValueError(
            f"the environment has {len(state)} bytes, and travels to a process and back at every step: keep what does"
            " not change in a module"
        )
    return state


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) or not math.isfinite(number := float(value)):
        raise ValueError(f"the reward of a turn is a finite number or None; got {value!r:.80}")
    return number


def _numbers(metrics: Any) -> dict[str, float]:
    found = {str(name): _number(value) for name, value in dict(metrics).items()}
    return {name: number for name, number in found.items() if number is not None}


class _Little(io.TextIOBase):
    """Passes on the first characters that are written to it."""

    def __init__(self, to: Any):
        self.to, self.left = to, MOST_PRINTED

    def write(self, text: str) -> int:
        kept, self.left = text[: self.left], max(self.left - len(text), 0)
        self.to.write(kept)
        return len(text)

    def flush(self) -> None:
        self.to.flush()


@contextmanager
def _printing_little() -> Generator[None]:
    with redirect_stdout(_Little(sys.stdout)), redirect_stderr(_Little(sys.stderr)):
        yield
