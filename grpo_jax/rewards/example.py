"""The example that a reward scores a response to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]  # "role" and "content", as chat templates expect them


@dataclass(frozen=True)
class Example:
    """One question: what the model is shown, and what rewards may know about it."""

    prompt: str | list[Message]  # a string is text to continue; messages are a chat
    answer: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)  # the whole row of the data set
