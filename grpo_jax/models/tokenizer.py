"""Between text and token ids: chat templates, control tokens, left padding.

A model's control tokens (`<|im_end|>` and the like) belong to its chat template. Where a prompt contains such a string,
it is encoded as plain text, so that a data set cannot end the user's turn or speak as the assistant.
"""

import functools
import logging
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

from grpo_jax.models.files import AGAIN, read_json, token_ids
from grpo_jax.structs import Prompts, bucket

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # or it would advise to install torch

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Prompt = str | list[dict[str, Any]]  # plain text, or the messages of a conversation

BYTE_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's tokenizer. `size` is one more than its largest id; a response ends at any of `end_ids`."""

    backend: PreTrainedTokenizerBase
    size: int
    end_ids: tuple[int, ...]

    @property
    def has_chat_template(self) -> bool:
        """Whether the model expects a conversation. If so, a prompt that is a string becomes a user's message."""
        return bool(self.backend.chat_template)

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, up to where the answer begins; control tokens come from the chat template alone."""
        if isinstance(prompt, str):
            if not self.has_chat_template:
                return self.backend(prompt, split_special_tokens=True)["input_ids"]
            _announce_wrapping()
            prompt = [{"role": "user", "content": prompt}]
        elif not self.has_chat_template:
            raise ValueError(
                "Messages need a chat template, and this model has none: it is a base model. Use plain text"
                " prompts, or the instruction-tuned version of the model."
            )
        return self._encode_conversation(prompt)

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
        text = self.backend.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)  # it would be a list for a list of lists

    def _encode_one(self, name: str, prompt: Prompt, max_tokens: int) -> list[int]:
        try:
            ids = self.encode(prompt) if prompt else []
        except Exception as error:
            raise ValueError(f"Prompt {name} cannot be encoded: {_sentence(error)}") from error
        if not ids:
            raise ValueError(f"A prompt must not be empty; prompt {name} is. Drop that example, or fill it in.")
        if len(ids) > max_tokens:
            raise ValueError(
                f"Prompt {name} has {len(ids)} tokens, and the limit is {max_tokens}. Raise the limit"
                f" (train.max_prompt_tokens in a config), or shorten or filter out such prompts."
            )
        return ids

    def _encode_conversation(self, messages: list[dict[str, Any]]) -> list[int]:
        """The ids of a conversation, with control tokens in its text encoded as text.

        The template is rendered with a placeholder for each control token of the data. The control tokens in the
        result are then those of the template; the placeholders are replaced in the text between them.
        """
        control = {token.content: token_id for token_id, token in _control_tokens(self.backend).items()}
        mark = uuid.uuid4().hex  # unguessable, so no data contains it
        placeholders = {text: f"{mark}{token_id}." for text, token_id in control.items()}
        rendered = _rendered_with(self.backend, messages, placeholders)
        if mark not in rendered:
            return self.backend(rendered, add_special_tokens=False)["input_ids"]
        originals = {placeholder: text for text, placeholder in placeholders.items()}
        ids: list[int] = []
        for piece in re.split(_control_pattern(self.backend), rendered):
            if piece.strip() in control:
                ids.append(control[piece.strip()])
            elif piece:
                text = _replace(piece, originals)
                ids += self.backend(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a model's directory, with all ids that end a response."""
    try:
        loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of damage raises another class, and some a bare Exception
        raise ValueError(
            f"{directory} has no tokenizer that can be read ({type(error).__name__}: {error}). {AGAIN}"
        ) from error
    backend = cast(PreTrainedTokenizerBase, loaded)
    ends = {backend.eos_token_id, *_generation_ends(directory), *_turn_ends(backend)} - {None}
    if not ends:
        raise ValueError(
            f"A response needs a token that ends it, and {directory} names none. Set eos_token_id in its"
            f" generation_config.json, or eos_token in its tokenizer_config.json."
        )
    return Tokenizer(backend, _size(backend), tuple(sorted(ends)))


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
def _announce_hidden_tokens() -> None:
    logging.getLogger("grpo_jax").warning(
        "Some prompts contain control tokens that the model's chat template looks for, and does not find, because they"
        " are sent as text. Take them out of the data (such as <think>...</think> out of earlier turns)."
    )


