"""Attention of whole rows by kernels that never hold all scores: cuDNN's on a GPU, splash attention on a TPU."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from grpo_jax.models.attention.formula import PRODUCT, Memory, Sight, masks
from grpo_jax.models.attention.plain import plain_rows

TILE = 128  # positions; what the TPU kernel's blocks are multiples of
SLOT_BITS = 16


def _joined(own: Memory, prefix: Memory | None) -> tuple[Array, Array]:
    """Each response's keys and values behind those of its prompt: `[P, G, K, L + T, C]`."""
    if prefix is None:
        return own.key, own.value

    def join(shared_PKLC: Array, own_PGKTC: Array) -> Array:
        P, G, K, _, C = own_PGKTC.shape
        copies = jnp.broadcast_to(shared_PKLC[:, None], (P, G, K, shared_PKLC.shape[2], C))
        return jnp.concatenate([copies.astype(own_PGKTC.dtype), own_PGKTC], axis=3)

    return join(prefix.key, own.key), join(prefix.value, own.value)


def cudnn_rows(
    query_PGHTC: Array,
    own: Memory,
    sight: Sight,
    prefix: Memory | None,
    window: int | None,
    softcap: float | None,
    implementation: str = "cudnn",
) -> Array:
    """Attention of whole rows by cuDNN's fused kernel; plain where it cannot (a soft cap, heads of unusual width)."""
    P, G, H, T, C = query_PGHTC.shape
    if softcap is not None or C % 8 or C > 128:
        return plain_rows(query_PGHTC, own, sight, prefix, window, softcap)
    own_PGTS, prompt_PGTL = masks(sight, window)
    if prompt_PGTL is not None:
        wide_PGTL = jnp.broadcast_to(prompt_PGTL, (P, G, T, prompt_PGTL.shape[3]))
        own_PGTS = jnp.concatenate([wide_PGTL, own_PGTS], axis=3)

    def heads_last(a: Array) -> Array:  # of an even length, as the kernel's backward pass wants it
        a = _padded(a, 3, a.shape[3] + a.shape[3] % 2)
        return jnp.swapaxes(a.reshape(P * G, *a.shape[2:]), 1, 2)

    query, key, value = map(heads_last, (query_PGHTC, *_joined(own, prefix)))
    mask_PGTS = _padded(_padded(own_PGTS, 2, query.shape[1]), 3, key.shape[1])
    mask = mask_PGTS.reshape(P * G, 1, *mask_PGTS.shape[2:])
    mixed = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
    return jnp.swapaxes(mixed, 1, 2).reshape(P, G, H, -1, C)[:, :, :, :T]


class _Reach(splash_mask.Mask):
    """What the TPU kernel is told: which blocks to visit, and how to decide about each key in them.

    The kernel hands `mask_function` a number for each query, which it takes from `q_sequence`, and the position of
    each key. `splash_rows` puts the query's slot and the start of its response into that number.
    """

    def __init__(self, T: int, S: int, L: int, window: int | None):
        self.size, self.L, self.window = (T, S), L, window
        self.q_sequence = np.arange(T, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Blocks that some response may see; never all of a block, so that the kernel asks about each key."""
        slot_T, position_S = (np.arange(size)[part] for size, part in zip(self.size, index, strict=True))
        return (position_S[None] <= self.L + slot_T[:, None]) & (position_S[None] % TILE != TILE - 1)

    def mask_function(self, coded: Array, position: Array) -> Array:
        """Whether queries see keys, both as the kernel has them."""
        slot, start = coded & (2**SLOT_BITS - 1), coded >> SLOT_BITS
        own = (position >= self.L + start) & (position <= self.L + slot)
        shared = position < self.L
        if self.window is not None:
            own &= position > self.L + slot - self.window
            shared &= position > self.L + slot - start - self.window
        return own | shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reach) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return self.size, self.L, self.window


def splash_rows(
    query_PGHTC: Array,
    own: Memory,
    sight: Sight,
    prefix: Memory | None,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> Array:
    """Attention of whole rows by the TPU's splash kernel: prompt and responses in one call, heads shared natively."""
    P, G, _, T, C = query_PGHTC.shape
    key, value = _joined(own, prefix)
    L = key.shape[3] - T
    if max(L + T, T) >= 2**SLOT_BITS // 2:
        raise ValueError(f"Rows of {L} + {T} positions are longer than the attention kernel's {2**SLOT_BITS // 2}.")
    queries, keys = -(-T // TILE) * TILE, -(-(L + T) // TILE) * TILE
    slot_111T = jnp.arange(queries)[None, None]
    start_PGT = _padded(sight.start_PGT, 2, queries)
    start_PGT = jnp.where(slot_111T < T, start_PGT, slot_111T)
    coded_PGT = (start_PGT << SLOT_BITS) | slot_111T
    valid_PGS = sight.valid_PGT
    if prefix is not None:
        valid_PGS = jnp.concatenate([jnp.broadcast_to(sight.prompt_PL[:, None], (P, G, L)), valid_PGS], axis=2)
    arrays = (
        _padded(query_PGHTC * C**-0.5, 3, queries),
        _padded(key, 3, keys),
        _padded(value, 3, keys),
        coded_PGT,
        _padded(valid_PGS.astype(jnp.int32), 2, keys),
    )
    return _on_mesh(partial(_splash, _Reach(queries, keys, L, window), softcap, interpret), arrays)[:, :, :, :T]


def _padded(a: Array, axis: int, size: int) -> Array:
    return jnp.pad(a, [(0, size - a.shape[i] if i == axis else 0) for i in range(a.ndim)])


def _splash(reach: _Reach, softcap: float | None, interpret: bool, query, key, value, coded, valid) -> Array:
    """Splash attention over the leading axes P and G of all arrays."""
    (T, S), H = reach.size, query.shape[2]
    block_T, block_S = (max(size for size in (TILE, 2 * TILE, 4 * TILE) if n % size == 0) for n in (T, S))
    blocks = splash.BlockSizes(block_T, block_S, block_S, block_T, block_S, block_S, block_T, block_S)
    built = splash.make_splash_mha(
        splash_mask.MultiHeadMask([reach] * H),
        block_sizes=blocks,
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=PRODUCT,
        interpret=interpret,
    )

    def row(query_HTC: Array, key_KSC: Array, value_KSC: Array, coded_T: Array, valid_S: Array) -> Array:
        infos = (
            info._replace(q_sequence=coded_T) for info in (built.fwd_mask_info, built.dq_mask_info, built.dkv_mask_info)
        )
        segments = splash.SegmentIds(jnp.ones((T,), jnp.int32), valid_S)
        return splash.SplashAttentionKernel(*infos, **built.kwargs)(query_HTC, key_KSC, value_KSC, segments)

    return jax.vmap(jax.vmap(row))(query, key, value, coded, valid)


def _on_mesh(attention: Callable[..., Array], arrays: tuple[Array, ...]) -> Array:
    """`attention` of arrays `[P, G, heads, ...]` or `[P, G, ...]` on the devices that hold their prompts and heads.

    The compiler cannot divide a kernel by itself. Where an axis does not divide, each device does all of it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attention(*arrays)
    by_prompt = ("data", "fsdp") if arrays[0].shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    by_head = "tensor" if arrays[1].shape[2] % mesh.shape["tensor"] == 0 else None
    specs = tuple(PartitionSpec(by_prompt, None, by_head if a.ndim == 5 else None) for a in arrays)
    return jax.shard_map(attention, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)
