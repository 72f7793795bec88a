"""Weightings: how much each token counts in the loss, `(action_PGT, counted_PG) -> weights_PGT`.

They are computed once for the whole global batch, before any gradient, so microbatches and devices change nothing but
rounding. `counted_PG` says which responses the denominators count: a response that selection left out is in neither sum
nor denominator; a counted response without tokens is in the denominator.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from grpo_jax.ranges import WHOLE, check_range


def sequence_mean(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """Every response counts the same, and so does every token within it."""
    lengths_PG1 = jnp.maximum(jnp.sum(action_PGT, axis=2, keepdims=True), 1)
    return sequence_sum(action_PGT, counted_PG) / lengths_PG1


def token_mean(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """Every token of the batch counts the same, as in TRL and verl. DAPO and CISPO as published divide by the tokens of
    each group instead, which is `prompt_mean`; the two are equal where all groups have as many tokens.
    """
    counted_PGT = action_PGT & counted_PG[:, :, None]
    return counted_PGT / jnp.maximum(jnp.sum(counted_PGT), 1)


def prompt_mean(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """Every prompt counts the same, and so does every token of its responses (ScaleRL, arXiv:2510.13786, and
    the published DAPO and CISPO).
    """
    counted_PGT = action_PGT & counted_PG[:, :, None]
    tokens_P11 = jnp.sum(counted_PGT, axis=(1, 2), keepdims=True)
    return counted_PGT / jnp.maximum(tokens_P11, 1) / jnp.maximum(jnp.sum(tokens_P11 > 0), 1)


def sequence_sum(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """The mean over responses of the sum over their tokens."""
    return (action_PGT & counted_PG[:, :, None]) / jnp.maximum(jnp.sum(counted_PG), 1)


@dataclass(frozen=True)
class FixedLength:
    """The mean over responses of the sum over their tokens, divided by a constant `length` in tokens.

    A length of None is the longest that the sampler allows: the width of the arrays.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None:
            check_range("length", self.length, least=1, most=WHOLE)

    def __call__(self, action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
        length = action_PGT.shape[2] if self.length is None else self.length
        return sequence_sum(action_PGT, counted_PG) / length