def _rendered(backend: PreTrainedTokenizerBase, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    """The text of a conversation by the chat template."""
    try:
        text = backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is a program, which may raise anything
        advice = "Look at the roles and their order, or use another chat template."
        if any(message.get("role") == "system" for message in messages):
            advice = "If it knows no system message, leave out task.system and write that text into task.instruction."
        raise ValueError(f"the model's chat template refuses it: {_sentence(error)} {advice}") from error
    return cast(str, text)  # it would be ids with tokenize=True


def _rendered_with(
    backend: PreTrainedTokenizerBase, messages: list[dict[str, Any]], placeholders: dict[str, str]
) -> str:
    """The text of a conversation with a placeholder for each control token of the data.

    A template may look for such a token in the data: many cut `...</think>` out of earlier turns. Where the text is
    another one than without placeholders, the token itself is shown with its placeholder beside it.
    """
    hidden = _rendered(backend, _replace(messages, placeholders), add_generation_prompt=True)
    if _replace(messages, placeholders) == messages:
        return hidden
    originals = {placeholder: text for text, placeholder in placeholders.items()}
    plain = _rendered(backend, messages, add_generation_prompt=True)
    if _replace(hidden, originals) == plain:
        return hidden
    for beside in ("{placeholder}{text}", "{text}{placeholder}"):
        shown = {text: beside.format(text=text, placeholder=held) for text, held in placeholders.items()}
        text = _rendered(backend, _replace(messages, shown), add_generation_prompt=True)
        text = _replace(text, {both: placeholders[token] for token, both in shown.items()})
        if _replace(text, originals) == plain:
            return text
    _announce_hidden_tokens()
    return hidden


def _sentence(error: Exception) -> str:
    """An error as the end of a sentence: its message alone, if it is ours."""
    text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return text if text.endswith(".") else f"{text}."


def _control_tokens(backend: PreTrainedTokenizerBase) -> dict[int, Any]:
    return {token_id: token for token_id, token in backend.added_tokens_decoder.items() if token.special}


def _control_pattern(backend: PreTrainedTokenizerBase) -> str:
    """A pattern for one control token and the white space it includes, as a group, so that splitting keeps it."""
    tokens = sorted(_control_tokens(backend).values(), key=lambda token: len(token.content), reverse=True)
    alternatives = (
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in tokens
    )
    return f"({'|'.join(alternatives)})"


def _replace(value: Any, replacements: dict[str, str]) -> Any:
    """The value with the replacements made in all of its strings, longest first."""
    if isinstance(value, str):
        for text in sorted(replacements, key=len, reverse=True):
            value = value.replace(text, replacements[text])
        return value
    if isinstance(value, list):
        return [_replace(item, replacements) for item in value]
    if isinstance(value, dict):
        return {key: _replace(item, replacements) for key, item in value.items()}
    return value


def _size(backend: PreTrainedTokenizerBase) -> int:
    return max(backend.get_vocab().values()) + 1  # ids may have gaps, so counting them is not enough


def _generation_ends(directory: Path) -> list[int]:
    path = directory / "generation_config.json"
    return token_ids(path, read_json(path), "eos_token_id") if path.is_file() else []


def _turn_ends(backend: PreTrainedTokenizerBase) -> list[int]:
    """The control token that the chat template writes after an assistant's reply; it may differ from the eos token."""
    if not backend.chat_template:
        return []
    reply = uuid.uuid4().hex
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": reply}]
    after = _rendered(backend, messages, add_generation_prompt=False).partition(reply)[2].lstrip()
    return [token_id for token_id, token in _control_tokens(backend).items() if after.startswith(token.content)]


def _byte_symbols() -> list[str]:
    """The character that GPT-2 writes for each byte: the byte's own if it is printable, else one from 256 upwards."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {ord(letter): letter for letter in alphabet if ord(letter) < 256}
    others = (letter for letter in alphabet if ord(letter) >= 256)
    return [own[byte] if byte in own else next(others) for byte in range(256)]
