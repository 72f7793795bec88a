"""How long the prompts of a data set are, as a small histogram of text."""

from collections.abc import Sequence

import numpy as np

from grpo_jax.commands.data.golds import listed
from grpo_jax.models import Model
from grpo_jax.rewards import Example
from grpo_jax.training.long_prompts import LongPrompts, prompt_length

BINS, WIDTH = 10, 40  # lines, and characters of the longest bar
MEANT = {"refuse": "training would refuse them", "leave_out": "they are left out", "cut": "they are cut"}


def prompt_lengths(examples: Sequence[Example], model: Model) -> list[int]:
    """The tokens of each prompt."""
    return [prompt_length(example, example.prompt, model) for example in examples]


def histogram(lengths: Sequence[int], examples: Sequence[Example], kind: str, limit: int, choice: LongPrompts) -> str:
    """How many prompts have how many tokens, and which have more than the limit."""
    longest = int(np.argmax(lengths))
    of_all = spread(lengths)
    lines = [
        f"tokens of the {kind} prompts: median {of_all['median']:.0f}, 95 % have at most {of_all['percentile_95']:.0f},"
        f" the longest"
        f" ({examples[longest].label}) {lengths[longest]}; train.max_prompt_tokens is {limit}"
    ]
    lines += bars(lengths)
    long = [example.label for example, length in zip(examples, lengths, strict=True) if length > limit]
    if long:
        lines.append(f"  {len(long)} have more than {limit}, and {MEANT[choice]} (train.long_prompts): {listed(long)}")
    return "\n".join(lines)


def spread(lengths: Sequence[int]) -> dict[str, float]:
    """The median, what 95 in 100 do not exceed, and the most."""
    middle, high = np.percentile(lengths, [50, 95])
    return {"median": float(middle), "percentile_95": float(high), "most": max(lengths)}


def bars(lengths: Sequence[int]) -> list[str]:
    """A line for each range of lengths, with a bar and its number."""
    least, most = min(lengths), max(lengths)
    step = -(-(most - least + 1) // BINS)
    starts = range(least, most + 1, step)
    counts = [sum(start <= length < start + step for length in lengths) for start in starts]
    digits, tallest = len(str(most)), max(counts)
    return [
        f"  {start:>{digits}} to {start + step - 1:>{digits}}  {'#' * -(-WIDTH * count // tallest):<{WIDTH}}  {count}"
        for start, count in zip(starts, counts, strict=True)
    ]
