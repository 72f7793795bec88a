"""Between text and token ids: chat templates, control tokens, left padding.

A model's control tokens (`<|im_end|>` and the like) belong to its chat template. Where a prompt contains such a string,
it is encoded as plain text, so that a data set cannot end the user's turn or speak as the assistant. How a template is
rendered is in `templates.py`.
"""

import functools
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo_jax.models.control import Shield, control_tokens, replaced
from grpo_jax.models.files import AGAIN, read_json, token_ids
from grpo_jax.models.templates import Messages, Template, sentence
from grpo_jax.structs import Prompts, bucket

Prompt = str | Messages  # plain text, or the messages of a conversation

BYTE_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's tokenizer. `size` is one more than its largest id; a response ends at any of `end_ids`.

    `template` holds arguments of the chat template, such as `{"enable_thinking": False}`.
    """

    backend: PreTrainedTokenizerBase
    size: int
    end_ids: tuple[int, ...]
    template: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Template(self.backend, self.template).check()

    @property
    def has_chat_template(self) -> bool:
        """Whether the model expects a conversation. If so, a prompt that is a string becomes a user's message."""
        return bool(self.backend.chat_template)

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, up to where the answer begins; control tokens come from the chat template alone.

        If the last message is the assistant's, the answer goes on from its end.
        """
        if isinstance(prompt, str) and not self.has_chat_template:
            return self.with_one_beginning(self.backend(prompt, split_special_tokens=True)["input_ids"])
        return self.with_one_beginning(self._encode_conversation(self.conversation(prompt)))

    def opened(self, prompt: Prompt) -> str:
        """What the prompt already has of the answer: tags that the chat template opens, such as `<think>`, and the
        assistant's message that is to be continued.
        """
        if isinstance(prompt, str) and not self.has_chat_template:
            return ""
        return Template(self.backend, self.template).opened(self.conversation(prompt))

    def encode_all(self, prompts: Sequence[Prompt], max_tokens: int, sources: Sequence[str] = ()) -> Prompts:
        """The prompts as rows padded on the left to one of a few lengths, none above `max_tokens`.

        `sources` say in messages where each prompt was read, where that is known.
        """
        places = [f" ({source})" if source else "" for source in sources] if sources else [""] * len(prompts)
        rows = [
            self._encode_one(f"{index}{place}", prompt, max_tokens)
            for index, (prompt, place) in enumerate(zip(prompts, places, strict=True))
        ]
        L = min(bucket(max(map(len, rows))), max_tokens)
        tokens_PL = np.zeros((len(rows), L), np.int32)  # the id of padding does not matter: `valid_PL` masks it
        valid_PL = np.zeros((len(rows), L), bool)
        for row, ids in enumerate(rows):
            tokens_PL[row, L - len(ids) :] = ids
            valid_PL[row, L - len(ids) :] = True
        return Prompts(tokens_PL, valid_PL)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, without control tokens."""
        tags, ids = self._tags, list(tokens)
        if tags:
            ids = [token for token in ids if token in tags or token not in self._special]
        text = self.backend.decode(ids, skip_special_tokens=not tags, clean_up_tokenization_spaces=False)
        return cast(str, text)  # it would be a list for a list of lists

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(control_tokens(self.backend)) | frozenset(self.backend.all_special_ids)

    @functools.cached_property
    def _tags(self) -> frozenset[int]:
        """The control tokens that are tags of an answer: those that come in pairs, such as `<think>` and `</think>`."""
        roles = [token for token in self.backend.special_tokens_map.values() if isinstance(token, str)]
        control = {token.content: i for i, token in control_tokens(self.backend).items()}
        tokens = {text: i for text, i in control.items() if text not in roles and i not in self.end_ids}
        names = {found[1] for token in tokens if (found := re.fullmatch(r"<(\w+)>", token))}
        pairs = ((f"<{name}>", f"</{name}>") for name in names)
        return frozenset(tokens[token] for pair in pairs if all(one in tokens for one in pair) for token in pair)

    def conversation(self, prompt: Prompt) -> Messages:
        """The messages that a prompt stands for: text is a user's message. Refused without a chat template."""
        if isinstance(prompt, str):
            _announce_wrapping()
            return [{"role": "user", "content": prompt}]
        if not self.has_chat_template:
            raise ValueError(
                "Messages need a chat template, and this model has none: it is a base model. Use plain text"
                " prompts, or the instruction-tuned version of the model."
            )
        return prompt

    def with_one_beginning(self, ids: list[int]) -> list[int]:
        """The ids with the token that begins a text once, where the tokenizer and the template both wrote it."""
        beginning = self.backend.bos_token_id
        extra = 0
        while beginning is not None and ids[extra : extra + 2] == [beginning, beginning]:
            extra += 1
        if extra:
            _announce_beginnings(str(self.backend.bos_token))
        return ids[extra:]

    def _encode_one(self, name: str, prompt: Prompt, max_tokens: int) -> list[int]:
        try:
            ids = self.encode(prompt) if prompt else []
        except Exception as error:
            raise ValueError(f"Prompt {name} cannot be encoded: {sentence(error)}") from error
        if not ids:
            raise ValueError(f"A prompt must not be empty; prompt {name} is. Drop that example, or fill it in.")
        if len(ids) > max_tokens:
            raise ValueError(
                f"Prompt {name} has {len(ids)} tokens, and the limit is {max_tokens}. Raise the limit"
                f" (train.max_prompt_tokens in a config), or set train.long_prompts: leave_out or cut."
            )
        return ids

    def _encode_conversation(self, messages: Messages) -> list[int]:
        """The ids of a conversation, with control tokens in its text encoded as text."""
        shield = Shield(self.backend)
        return shield.ids(_rendered_with(Template(self.backend, self.template), messages, shield.placeholders))


