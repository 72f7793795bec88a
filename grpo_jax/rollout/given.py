"""Given answers as rollouts, so that whatever learns from rollouts learns from them: supervised fine-tuning.

An example with a given answer is a group of one. Its log-probs are NaN, which says that no sampler has chosen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import place_prompts
from grpo_jax.distribution import Distribution
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rollout.engine import Engine
from grpo_jax.structs import Params, Policy, Prompts, Rollouts


@dataclass(frozen=True)
class Answered(Example):
    """An example with the answer that is learned: the `turns` after its prompt, as tokens.

    `said` marks what the assistant says; `ended` is false if the answer has been cut off.
    """

    turns: tuple[Message, ...] = ()
    tokens_T: np.ndarray = field(repr=False, compare=False, kw_only=True)
    said_T: np.ndarray = field(repr=False, compare=False, kw_only=True)
    ended: bool = field(repr=False, compare=False, kw_only=True)


@dataclass(frozen=True)
class GivenAnswers:
    """The engine whose one response to each prompt is the answer of its example, padded to `max_tokens`.

    Prompts without a given answer, such as held-out ones, are answered by the `sampler`.
    """

    sampler: Engine
    max_tokens: int

    @property
    def responses(self) -> int:
        """One: the given answer."""
        return 1

    def __call__(
        self, policy: Policy, params: Params, prompts: Prompts, key: Array, examples: Sequence[Any] = ()
    ) -> Rollouts:
        """The given answers, all of them tokens of the policy where the assistant says them."""
        P, T, mesh = len(examples), self.max_tokens, mesh_of(prompts)
        tokens_PGT, valid_PGT = np.zeros((P, 1, T), np.int32), np.zeros((P, 1, T), bool)
        action_PGT, unknown_PGT = np.zeros((P, 1, T), bool), np.zeros((P, 1, T), np.float32)
        for p, example in enumerate(examples):
            count = len(example.tokens_T)
            tokens_PGT[p, 0, :count], action_PGT[p, 0, :count] = example.tokens_T, example.said_T
            valid_PGT[p, 0, :count] = True
        unknown_PGT[action_PGT] = np.nan
        ended_PG = np.array([[example.ended] for example in examples])
        arrays = (tokens_PGT, valid_PGT, action_PGT, unknown_PGT, unknown_PGT, ended_PG)
        placed = [jnp.asarray(a) for a in arrays] if mesh is None else place_prompts(list(arrays), mesh)
        return Rollouts(prompts, *placed, distribution=Distribution())

    def greedy(self) -> Engine | None:
        """The greedy sampler."""
        return self.sampler.greedy()

    def with_room(self, policy: Policy, prompts: Prompts, multiple: int) -> "GivenAnswers":
        """This engine as it is: it holds nothing."""
        return self

    def check(self, policy: Policy, prompts: Prompts) -> None:
        """Refuses prompts and answers that are longer together than the model's positions."""
        L = prompts.tokens_PL.shape[1]
        if L + self.max_tokens > policy.max_positions:
            raise ValueError(
                f"Prompts of {L} tokens and given answers of {self.max_tokens} need {L + self.max_tokens} positions,"
                f" and the model has {policy.max_positions}. Lower sft.max_tokens or train.max_prompt_tokens."
            )


def sampler_of(engine: Engine) -> Engine:
    """The engine that answers prompts itself: the sampler beside given answers, or the engine as it is."""
    return engine.sampler if isinstance(engine, GivenAnswers) else engine
