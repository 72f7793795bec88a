"""A conversation in the terminal: what `grpo-jax generate` without a prompt does."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

from grpo_jax.models import Model
from grpo_jax.rollout import Sampler
from grpo_jax.rollout.streaming import serving_copy, stream
from grpo_jax.structs import Params

HELP = """\
/reset            forget the conversation
/set NAME VALUE   change a setting: max_tokens, temperature, top_k or top_p
/help             show this, and the settings
Ctrl-D            end"""
SETTINGS = {"max_tokens": int, "temperature": float, "top_k": int, "top_p": float}


def with_system(system: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages after a system prompt, if there is one."""
    return [{"role": "system", "content": system}, *messages] if system else messages


@dataclass
class Chat:
    """A conversation with a model, which is told all of it each time. A model without a chat template has no memory.

    `system` is a system prompt, before everything else.
    """

    model: Model
    params: Params
    sampler: Sampler
    seed: int = 0
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.served = serving_copy(self.model.policy, self.params)

    def answer(self, text: str) -> Iterator[str]:
        """The pieces of the answer to what somebody said, as they are sampled. An answer is remembered when it ends."""
        tokenizer, question = self.model.tokenizer, {"role": "user", "content": text}
        prompt = with_system(self.system, [*self.messages, question]) if tokenizer.has_chat_template else text
        prompts = tokenizer.encode_all([prompt], self.model.policy.max_positions)
        key = jax.random.fold_in(jax.random.key(self.seed), self.asked)
        self.asked += 1
        tokens = stream(self.sampler, self.model.policy, self.params, self.served, prompts, key)
        said = ""
        for piece in self._text(tokens):
            said += piece
            yield piece
        self.messages += [question, {"role": "assistant", "content": said}]

    def _text(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens, piece by piece. A letter of several tokens comes when all of them are there."""
        ids: list[int] = []
        shown = ""
        for token in tokens:
            ids.append(token)
            text = self.model.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        yield self.model.tokenizer.decode(ids)[len(shown) :]

    def command(self, line: str) -> str:
        """What a line that begins with a slash does, as a line to print."""
        name, *words = line.split()
        if name == "/reset":
            self.messages.clear()
            return "the conversation is forgotten"
        if name == "/help":
            return f"{HELP}\n{self._settings()}"
        if name != "/set" or len(words) != 2 or words[0] not in SETTINGS:
            return f"{line} is no command:\n{HELP}"
        try:
            value = SETTINGS[words[0]](words[1])
        except ValueError:
            return f"{words[0]} must be a {'whole ' if SETTINGS[words[0]] is int else ''}number; got {words[1]!r}."
        try:
            self.sampler = dataclasses.replace(self.sampler, **{words[0]: value})
        except ValueError as error:
            return str(error)
        return self._settings()

    def _settings(self) -> str:
        return ", ".join(f"{name} {getattr(self.sampler, name)}" for name in SETTINGS)


def converse(chat: Chat) -> None:
    """Answers each line of standard input until it ends. Standard output holds the answers and nothing else."""
    shown = "> " if sys.stdin.isatty() else ""
    print("/help shows the commands, Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input(shown).strip()
        except EOFError:
            return
        if line.startswith("/"):
            print(chat.command(line), file=sys.stderr)
        elif line:
            _say(chat, line)


def _say(chat: Chat, line: str) -> None:
    """Prints an answer while it is sampled, or why there is none."""
    try:
        for piece in chat.answer(line):
            print(piece, end="", flush=True)
        print(flush=True)
    except ValueError as error:
        print(f"error: {error} Or begin again: /reset", file=sys.stderr)
