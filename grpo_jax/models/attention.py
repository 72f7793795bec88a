"""Attention, and which kernel computes it: splash attention on a TPU, cuDNN's on a GPU, plain XLA elsewhere.

A response attends to the prompt of its group and to itself, as one softmax. `attend` is that formula written out, over
one copy of the prompt: it decodes everywhere, and the others are tested against it. `plain_rows` learns on a CPU. The
kernels take the prompt's keys and values once for each row, and never hold the scores of all pairs of tokens.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers rather than NaN
PRODUCT = "product"  # the name of what products give and attention reads and gives: a choice of what to keep for later
TILE = 128  # positions; what the TPU kernel's blocks are multiples of
SLOT_BITS = 16


class Memory(NamedTuple):
    """Keys and values to attend to, `[..., K, S, C]`. The scales `[..., K, S]` are those of int8, else None."""

    key: Array
    value: Array
    key_scale: Array | None = None
    value_scale: Array | None = None


class Sight(NamedTuple):
    """What tokens may attend to: those of their own response up to themselves, and the prompt.

    A row may hold several responses one after the other; `start_PGT` is where that of each token begins.
    """

    start_PGT: Array
    valid_PGT: Array
    prompt_PL: Array | None  # None: there is nothing before the row


Kernel = Callable[[Array, Memory, Sight, Memory | None, int | None, float | None], Array]


def kernel(platform: str, activations: DTypeLike) -> Kernel:
    """The attention of whole rows on a platform."""
    if platform == "tpu":
        return splash_rows
    if platform in ("gpu", "cuda") and jnp.dtype(activations).itemsize == 2:  # cuDNN has no float32 attention
        return cudnn_rows
    return plain_rows


def attend(
    query_PGHTC: Array,
    own: Memory,
    mask_PGTS: Array,
    prefix: Memory | None = None,
    prefix_mask_PGTL: Array | None = None,
    softcap: float | None = None,
) -> Array:
    """Softmax attention over the group's shared prefix, if any, and each response's own keys, as one distribution."""
    P, G, H, T, C = query_PGHTC.shape
    query_PGKQTC = query_PGHTC.reshape(P, G, own.key.shape[2], -1, T, C) * C**-0.5
    scores_PGKQTS = _scores("PGKQTC,PGKSC->PGKQTS", query_PGKQTC, own.key, _spread(own.key_scale, 3), softcap)
    scores_PGKQTS = jnp.where(mask_PGTS[:, :, None, None], scores_PGKQTS, MASKED)
    if prefix is None:
        shares_PGKQTS = jax.nn.softmax(scores_PGKQTS, axis=-1)
    else:
        key_scale = _spread(prefix.key_scale, 2)
        scores_PGKQTL = _scores("PGKQTC,PKLC->PGKQTL", query_PGKQTC, prefix.key, key_scale, softcap)
        scores_PGKQTL = jnp.where(prefix_mask_PGTL[:, :, None, None], scores_PGKQTL, MASKED)
        shares = jax.nn.softmax(jnp.concatenate([scores_PGKQTL, scores_PGKQTS], axis=-1), axis=-1)
        shares_PGKQTL, shares_PGKQTS = jnp.split(shares, [scores_PGKQTL.shape[-1]], axis=-1)
    kind = query_PGHTC.dtype
    mixed_PGKQTC = _mix("PGKQTS,PGKSC->PGKQTC", shares_PGKQTS, own.value, _spread(own.value_scale, 3), kind)
    if prefix is not None:
        scale = _spread(prefix.value_scale, 2)
        mixed_PKGQTC = _mix("PGKQTL,PKLC->PKGQTC", shares_PGKQTL, prefix.value, scale, kind)
        mixed_PGKQTC += jnp.swapaxes(mixed_PKGQTC, 1, 2)
    return mixed_PGKQTC.reshape(P, G, H, T, C)


def _scores(axes: str, query: Array, key: Array, scale: Array | None, softcap: float | None) -> Array:
    scores = jnp.einsum(axes, query, key.astype(query.dtype), preferred_element_type=jnp.float32)
    scores = scores if scale is None else scores * scale
    return scores if softcap is None else jnp.tanh(scores / softcap) * softcap


def _mix(axes: str, shares: Array, value: Array, scale: Array | None, kind: DTypeLike) -> Array:
    shares = shares if scale is None else shares * scale
    return jnp.einsum(axes, shares.astype(kind), value.astype(kind))


def _spread(scale: Array | None, heads: int) -> Array | None:
    """`[P, (G,) K, S]` as `[P, G or 1, K, 1, 1, S]`; `heads` is how many axes there are before S."""
    if scale is None:
        return None
    scale = scale if heads == 3 else scale[:, None]
    return scale[:, :, :, None, None, :]


def masks(sight: Sight, window: int | None) -> tuple[Array, Array | None]:
    """Which own positions `[P, G, T, S]` and which of the prompt's `[P, G or 1, T or 1, L]` each token attends to."""
    slot_T = jnp.arange(sight.start_PGT.shape[2])
    slot_11T1, slot_111S = slot_T[None, None, :, None], slot_T[None, None, None]
    start_PGT1 = sight.start_PGT[..., None]
    own_PGTS = (slot_111S >= start_PGT1) & (slot_111S <= slot_11T1) & sight.valid_PGT[:, :, None, :]
    if window is not None:
        own_PGTS &= slot_111S > slot_11T1 - window
    if sight.prompt_PL is None:
        return own_PGTS, None
    prompt_P11L = sight.prompt_PL[:, None, None]
    if window is None:
        return own_PGTS, prompt_P11L
    L = prompt_P11L.shape[3]
    distance_PGTL = slot_11T1 - start_PGT1 + L - jnp.arange(L)[None, None, None]
    return own_PGTS, prompt_P11L & (distance_PGTL < window)


