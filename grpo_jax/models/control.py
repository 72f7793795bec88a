"""A model's control tokens (`<|im_end|>` and the like) in the text of data, where they stay text.

A template is rendered with a placeholder for each control token of the data. The control tokens in the result are then
those of the template; the placeholders are replaced in the text between them.
"""

import re
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Shield:
    """The placeholders of one conversation."""

    backend: PreTrainedTokenizerBase
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)  # unguessable, so no data contains it

    @cached_property
    def control(self) -> dict[str, int]:
        """The ids of the control tokens by their texts."""
        return {token.content: token_id for token_id, token in control_tokens(self.backend).items()}

    @cached_property
    def placeholders(self) -> dict[str, str]:
        """What stands for each control token of the data."""
        return {text: f"{self.mark}{token_id}." for text, token_id in self.control.items()}

    def hide(self, value: Any) -> Any:
        """The value with placeholders in all of its strings."""
        return replaced(value, self.placeholders)

    def ids(self, rendered: str) -> list[int]:
        """The ids of a text that a template has made of values with placeholders."""
        if self.mark not in rendered:
            return self.backend(rendered, add_special_tokens=False)["input_ids"]
        originals = {placeholder: text for text, placeholder in self.placeholders.items()}
        ids: list[int] = []
        for piece in re.split(_pattern(self.backend), rendered):
            if piece.strip() in self.control:
                ids.append(self.control[piece.strip()])
            elif piece:
                text = replaced(piece, originals)
                ids += self.backend(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def control_tokens(backend: PreTrainedTokenizerBase) -> dict[int, Any]:
    """The control tokens of a tokenizer by their ids."""
    return {token_id: token for token_id, token in backend.added_tokens_decoder.items() if token.special}


def replaced(value: Any, replacements: dict[str, str]) -> Any:
    """The value with the replacements made in all of its strings, longest first."""
    if isinstance(value, str):
        for text in sorted(replacements, key=len, reverse=True):
            value = value.replace(text, replacements[text])
        return value
    if isinstance(value, list):
        return [replaced(item, replacements) for item in value]
    if isinstance(value, dict):
        return {key: replaced(item, replacements) for key, item in value.items()}
    return value


def _pattern(backend: PreTrainedTokenizerBase) -> str:
    """A pattern for one control token and the white space it includes, as a group, so that splitting keeps it."""
    tokens = sorted(control_tokens(backend).values(), key=lambda token: len(token.content), reverse=True)
    alternatives = (
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in tokens
    )
    return f"({'|'.join(alternatives)})"
