"""Attention, and which kernel computes it: splash attention on a TPU, cuDNN's on a GPU, plain XLA elsewhere.

A response attends to the prompt of its group and to itself, as one softmax. `attend` is that formula written out, over
one copy of the prompt: it decodes everywhere, and the others are tested against it. `plain_rows` learns on a CPU. The
kernels take the prompt's keys and values once for each row, and never hold the scores of all pairs of tokens.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.attention.formula import PRODUCT, Memory, Sight, attend, masks
from grpo_jax.models.attention.fused import cudnn_rows, splash_rows
from grpo_jax.models.attention.plain import plain_rows

__all__ = ["PRODUCT", "Memory", "Sight", "attend", "cudnn_rows", "kernel", "masks", "plain_rows", "splash_rows"]

Kernel = Callable[[Array, Memory, Sight, Memory | None, int | None, float | None], Array]


def kernel(platform: str, activations: DTypeLike) -> Kernel:
    """The attention of whole rows on a platform."""
    if platform == "tpu":
        return splash_rows
    if platform in ("gpu", "cuda") and jnp.dtype(activations).itemsize == 2:  # cuDNN has no float32 attention
        return cudnn_rows
    return plain_rows
