"""What a task consists of, and how its questions become prompts.

All tasks ask in the same way: the user's message is the question, a space, and the instruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_jax.environments.environment import Bounded, Environment
from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.mixing import Mix

MOST_GENERATED = 10_000_000  # examples of a task
Overlap = Literal["refuse", "count"]  # of held-out questions and those that are trained on


@dataclass(frozen=True)
class Task:
    """Examples for training, examples for evaluation, and the reward unless another is given.

    With an `environment`, a response is a conversation of several turns, in which it answers the model's replies.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    reward: Mix
    environment: Environment | Bounded | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("A task needs at least one training example; got none. Check the data set or its sizes.")


def check_sizes(train: int, held_out: int) -> None:
    """Refuses numbers of generated examples that are too small for a task."""
    check_range("task.train", train, least=1, most=MOST_GENERATED)
    check_range("task.held_out", held_out, least=0, most=MOST_GENERATED)


def with_instruction(question: str, instruction: str) -> str:
    """The question followed by the instruction, if there is one."""
    return f"{question} {instruction}" if instruction else question


def messages(question: str, instruction: str, system: str | None) -> list[Message]:
    """The chat that asks a model the question."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": with_instruction(question, instruction)}]