def load_tokenizer(directory: Path, template: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer in a model's directory, with all ids that end a response, and arguments for its chat template."""
    try:
        loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of damage raises another class, and some a bare Exception
        raise ValueError(
            f"{directory} has no tokenizer that can be read ({type(error).__name__}: {error}). {AGAIN}"
        ) from error
    backend = cast(PreTrainedTokenizerBase, loaded)
    arguments = {} if template is None else template
    Template(backend, arguments).check()
    try:
        turn_ends = _turn_ends(backend, arguments)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    ends = {backend.eos_token_id, *_generation_ends(directory), *turn_ends} - {None}
    if not ends:
        raise ValueError(
            f"A response needs a token that ends it, and {directory} names none. Set eos_token_id in its"
            f" generation_config.json, or eos_token in its tokenizer_config.json."
        )
    return Tokenizer(backend, _size(backend), tuple(sorted(ends)), arguments)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer without files, for small models and tests: an id for each byte, then `<pad>`, `<eos>`, `<bos>`."""
    symbols = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    model = tokenizers.Tokenizer(BPE(symbols, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    roles = {f"{role}_token": f"<{role}>" for role in ("pad", "eos", "bos")}
    backend = PreTrainedTokenizerFast(tokenizer_object=model, chat_template=BYTE_TEMPLATE, **roles)
    return Tokenizer(backend, _size(backend), (backend.eos_token_id,))


def check_vocabulary(tokenizer: Tokenizer, model_vocab: int, directory: Path) -> None:
    """Refuses a tokenizer with ids that the model has no embedding for; unused embeddings are fine."""
    if tokenizer.size > model_vocab:
        raise ValueError(
            f"The tokenizer in {directory} has ids up to {tokenizer.size - 1}, and the model knows only {model_vocab}."
            f" Use the tokenizer that came with the model, or a model whose embeddings were resized for this one."
        )


@functools.cache
def _announce_wrapping() -> None:  # cached, so that it warns once
    logging.getLogger("grpo_jax").warning(
        "Plain text prompts are sent as a user's message, because the model has a chat template."
    )


@functools.cache
def _announce_beginnings(token: str) -> None:
    logging.getLogger("grpo_jax").warning(
        "Prompts began with %s more than once, as the tokenizer or the chat template wrote it again; one is kept.",
        token,
    )


@functools.cache
def _announce_hidden_tokens() -> None:
    logging.getLogger("grpo_jax").warning(
        "Some prompts contain control tokens that the model's chat template looks for, and does not find, because they"
        " are sent as text. Take them out of the data (such as <think>...</think> out of earlier turns)."
    )


def _rendered_with(template: Template, messages: Messages, placeholders: dict[str, str]) -> str:
    """The text of a conversation with a placeholder for each control token of the data.

    A template may look for such a token in the data: many cut `...</think>` out of earlier turns. Where the text is
    another one than without placeholders, the token itself is shown with its placeholder beside it.
    """
    hidden = template.question(replaced(messages, placeholders))
    if replaced(messages, placeholders) == messages:
        return hidden
    originals = {placeholder: text for text, placeholder in placeholders.items()}
    plain = template.question(messages)
    if replaced(hidden, originals) == plain:
        return hidden
    for beside in ("{placeholder}{text}", "{text}{placeholder}"):
        shown = {text: beside.format(text=text, placeholder=held) for text, held in placeholders.items()}
        text = template.question(replaced(messages, shown))
        text = replaced(text, {both: placeholders[token] for token, both in shown.items()})
        if replaced(text, originals) == plain:
            return text
    _announce_hidden_tokens()
    return hidden


def _size(backend: PreTrainedTokenizerBase) -> int:
    return max(backend.get_vocab().values()) + 1  # ids may have gaps, so counting them is not enough


def _generation_ends(directory: Path) -> list[int]:
    path = directory / "generation_config.json"
    return token_ids(path, read_json(path), "eos_token_id") if path.is_file() else []


def _turn_ends(backend: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> list[int]:
    """The control token that the chat template writes after an assistant's reply; it may differ from the eos token."""
    if not backend.chat_template:
        return []
    reply = uuid.uuid4().hex
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": reply}]
    after = Template(backend, arguments).render(messages).partition(reply)[2].lstrip()
    return [token_id for token_id, token in control_tokens(backend).items() if after.startswith(token.content)]


def _byte_symbols() -> list[str]:
    """The character that GPT-2 writes for each byte: the byte's own if it is printable, else one from 256 upwards."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {ord(letter): letter for letter in alphabet if ord(letter) < 256}
    others = (letter for letter in alphabet if ord(letter) >= 256)
    return [own[byte] if byte in own else next(others) for byte in range(256)]
