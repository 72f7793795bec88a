"""Rewards of the single steps of a response, for process supervision (DeepSeekMath, arXiv:2402.03300)."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from grpo_jax.rewards.conversation import Conversation


class TokenCount(int):
    """The end of a step, counted in tokens that the policy chose, in place of characters."""


@dataclass(frozen=True)
class Steps:
    """What a reward returns to score single steps. The reward of the response is the sum over its steps."""

    rewards: Sequence[float]
    ends: Sequence[int]  # how many characters of the response there are up to the end of each step, or a `TokenCount`

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.ends):
            raise ValueError(f"Every step needs a reward and an end; got {len(self.rewards)} and {len(self.ends)}.")
        if not all(math.isfinite(reward) for reward in self.rewards):
            raise ValueError(f"The rewards of steps must be finite numbers; got {list(self.rewards)}.")

    @property
    def total(self) -> float:
        """The reward of the whole response."""
        return float(sum(self.rewards))


def place_steps(
    steps: Mapping[tuple[int, int], Sequence[tuple[int, float]]],
    tokens: Sequence[Sequence[Sequence[int]]],
    decode: Callable[[Sequence[int]], str],
    action_PGT: np.ndarray,
    conversations: Sequence[Sequence[Conversation]] | None = None,
) -> Float32[np.ndarray, "P G T"]:
    """The rewards of steps, each at the token that completes its text, and NaN at tokens where no step ends.

    `steps` has the (end, reward) of each step by (prompt, response). Rewards at the same token are added. Ends in
    characters are those of the last reply, where `conversations` have several.
    """
    steps_PGT = np.full(action_PGT.shape, np.nan, np.float32)
    for (p, g), found in steps.items():
        positions = np.flatnonzero(action_PGT[p, g])
        before = sum(conversations[p][g].lengths[:-1]) if conversations else 0
        ids = tokens[p][g][before:]
        for end, reward in found if len(ids) else ():
            last = before + bisect.bisect_left(
                range(len(ids) - 1), end, key=lambda n, ids=ids: len(decode(ids[: n + 1]))
            )
            t = positions[end - 1 if isinstance(end, TokenCount) else last]
            steps_PGT[p, g, t] = np.nan_to_num(steps_PGT[p, g, t]) + reward
    return steps_PGT
