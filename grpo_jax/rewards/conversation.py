"""What was said after an example's prompt: the record of several turns that a reward may ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from grpo_jax.rewards.example import Message

StopReason = Literal["done", "turns", "tokens", "seconds", "error"]


@dataclass(frozen=True)
class Conversation:
    """One response of several turns: the model's replies, and what an environment answered.

    `messages` begin with the model's first reply. The last ones may be answers that the model did not read, as the
    conversation ended with them. `rewards` has what the environment gave each reply, None for one that it could not
    score; `lengths` are the tokens of each reply. `stop_reason` says why it ended: the environment was `done`, or it
    came to its limit of turns, tokens or seconds, or a step failed with an `error`.
    """

    messages: Sequence[Message] = ()
    rewards: Sequence[float | None] = ()
    lengths: Sequence[int] = ()
    errors: Sequence[str] = ()
    stop_reason: StopReason = "done"
    metrics: Mapping[str, float] = field(default_factory=dict)  # numbers about replies, added up over them
    seconds: float = 0.0  # that the model has waited for answers

    @property
    def replies(self) -> list[str]:
        """The text of each reply of the model."""
        return [message["content"] for message in self.messages if message["role"] == "assistant"]

    @property
    def reply(self) -> str:
        """The text of the last reply, which rewards of one response see; empty if there is none."""
        return self.replies[-1] if self.replies else ""

    @property
    def total(self) -> float | None:
        """The sum of the rewards of all replies; None if one could not be scored."""
        known = [reward for reward in self.rewards if reward is not None]
        return float(sum(known)) if len(known) == len(self.rewards) else None
