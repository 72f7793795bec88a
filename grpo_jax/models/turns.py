"""The tokens between two replies of a model, and the tools that its chat template offers.

What a model has written is never encoded again: its tokens stay, and only what follows them is written by the chat
template. That is found as a difference: the template renders a short conversation in which a mark stands for the reply,
and what comes after the mark is the end of the reply, the messages that answer it, and what the next reply begins with.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers.utils import get_json_schema

from grpo_jax.models.control import Shield
from grpo_jax.models.templates import Messages, Template, words_of
from grpo_jax.models.tokenizer import Tokenizer

QUESTION = {"role": "user", "content": "Hello"}
ID = {"tool_call_id": "call00000"}
THOUGHT, ANSWER = "<think>\nthought\n</think>\n\n", "answer"


@dataclass(frozen=True, eq=False)
class TurnWriter:
    """Writes the messages that answer a reply as tokens, for the chat template of a tokenizer."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if not self.tokenizer.has_chat_template:
            raise ValueError(
                "A conversation of several turns needs a chat template, and this model has none: it is a base model."
                " Use the instruction-tuned version of the model."
            )
        if self.forgets:
            _announce_forgetting()

    def __call__(self, messages: Sequence[dict[str, Any]], last: int) -> list[int]:
        """The ids that follow a reply whose last token was `last`: that, where it ends a reply, is not written again.

        Control tokens in the messages are encoded as text.
        """
        shield = Shield(self.tokenizer.backend)
        text = self._after(shield.hide([dict(message) for message in messages]), shield.mark)
        end = self._end_in(text, shield)
        if last not in self.tokenizer.end_ids or end is None:
            return shield.ids(text)
        return shield.ids(text[text.index(end) :])[1:]  # with the end, as some tokenizers add a space to what is first

    def _after(self, messages: Messages, mark: str) -> str:
        """What the template writes after a reply that is the mark."""
        messages = [self._known(message, n) for n, message in enumerate(messages)]
        reply = {"role": "assistant", "content": f"{mark}REPLY"}
        return self._template.question([QUESTION, reply, *messages]).partition(f"{mark}REPLY")[2]

    def _known(self, message: dict[str, Any], number: int) -> dict[str, Any]:
        """A message as the template can write it; some want to know which call of a tool it answers."""
        if message["role"] != "tool":
            return message
        return {"tool_call_id": f"call{number:05d}"} | message | ({} if self._knows_tools else {"role": "user"})

    def _end_in(self, text: str, shield: Shield) -> str | None:
        """The token with which the template ends a reply, if the text begins with one."""
        ends = [token for token, token_id in shield.control.items() if token_id in self.tokenizer.end_ids]
        return next((token for token in ends if text.lstrip().startswith(token)), None)

    @cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer.backend, self.tokenizer.template)

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether the template writes messages of role tool after a reply."""
        mark = Shield(self.tokenizer.backend).mark
        messages = [QUESTION, {"role": "assistant", "content": ANSWER}, {"role": "tool", "content": mark, **ID}]
        try:
            known = mark in self._template.question(messages)
        except ValueError:
            known = False
        if not known:
            _announce_no_tools()
        return known

    @cached_property
    def forgets(self) -> bool:
        """Whether the template writes earlier replies otherwise than the model has said them, such as without thoughts.

        Then a model that is served with this template reads less than it did in training.
        """
        before = self._template.question([QUESTION])
        reply = {"role": "assistant", "content": THOUGHT + ANSWER}
        after = self._template.question([QUESTION, reply, QUESTION])
        return not after.startswith(before) or THOUGHT.strip() not in after[len(before) :]


def schemas(functions: Sequence[Callable[..., Any]]) -> list[dict[str, Any]]:
    """What a model is told of functions that it may call: their names, arguments and docstrings, as JSON schemas."""
    return [_schema(function) for function in functions]


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_json_schema(function)
    except Exception as error:
        raise ValueError(
            f"Tool {getattr(function, '__name__', function)} cannot be described to the model: {error} A tool has type"
            " hints, and a docstring that says in its first line what it does, and under `Args:` what each argument is."
        ) from error


def offering(tokenizer: Tokenizer, functions: Sequence[Callable[..., Any]]) -> Tokenizer | None:
    """The tokenizer whose chat template tells the model of these functions; None if the template knows no tools."""
    if "tools" not in words_of(tokenizer.backend):
        return None
    return replace(tokenizer, template={**tokenizer.template, "tools": schemas(functions)})


@functools.cache
def _announce_forgetting() -> None:
    logging.getLogger("grpo_jax").warning(
        "The model's chat template writes earlier replies otherwise than they were said, such as without their"
        " thoughts. In training the model reads all that it has said; where it is served with this template, it reads"
        " less."
    )


@functools.cache
def _announce_no_tools() -> None:
    logging.getLogger("grpo_jax").warning(
        "The model's chat template knows no role tool: answers of tools are shown to the model as a user's messages."
    )
