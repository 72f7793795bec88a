"""The example that a reward scores a response to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_jax.rewards.frozen import frozen

Message = dict[str, str]  # "role" and "content", as chat templates expect them


@dataclass(frozen=True)
class Example:
    """One question: what the model is shown, and what rewards may know about it, but not change."""

    prompt: str | list[Message]  # a string is text to continue; messages are a chat
    answer: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)  # the whole row of the data set
    source: str = field(default="", repr=False, compare=False)  # where it was read, such as rows.jsonl:12
    opened: str | None = field(default=None, repr=False, compare=False)  # what the prompt has of the answer, if known

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", frozen(self.prompt))
        object.__setattr__(self, "columns", frozen(self.columns))

    @property
    def label(self) -> str:
        """What a message calls the example: where it was read, if that is known, or else by its question."""
        if self.source:
            return self.source
        last = self.prompt if isinstance(self.prompt, str) else "".join(m["content"] for m in self.prompt[-1:])
        return f"the example {last[:80]!r}"
