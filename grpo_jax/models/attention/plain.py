"""Attention of whole rows in plain XLA, for a CPU, with a backward pass of its own."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from grpo_jax.models.attention.formula import MASKED, PRODUCT, Memory, Sight, masks, scores_of


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
    slope of that (FlashAttention-2, arXiv 2307.08691, section 2.3.2). A query that sees nothing is padding, whose
    slope has to be zero: going back, its shares are 1 each.
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
    return jnp.where(mask, scores_of(axes, query_PKGQTC, key, None, softcap), MASKED)


def _weigh(shares_PKGQTS: Array, value: Array) -> Array:
    axes = "PKGQTS,PKGSC->PKGQTC" if value.ndim == 5 else "PKGQTS,PKSC->PKGQTC"
    return jnp.einsum(axes, shares_PKGQTS.astype(value.dtype), value, preferred_element_type=jnp.float32)
