"""Rewards for the format of a response, whatever its content.

What the prompt already has of the answer belongs to its format: many chat templates open `<think>` themselves.
"""

import re
from dataclasses import dataclass

from grpo_jax.rewards.example import Example

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def follows_template(example: Example, response: str) -> float:
    """1 for `<think>...</think> <answer>...</answer>`: each tag once, in this order, with only white space outside.

    What the prompt opened counts as the response's beginning. Where that is not known, because the example was made
    outside of a training, `<think>` may be left out.
    """
    beginnings = ("", TAGS[0]) if example.opened is None else ("", example.opened)
    return float(any(_is_framed(beginning + response) for beginning in beginnings))


def _is_framed(text: str) -> bool:
    starts = [text.find(tag) for tag in TAGS]
    if any(text.count(tag) != 1 for tag in TAGS) or starts != sorted(starts):
        return False
    before = text[: starts[0]]
    between = text[starts[1] + len(TAGS[1]) : starts[2]]
    after = text[starts[3] + len(TAGS[3]) :]
    return not (before + between + after).strip()


@dataclass(frozen=True)
class Matches:
    """1 if the whole response matches the regular expression, alone or after what the prompt opened of it. White space
    around it is removed; `.` matches newlines.

    The pattern is trusted: nothing limits how long it backtracks.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"Matches needs a regular expression; {self.pattern!r} is not one: {error}.") from error

    def __call__(self, example: Example, response: str) -> float:
        """1 or 0."""
        texts = [response, example.opened + response] if example.opened else [response]
        return float(any(re.fullmatch(self.pattern, text.strip(), re.DOTALL) for text in texts))
