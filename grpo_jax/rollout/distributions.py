"""Drawing a token from a distribution over the vocabulary."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

BLOCK = 128  # tokens; one lane width, and close to the square root of a vocabulary


def draw(uniform_PG: Float[Array, "P G"], logprobs_PGV: Float[Array, "P G V"]) -> Int[Array, "P G"]:
    """The token whose interval of cumulative probability holds the row's uniform number: an exact draw.

    Blocks of the vocabulary first, then tokens of the chosen block: one random number a row and no sum longer than a
    block, where a Gumbel draw needs one number for every token of the vocabulary.
    """
    P, G, V = logprobs_PGV.shape
    probs_PGV = jnp.pad(jnp.exp(logprobs_PGV), ((0, 0), (0, 0), (0, -V % BLOCK)))
    probs_PGnB = probs_PGV.reshape(P, G, -1, BLOCK)
    mass_PGn = probs_PGnB.sum(axis=3)
    block_PG, rest_PG = _find(mass_PGn, uniform_PG * mass_PGn.sum(axis=2))
    probs_PGB = jnp.take_along_axis(probs_PGnB, block_PG[:, :, None, None], axis=2)[:, :, 0]
    token_PG, _ = _find(probs_PGB, rest_PG)
    return block_PG * BLOCK + token_PG


def _find(mass_PGn: Array, target_PG: Array) -> tuple[Array, Array]:
    """The first place where the cumulative mass exceeds the target, never one without mass, and what is left of it."""
    edges_PGn = jnp.cumsum(mass_PGn, axis=2)
    found_PG = jnp.sum(edges_PGn <= target_PG[:, :, None], axis=2)
    last_PG = mass_PGn.shape[2] - 1 - jnp.argmax(mass_PGn[:, :, ::-1] > 0, axis=2)
    found_PG = jnp.minimum(found_PG, last_PG).astype(jnp.int32)
    before_PG = jnp.take_along_axis(edges_PGn - mass_PGn, found_PG[:, :, None], axis=2)[:, :, 0]
    return found_PG, jnp.maximum(target_PG - before_PG, 0)
