"""Attention, and which kernel computes it: splash attention on a TPU, cuDNN's on a GPU, plain XLA elsewhere.

A response attends to the prompt of its group and to itself, with one softmax. `attend` is that formula written out; it
holds one copy of the prompt's keys and values for a group. Decoding uses it on every platform, and the kernels are
tested against it. The kernels compute whole rows for learning and for reading prompts. Those for TPU and GPU copy the
prompt's keys and values to each row, and never hold the scores of all pairs of tokens.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.attention.formula import KeyValues, Scope, attend, masks
from grpo_jax.models.attention.fused import cudnn_rows, splash_rows
from grpo_jax.models.attention.parts import attend_part, by_group, merged
from grpo_jax.models.attention.plain import plain_rows
from grpo_jax.models.attention.ring import (
    AT_ONCE,
    BLOCK,
    KERNEL,
    LANES,
    Live,
    attend_ring,
    block_size,
    heads_side_by_side,
    live_positions,
    mesh_parts,
    paired,
    takes,
    unpaired,
)

__all__ = [
    "AT_ONCE",
    "BLOCK",
    "KERNEL",
    "LANES",
    "KeyValues",
    "Live",
    "Scope",
    "attend",
    "attend_part",
    "attend_ring",
    "block_size",
    "by_group",
    "cudnn_rows",
    "heads_side_by_side",
    "kernel",
    "live_positions",
    "masks",
    "merged",
    "mesh_parts",
    "paired",
    "plain_rows",
    "splash_rows",
    "takes",
    "unpaired",
]

Kernel = Callable[[Array, KeyValues, Scope, KeyValues | None, int | None, float | None], Array]


def kernel(platform: str, activations: DTypeLike) -> Kernel:
    """The attention of whole rows on a platform."""
    if platform == "tpu":
        return splash_rows
    if platform in ("gpu", "cuda") and jnp.dtype(activations).itemsize == 2:  # cuDNN has no float32 attention
        return cudnn_rows
    return plain_rows
