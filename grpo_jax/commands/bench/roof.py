"""Measures what this machine can do at most: the rate of a large matrix product, and the bandwidth of its memory."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

REPEATS = 8


def matmul_rate(dtype: DTypeLike) -> float:
    """FLOP/s of a square matrix product on one device, the best of a few."""
    N = 2048 if jax.default_backend() == "cpu" else 8192
    square = jnp.ones((N, N), dtype)
    multiply = jax.jit(jnp.matmul)
    return 2 * N**3 / _best(lambda: multiply(square, square))


def memory_rate() -> float:
    """Bytes/s that one device reads and writes while it changes a large array in place, the best of a few."""
    size = 2**27 if jax.default_backend() == "cpu" else 2**30
    array = [jnp.zeros(size, jnp.float32)]
    add = jax.jit(partial(jnp.add, 1), donate_argnums=0)

    def change() -> Array:
        array[0] = add(array[0])
        return array[0]

    return 2 * 4 * size / _best(change)


def _best(work: Callable[[], Array]) -> float:
    jax.block_until_ready(work())
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
