"""Rewards for the format of a response, whatever its content."""

import re
from dataclasses import dataclass

from grpo_jax.rewards.example import Example

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def follows_template(example: Example, response: str) -> float:
    """1 for `<think>...</think> <answer>...</answer>`: each tag once, in this order, with only white space outside."""
    starts = [response.find(tag) for tag in TAGS]
    if any(response.count(tag) != 1 for tag in TAGS) or starts != sorted(starts):
        return 0.0
    before = response[: starts[0]]
    between = response[starts[1] + len(TAGS[1]) : starts[2]]
    after = response[starts[3] + len(TAGS[3]) :]
    return float(not (before + between + after).strip())


@dataclass(frozen=True)
class Matches:
    """1 if the whole response matches the regular expression. White space around it is removed; `.` matches newlines.

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
        return float(re.fullmatch(self.pattern, response.strip(), re.DOTALL) is not None)