def plain_rows(
    query_PGHTC: Array, own: Memory, sight: Sight, prefix: Memory | None, window: int | None, softcap: float | None
) -> Array:
    """Attention of whole rows with all scores in memory."""
    P, G, H, T, C = query_PGHTC.shape

    def by_head(a_PGKxx: Array) -> Array:
        return jnp.swapaxes(a_PGKxx, 1, 2)

    own_PGTS, prompt_PGTL = masks(sight, window)
    memories, seen = [(by_head(own.key), by_head(own.value))], [own_PGTS[:, None, :, None]]
    if prefix is not None:
        memories.append((prefix.key, prefix.value))
        seen.append(prompt_PGTL[:, None, :, None])
    query_PKGQTC = by_head(query_PGHTC.reshape(P, G, own.key.shape[2], -1, T, C)) * C**-0.5
    mixed_PKGQTC = _read(softcap, query_PKGQTC, memories, seen)
    return by_head(mixed_PKGQTC).reshape(P, G, H, T, C)


_Memories = list[tuple[Array, Array]]  # keys and values [P, K, G, S, C] of each response, or [P, K, L, C] for all


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(softcap: float | None, query_PKGQTC: Array, memories: _Memories, seen: list[Array]) -> Array:
    """What queries read of all memories, as one distribution.

    The backward pass needs no sum over keys: a query's shares times their slopes add up to what it read times the
    slope of that (FlashAttention-2, arXiv 2307.08691, section 2.3.2).
    """
    return _read_forward(softcap, query_PKGQTC, memories, seen)[0]


def _read_forward(softcap: float | None, query_PKGQTC: Array, memories: _Memories, seen: list[Array]) -> tuple:
    scores = [_masked(softcap, mask, query_PKGQTC, key) for (key, _), mask in zip(memories, seen, strict=True)]
    top_PKGQT1 = reduce(jnp.maximum, (jnp.max(a, axis=-1, keepdims=True) for a in scores))
    odds = [jnp.exp(a - top_PKGQT1) for a in scores]
    total_PKGQT1 = sum(jnp.sum(a, axis=-1, keepdims=True) for a in odds)
    mixed_PKGQTC = sum(_weigh(a, value) for a, (_, value) in zip(odds, memories, strict=True)) / total_PKGQT1
    mixed_PKGQTC = checkpoint_name(mixed_PKGQTC.astype(query_PKGQTC.dtype), PRODUCT)
    level_PKGQT1 = checkpoint_name(top_PKGQT1 + jnp.log(total_PKGQT1), PRODUCT)
    return mixed_PKGQTC, (query_PKGQTC, memories, seen, mixed_PKGQTC, level_PKGQT1)


def _read_backward(softcap: float | None, saved: tuple, slope_PKGQTC: Array) -> tuple:
    query_PKGQTC, memories, seen, mixed_PKGQTC, level_PKGQT1 = saved
    wide = slope_PKGQTC.astype(jnp.float32)
    mean_PKGQT1 = jnp.sum(wide * mixed_PKGQTC, axis=-1, keepdims=True)
    query_slope, memory_slopes = jnp.zeros_like(query_PKGQTC), []
    for (key, value), mask in zip(memories, seen, strict=True):
        scores, pull_scores = jax.vjp(partial(_masked, softcap, mask), query_PKGQTC, key)
        shares = jnp.exp(scores - level_PKGQT1)
        share_slope, value_slope = jax.vjp(_weigh, shares, value)[1](wide)
        more, key_slope = pull_scores(shares * (share_slope - mean_PKGQT1))
        query_slope += more
        memory_slopes.append((key_slope, value_slope))
    return query_slope, memory_slopes, [np.zeros(mask.shape, jax.dtypes.float0) for mask in seen]


_read.defvjp(_read_forward, _read_backward)


def _masked(softcap: float | None, mask: Array, query_PKGQTC: Array, key: Array) -> Array:
    axes = "PKGQTC,PKGSC->PKGQTS" if key.ndim == 5 else "PKGQTC,PKSC->PKGQTS"
    return jnp.where(mask, _scores(axes, query_PKGQTC, key, None, softcap), MASKED)


def _weigh(shares_PKGQTS: Array, value: Array) -> Array:
    axes = "PKGQTS,PKGSC->PKGQTC" if value.ndim == 5 else "PKGQTS,PKSC->PKGQTC"
    return jnp.einsum(axes, shares_PKGQTS.astype(value.dtype), value, preferred_element_type=jnp.float32)


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
