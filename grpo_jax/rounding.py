"""Random rounding: up or down at random, with the chances that make the mean exact; to bfloat16, and to 8 bits.

Rounded to nearest, a small change to a bfloat16 weight is lost: 1 and 1.0078 are neighbours, so that adding 1e-6 to 1
gives 1, however often. Rounded at random, a weight moves by a whole step in one of 7,800 such updates, and the mean of
its moves is that of float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

BLOCK = 128  # numbers that share a scale
STEPS = 8  # codes for each factor of two


def to_bfloat16(key: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """One of the two bfloat16 numbers next to each float32 number, at random, so that the mean is the number itself.

    A bfloat16 number is the upper half of a float32 number: 16 random bits are added to the lower half, and what is
    carried over rounds up. What is not finite stays as it is.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carried = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((carried >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


class Bytes(NamedTuple):
    """Numbers in 8 bits each, with the largest magnitude of each block along the last axis."""

    codes: Array
    largest: Array


def decode(stored: Bytes) -> Array:
    """The float32 numbers that are stored."""
    codes, largest = stored.codes.reshape(*stored.largest.shape, -1), stored.largest[..., None]
    return (largest * _shares(codes.astype(jnp.float32), codes.dtype)).reshape(stored.codes.shape)


def encode(key: Array, x: Array, signed: bool) -> Bytes:
    """The numbers in 8 bits, each rounded at random to one of the two that can be stored next to it.

    Codes are logarithms, eight steps to a factor of two, as small numbers matter where they are divided by one another:
    with a sign (int8), zero or down to 2e-5 of the largest of the block; without one (uint8), down to 3e-10 of it, and
    what is smaller becomes that, so that nobody divides by zero. Blocks of at most 128 numbers with a scale each are
    those of 8-bit optimisers (arXiv:2110.02861); the codes there are others, and rounded to nearest, so that an average
    of which each step changes little can stand still.
    """
    dtype = jnp.int8 if signed else jnp.uint8
    blocks = x.reshape(*x.shape[:-1], -1, _block(x.shape[-1]))
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    top = jnp.iinfo(dtype).max
    share = jnp.abs(blocks) / jnp.where(largest > 0, largest, 1.0)[..., None]
    lower = jnp.clip(jnp.floor(top + STEPS * jnp.log2(share)), 0, top - 1)
    low, high = (_shares(each, dtype) for each in (lower, lower + 1))
    chance = jnp.clip((share - low) / (high - low), 0.0, 1.0)
    up = jax.random.bits(key, blocks.shape, jnp.uint16) < chance * 2**16
    codes = (lower + up) * (jnp.sign(blocks) if signed else 1)
    return Bytes(codes.astype(dtype).reshape(x.shape), largest)


def _shares(code: Array, dtype: DTypeLike) -> Array:
    """What part of the largest of its block a number with this code is."""
    share = jnp.exp2((jnp.abs(code) - jnp.iinfo(dtype).max) / STEPS)
    return jnp.sign(code) * share if jnp.issubdtype(dtype, jnp.signedinteger) else share


def _block(size: int) -> int:
    """The largest divisor of the size of an axis that is at most `BLOCK`."""
    return max(n for n in range(1, min(size, BLOCK) + 1) if size % n == 0)
