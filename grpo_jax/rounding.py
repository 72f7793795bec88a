"""Random rounding: up or down at random, with the chances that make the mean exact.

Rounded to nearest, a small change to a bfloat16 weight is lost: 1 and 1.0078 are neighbours, so that adding 1e-6 to 1
gives 1, however often. Rounded at random, a weight moves by a whole step in one of 7,800 such updates, and the mean of
its moves is that of float32.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def to_bfloat16(key: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """One of the two bfloat16 numbers next to each float32 number, at random, so that the mean is the number itself.

    A bfloat16 number is the upper half of a float32 number: 16 random bits are added to the lower half, and what is
    carried over rounds up. What is not finite stays as it is.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carried = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((carried >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))
