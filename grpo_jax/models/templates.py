"""Chat templates: the text of a conversation, up to where the answer begins.

A template is a program that came with the model. What it raises becomes a sentence, and its arguments are checked.
"""

import difflib
import inspect
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]

OFFERED = ("tools", "documents")  # that `apply_chat_template` passes on to the template
TAIL = re.compile(r"(?:<((?!assistant>|model>|bot>)\w+)>\s*(?:</\1>\s*)?)+\Z")  # such as `<think>`; no turn begins so


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with the arguments that it is given."""

    backend: PreTrainedTokenizerBase
    arguments: Mapping[str, Any]

    def check(self) -> None:
        """Refuses arguments that the template does not read."""
        if self.arguments and not self.backend.chat_template:
            raise ValueError(
                "model.template holds arguments of a chat template, and this model has none. Leave it out, or use the"
                " instruction-tuned version of the model."
            )
        for name in self.arguments:
            _check_argument(name, self.backend)

    def render(self, messages: Messages, answering: bool = False) -> str:
        """The text of a conversation; `answering` adds what an answer begins with."""
        try:
            text = self.backend.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answering, **self.arguments
            )
        except Exception as error:  # a template is a program, which may raise anything
            raise ValueError(
                f"the model's chat template refuses it: {sentence(error)} {self._advice(messages)}"
            ) from error
        return cast(str, text)  # it would be ids with tokenize=True

    def question(self, messages: Messages) -> str:
        """The text up to where the answer begins; if the last message is the assistant's, where that one ends."""
        if not is_continued(messages):
            return self.render(messages, answering=True)
        return "".join(self._continued(messages))

    def opened(self, messages: Messages) -> str:
        """What the text already has of the answer: tags that the template opens, and a message to be continued."""
        continued = is_continued(messages)
        before, begun = self._continued(messages) if continued else (self.render(messages, answering=True), "")
        tail = TAIL.search(before)
        return (tail[0] if tail else "") + begun

    def _continued(self, messages: Messages) -> tuple[str, str]:
        """The text before the assistant's last message, and that message as the template writes it, without its end."""
        *earlier, last = messages
        content, mark = last.get("content"), uuid.uuid4().hex
        if not isinstance(content, str):
            raise ValueError(
                "the assistant's last message is continued, so its content must be a string; got"
                f" {type(content).__name__}. Write it as text, or end the prompt with a user's message."
            )
        marked = [*earlier, {**last, "content": f"{content}{mark} "}]
        rendered, found, after = self.render(marked).partition(mark)
        begun = content if rendered.endswith(content) else content.lstrip()  # some templates trim what they write
        if not found or not rendered.endswith(begun):
            raise ValueError(
                "the model's chat template changes the assistant's last message, so it cannot be continued."
                " Leave out what it cuts, such as <think>...</think>, or end the prompt with a user's message."
            )
        before, begun = rendered.removesuffix(begun), begun if after.startswith(" ") else begun.rstrip()
        tag = re.match(r"<\w+>", begun)
        opening = self.render(earlier, answering=True) if tag and earlier else ""
        if tag and earlier and before.startswith(opening) and tag[0] in before[len(opening) :]:
            return (
                opening,
                begun,
            )  # the template put thoughts of its own, `<think></think>`, before those of the message
        return before, begun

    def _advice(self, messages: Messages) -> str:
        if any(isinstance(message, dict) and message.get("role") == "system" for message in messages):
            return "If it knows no system message, leave out task.system and write that text into task.instruction."
        if self.arguments:
            return "Look at the roles and their order, and at model.template, or use another chat template."
        return "Look at the roles and their order, or use another chat template."


def is_continued(messages: Messages) -> bool:
    """Whether the last message is the assistant's, and so the beginning of the answer."""
    return bool(messages) and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"


def sentence(error: Exception) -> str:
    """An error as the end of a sentence, on one line: its message alone, if it is ours."""
    text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if text.endswith(".") else f"{text}."


def _check_argument(name: str, backend: PreTrainedTokenizerBase) -> None:
    own = {"messages", *inspect.signature(backend.apply_chat_template).parameters} - set(OFFERED)
    if name in own:
        raise ValueError(
            f"model.template.{name} is set by the program itself. Leave it out; model.template takes what the model's"
            " chat template reads beside the messages, such as enable_thinking."
        )
    words = words_of(backend)
    if name not in words:
        close = difflib.get_close_matches(name, words, 1)
        meant = (
            f", did you mean {close[0]}?" if close else ". Leave it out, or look into the template for its arguments."
        )
        raise ValueError(f"model.template.{name}: the model's chat template reads no such argument{meant}")


def words_of(backend: PreTrainedTokenizerBase) -> set[str]:
    """The words in the text of the chat template; of all, where there are several by name."""
    templates: Any = backend.chat_template
    text = "\n".join(templates.values()) if isinstance(templates, dict) else str(templates)
    return set(re.findall(r"[A-Za-z_]\w*", text))
