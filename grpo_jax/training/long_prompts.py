"""What becomes of prompts that are longer than `train.max_prompt_tokens`: refused, left out or cut; and how many."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from grpo_jax.models import Model
from grpo_jax.ranges import WHOLE
from grpo_jax.rewards import Example
from grpo_jax.rewards.example import Message

LongPrompts = Literal["refuse", "leave_out", "cut"]
SHOWN = 5  # examples that the message about them names


def fitted(
    examples: Sequence[Example], model: Model, max_tokens: int, choice: LongPrompts, kind: str
) -> Sequence[Example]:
    """The examples without those whose prompts are too long, or with these cut. `kind` is training or held-out.

    With `refuse` they are returned as they are, and encoding them is an error.
    """
    if choice == "refuse":
        return examples
    lengths = [prompt_length(example, example.prompt, model) for example in examples]
    long = [index for index, length in enumerate(lengths) if length > max_tokens]
    if not long:
        return examples
    _tell([examples[index] for index in long], len(examples), max_tokens, choice, kind)
    if choice == "leave_out":
        return [example for example, length in zip(examples, lengths, strict=True) if length <= max_tokens]
    shorter = {index: _cut(examples[index], model, max_tokens) for index in long}
    return [shorter.get(index, example) for index, example in enumerate(examples)]


def prompt_length(example: Example, prompt: Any, model: Model) -> int:
    """The tokens of a prompt. An error names the example."""
    return int(model.tokenizer.encode_all([prompt], WHOLE, [example.source]).valid_PL.sum())


def _cut(example: Example, model: Model, max_tokens: int) -> Example:
    """The example with the beginning of its longest message cut off, as little as is needed.

    The end stays, because that is where a question and its instruction stand.
    """
    texts = [example.prompt] if isinstance(example.prompt, str) else [turn["content"] for turn in example.prompt]
    turn = max(range(len(texts)), key=lambda index: len(texts[index]))
    fewest, most = 0, len(texts[turn])  # of characters that are cut off
    if most == 0 or prompt_length(example, _shortened(example.prompt, turn, most - 1), model) > max_tokens:
        raise ValueError(
            f"{example.label}: its prompt is longer than train.max_prompt_tokens of {max_tokens} even without its"
            " longest message. Raise the limit, or set train.long_prompts: leave_out."
        )
    while most - fewest > 1:
        middle = (fewest + most) // 2
        if prompt_length(example, _shortened(example.prompt, turn, middle), model) > max_tokens:
            fewest = middle
        else:
            most = middle
    return replace(example, prompt=_shortened(example.prompt, turn, most))


def _shortened(prompt: str | list[Message], turn: int, characters: int) -> str | list[Message]:
    """A prompt without the first characters of one of its messages."""
    if isinstance(prompt, str):
        return prompt[characters:]
    changed = {**prompt[turn], "content": prompt[turn]["content"][characters:]}
    return [*prompt[:turn], changed, *prompt[turn + 1 :]]


def _tell(long: Sequence[Example], total: int, max_tokens: int, choice: str, kind: str) -> None:
    named = ", ".join(example.label for example in long[:SHOWN])
    more = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
    logging.getLogger("grpo_jax").warning(
        "%d of %d %s prompts have more than %d tokens and are %s (train.long_prompts): %s%s",
        *(len(long), total, kind, max_tokens, {"leave_out": "left out", "cut": "cut"}[choice], named, more),
    )
