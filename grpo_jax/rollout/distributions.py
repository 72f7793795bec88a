"""Drawing a token from a distribution over the vocabulary."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

BLOCK = 128  # tokens; one lane width, and close to the square root of a vocabulary


def draw(uniform_PG2: Float[Array, "P G 2"], logprobs_PGV: Float[Array, "P G V"]) -> Int[Array, "P G"]:
    """A block of the vocabulary, then a token of that block, each by inverting its cumulative probability.

    Two uniform numbers a row, where a Gumbel draw needs one for every token; one alone could not tell apart the tokens
    of a block as rare as its own resolution (2^-23).
    """
    P, G, V = logprobs_PGV.shape
    probs_PGV = jnp.pad(jnp.exp(logprobs_PGV), ((0, 0), (0, 0), (0, -V % BLOCK)))
    probs_PGnB = probs_PGV.reshape(P, G, -1, BLOCK)
    mass_PGn = probs_PGnB.sum(axis=3)
    block_PG = _find(mass_PGn, uniform_PG2[:, :, 0])
    probs_PGB = jnp.take_along_axis(probs_PGnB, block_PG[:, :, None, None], axis=2)[:, :, 0]
    return block_PG * BLOCK + _find(probs_PGB, uniform_PG2[:, :, 1])


def _find(mass_PGn: Array, uniform_PG: Array) -> Array:
    """The first place where the share of the cumulative mass exceeds the uniform number; never one without mass."""
    edges_PGn = jnp.cumsum(mass_PGn, axis=2)
    found_PG = jnp.sum(edges_PGn <= uniform_PG[:, :, None] * edges_PGn[:, :, -1:], axis=2)
    last_PG = mass_PGn.shape[2] - 1 - jnp.argmax(mass_PGn[:, :, ::-1] > 0, axis=2)
    return jnp.minimum(found_PG, last_PG).astype(jnp.int32)
