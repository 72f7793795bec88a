"""The tokens of a given answer: those that a sampler would have to choose after the prompt to say it.

The chat template writes the answered conversation, with its own end of a turn, and what it adds to the text of the
prompt is the answer. It is encoded by itself where it would share a token with the prompt, so the prompt is always
encoded as it is for sampling. A template that writes the question otherwise once it is answered is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.models.control import Shield
from grpo_jax.models.templates import Messages, Template, is_continued
from grpo_jax.models.tokenizer import Prompt, Tokenizer


@dataclass(frozen=True)
class AnswerTokens:
    """The ids that follow those of a prompt, and which of them the assistant says, its ends included."""

    ids: list[int]
    said: list[bool]


def answered(tokenizer: Tokenizer, prompt: Prompt, turns: Sequence[dict[str, Any]]) -> AnswerTokens:
    """The tokens of the `turns` that follow a prompt: messages of the assistant, and of others between them."""
    if isinstance(prompt, str) and not tokenizer.has_chat_template:
        ids = tokenizer.backend(turns[0]["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = [*ids, _end_of(tokenizer)]
        return AnswerTokens(ids, [True] * len(ids))
    return _Writer(tokenizer, prompt).written(turns)


def _end_of(tokenizer: Tokenizer) -> int:
    """The token that ends an answer where the template writes none."""
    eos = tokenizer.backend.eos_token_id
    return eos if eos in tokenizer.end_ids else tokenizer.end_ids[0]


class _Writer:
    """Writes an answered conversation from its prompt on: `text` is what has been encoded so far, as `known` ids."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt):
        self.tokenizer, self.shield = tokenizer, Shield(tokenizer.backend)
        self.template = Template(tokenizer.backend, tokenizer.template)
        self.messages: Messages = self.shield.hide(list(tokenizer.conversation(prompt)))
        self.text, self.known = self.template.question(self.messages), tokenizer.encode(prompt)
        self.prompt_length, self.said = len(self.known), [False] * len(self.known)

    def written(self, turns: Sequence[dict[str, Any]]) -> AnswerTokens:
        """The ids after the prompt."""
        for turn in turns:
            turn = self.shield.hide(dict(turn))
            if turn["role"] == "assistant":
                self._say(turn["content"])
            else:
                self.messages = [*self.messages, turn]
        return AnswerTokens(self.known[self.prompt_length :], self.said[self.prompt_length :])

    def _say(self, content: str) -> None:
        """Adds what stands before a turn of the assistant, and the turn."""
        before = self.template.question(self.messages)
        if not before.startswith(self.text):
            raise _changes("an earlier turn once a later one follows", "Learn the last turn alone (sft.turns: last)")
        self._add(before, said=False)
        self.messages = _with_answer(self.messages, content)
        whole, end = self._up_to_end(before)
        self._add(whole, said=True)
        if end is not None:
            self.known.append(end)
            self.said.append(True)

    def _up_to_end(self, before: str) -> tuple[str, int | None]:
        """The text up to the end of the assistant's turn, and the token that ends it if the text has none."""
        *earlier, last = self.messages
        marked = [*earlier, {**last, "content": f"{last['content']}{self.shield.mark}END"}]
        head, found, after = self.template.render(marked).partition(f"{self.shield.mark}END")
        whole = self.template.render(self.messages)
        head = head if whole == head + after else head.rstrip()  # some templates trim what they write
        if not found or whole != head + after:
            raise _changes("the text of the answer", "Leave out of it what the template cuts")
        if not head.startswith(before):
            raise _changes("the question once it is answered", "Choose arguments of the template (model.template)")
        space = len(after) - len(after.lstrip())
        for token, token_id in self.shield.control.items():
            if token_id in self.tokenizer.end_ids and after.lstrip().startswith(token):
                return head + after[: space + len(token)], None
        return head, _end_of(self.tokenizer)

    def _add(self, text: str, said: bool) -> None:
        """Encodes the text up to here; what is new by itself, if encoding all of it would change what is known."""
        if len(text) == len(self.text):
            return
        ids = self.tokenizer.with_one_beginning(self.shield.ids(text))
        count = len(self.known)
        new = ids[count:] if ids[:count] == self.known else self.shield.ids(text[len(self.text) :])
        self.known, self.text = [*self.known, *new], text
        self.said += [said] * len(new)


def _with_answer(messages: Messages, content: str) -> Messages:
    """The conversation with the assistant's next message, or with the rest of one that the prompt begins."""
    if not is_continued(messages):
        return [*messages, {"role": "assistant", "content": content}]
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + content}]


def _changes(what: str, way_out: str) -> ValueError:
    return ValueError(
        f"the model's chat template changes {what}, so a policy could not learn to say it. {way_out}, or use another"
        " chat template."
    )
