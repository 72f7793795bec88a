"""Attention of whole rows by kernels that never hold all scores: cuDNN's on a GPU, splash attention on a TPU."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from grpo_jax.devices.mesh import prompt_axes, prompt_shards
from grpo_jax.models.attention.blocks import TILE, Blocks, choose_blocks, padded
from grpo_jax.models.attention.formula import KeyValues, Scope, masks
from grpo_jax.models.attention.plain import plain_rows
from grpo_jax.models.remat import ATTENTION

POSITION_BITS = 16


def _joined(own: KeyValues, prefix: KeyValues | None) -> tuple[Array, Array]:
    """Keys and values of each row, `[P, G, K, L + T, C]`: those of the prompt, then the row's own."""
    if prefix is None:
        return own.key, own.value

    def join(prefix_PKLC: Array, own_PGKTC: Array) -> Array:
        P, G, K, _, C = own_PGKTC.shape
        copies_PGKLC = jnp.broadcast_to(prefix_PKLC[:, None], (P, G, K, prefix_PKLC.shape[2], C))
        return jnp.concatenate([copies_PGKLC.astype(own_PGKTC.dtype), own_PGKTC], axis=3)

    return join(prefix.key, own.key), join(prefix.value, own.value)


def cudnn_rows(
    query_PGHTC: Array,
    own: KeyValues,
    scope: Scope,
    prefix: KeyValues | None,
    window: int | None,
    softcap: float | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """Attention of whole rows by cuDNN's fused kernel; plain where it cannot (a soft cap, heads of unusual width)."""
    P, G, H, T, C = query_PGHTC.shape
    if softcap is not None or C % 8 or C > 128:
        return plain_rows(query_PGHTC, own, scope, prefix, window, softcap)
    mask_PGTS, prompt_PGTL = masks(scope, window)
    if prompt_PGTL is not None:
        prompt_PGTL = jnp.broadcast_to(prompt_PGTL, (P, G, T, prompt_PGTL.shape[3]))
        mask_PGTS = jnp.concatenate([prompt_PGTL, mask_PGTS], axis=3)

    def heads_last(a: Array) -> Array:
        a = _padded(a, 3, a.shape[3] + a.shape[3] % 2)  # the kernel's backward pass needs an even length
        return jnp.swapaxes(a.reshape(P * G, *a.shape[2:]), 1, 2)

    query, key, value = map(heads_last, (query_PGHTC, *_joined(own, prefix)))
    mask_PGTS = _padded(_padded(mask_PGTS, 2, query.shape[1]), 3, key.shape[1])
    mask = mask_PGTS.reshape(P * G, 1, *mask_PGTS.shape[2:])
    output = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
    return jnp.swapaxes(output, 1, 2).reshape(P, G, H, -1, C)[:, :, :, :T]


class _RowMask(splash_mask.Mask):
    """The mask of packed rows behind their prompt: which blocks the TPU kernel visits, and which keys in them count.

    The kernel calls `mask_function` with a number for each query, which it takes from `q_sequence`, and the position of
    each key. `splash_rows` encodes in that number the query's position in its row and the start of its response.
    """

    def __init__(self, T: int, S: int, L: int, window: int | None):
        self.size, self.L, self.window = (T, S), L, window
        self.q_sequence = np.arange(T, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        """Which keys some response may attend to. No block is ever full, so the kernel always calls `mask_function`."""
        query_T, key_S = (np.arange(size)[positions] for size, positions in zip(self.size, idx, strict=True))
        return (key_S[None] <= self.L + query_T[:, None]) & (key_S[None] % TILE != TILE - 1)

    def mask_function(self, encoded: Array, key: Array) -> Array:
        """Whether each query attends to each key, given what encodes the queries and the positions of the keys."""
        query, start = encoded & (2**POSITION_BITS - 1), encoded >> POSITION_BITS
        own = (key >= self.L + start) & (key <= self.L + query)
        prompt = key < self.L
        if self.window is not None:
            own &= key > self.L + query - self.window
            prompt &= key > self.L + query - start - self.window
        return own | prompt

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RowMask) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple:
        return self.size, self.L, self.window


def splash_rows(
    query_PGHTC: Array,
    own: KeyValues,
    scope: Scope,
    prefix: KeyValues | None,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> Array:
    """Attention of whole rows by the TPU's splash kernel: prompt and response in one call, K/V heads shared. Plain for
    rows with a trunk, which the kernel's mask does not know.
    """
    if scope.trunk_PG is not None:
        return plain_rows(query_PGHTC, own, scope, prefix, window, softcap)
    P, G, _, T, C = query_PGHTC.shape
    key, value = _joined(own, prefix)
    L = key.shape[3] - T
    if L + T >= 2**POSITION_BITS // 2:
        raise ValueError(f"Rows of {L} + {T} positions exceed the attention kernel's limit of {2**POSITION_BITS // 2}.")
    blocks = choose_blocks(T, L, C, query_PGHTC.dtype.itemsize, softcap is not None)
    queries, keys = padded(T, blocks.queries), padded(L + T, blocks.keys)
    position_11T = jnp.arange(queries)[None, None]
    start_PGT = _padded(scope.start_PGT, 2, queries)
    start_PGT = jnp.where(position_11T < T, start_PGT, position_11T)
    encoded_PGT = (start_PGT << POSITION_BITS) | position_11T
    valid_PGS = scope.valid_PGT
    if prefix is not None and scope.prompt_valid_PL is not None:
        prompt_PGL = jnp.broadcast_to(scope.prompt_valid_PL[:, None], (P, G, L))
        valid_PGS = jnp.concatenate([prompt_PGL, valid_PGS], axis=2)
    arrays = (
        _padded(query_PGHTC * C**-0.5, 3, queries),
        _padded(key, 3, keys),
        _padded(value, 3, keys),
        encoded_PGT,
        _padded(valid_PGS.astype(jnp.int32), 2, keys),
    )
    attention = partial(_splash, blocks, _RowMask(queries, keys, L, window), softcap, interpret)
    return _on_mesh(attention, arrays)[:, :, :, :T]


def _padded(a: Array, axis: int, size: int) -> Array:
    return jnp.pad(a, [(0, size - a.shape[i] if i == axis else 0) for i in range(a.ndim)])


def _splash(
    blocks: Blocks,
    mask: _RowMask,
    softcap: float | None,
    interpret: bool,
    query: Array,
    key: Array,
    value: Array,
    encoded: Array,
    valid: Array,
) -> Array:
    """Splash attention over the leading axes P and G of all arrays."""
    (T, S), H = mask.size, query.shape[2]
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * H),
        block_sizes=_block_sizes(blocks, S),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )

    def row(query_HTC: Array, key_KSC: Array, value_KSC: Array, encoded_T: Array, valid_S: Array) -> Array:
        known: Any = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
        infos = (info and info._replace(q_sequence=encoded_T) for info in known)  # a fused backward pass has no second
        segments = splash.SegmentIds(jnp.ones((T,), jnp.int32), valid_S)
        output_HTC = splash.SplashAttentionKernel(*infos, **kernel.kwargs)(query_HTC, key_KSC, value_KSC, segments)
        return cast(Array, output_HTC)  # a pair only where residuals are asked for

    return jax.vmap(jax.vmap(row))(query, key, value, encoded, valid)


def _block_sizes(blocks: Blocks, S: int) -> splash.BlockSizes:
    """The blocks as the kernel's library takes them, for all of its kernels."""
    queries, keys, step = blocks
    if blocks.fused(S):
        return splash.BlockSizes(queries, keys, step, queries, keys, step, use_fused_bwd_kernel=True)
    return splash.BlockSizes(queries, keys, step, queries, keys, step, queries, keys)


def _on_mesh(attention: Callable[..., Array], arrays: tuple[Array, ...]) -> Array:
    """`attention` of arrays `[P, G, heads, ...]` or `[P, G, ...]`, each device computing its own prompts and heads.

    The compiler cannot partition a kernel by itself. An axis that does not divide is replicated on all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attention(*arrays)
    by_prompt = prompt_axes(mesh) if arrays[0].shape[0] % prompt_shards(mesh) == 0 else None
    by_head = "tensor" if arrays[1].shape[2] % mesh.shape["tensor"] == 0 else None
    specs = tuple(PartitionSpec(by_prompt, None, by_head if a.ndim == 5 else None) for a in arrays)
    return jax.shard_map(attention, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)
