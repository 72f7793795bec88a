"""Weightings: how much each token counts in the loss, `(action_PGT, counted_PG) -> weights_PGT`.

Made once for the whole global batch, before any gradient, so microbatches, devices and minibatches change nothing.
`counted_PG` are the responses that denominators know of: what selection left out is neither in the sum nor in them,
while a response without any token of its own is in them.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def sequence_mean(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """Every response counts the same, and so does every token within it."""
    lengths_PG1 = jnp.maximum(jnp.sum(action_PGT, axis=2, keepdims=True), 1)
    return sequence_sum(action_PGT, counted_PG) / lengths_PG1


def token_mean(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """Every token of the batch counts the same."""
    counted_PGT = action_PGT & counted_PG[:, :, None]
    return counted_PGT / jnp.maximum(jnp.sum(counted_PGT), 1)


def prompt_mean(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """Every prompt counts the same, and so does every token of its responses (ScaleRL, arXiv:2510.13786)."""
    counted_PGT = action_PGT & counted_PG[:, :, None]
    tokens_P11 = jnp.sum(counted_PGT, axis=(1, 2), keepdims=True)
    return counted_PGT / jnp.maximum(tokens_P11, 1) / jnp.maximum(jnp.sum(tokens_P11 > 0), 1)


def sequence_sum(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """The mean over responses of the sum over their tokens."""
    return (action_PGT & counted_PG[:, :, None]) / jnp.maximum(jnp.sum(counted_PG), 1)


def token_sum(action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
    """The sum over all tokens."""
    return (action_PGT & counted_PG[:, :, None]).astype(jnp.float32)


@dataclass(frozen=True)
class FixedLength:
    """The mean over responses of the sum over their tokens, divided by a constant `length` in tokens.

    No length is the longest that the sampler allows.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ValueError(f"Responses are divided by a length of at least 1 token; got {self.length}.")

    def __call__(self, action_PGT: Bool[Array, "P G T"], counted_PG: Bool[Array, "P G"]) -> Float[Array, "P G T"]:
        length = action_PGT.shape[2] if self.length is None else self.length
        return sequence_sum(action_PGT, counted_PG) / length
