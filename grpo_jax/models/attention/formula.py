"""Attention written out: what is attended to, who sees it, and the formula that decodes and that tests compare with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers rather than NaN
PRODUCT = "product"  # the name of what products give and attention reads and gives: a choice of what to keep for later


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
    scores_PGKQTS = scores_of("PGKQTC,PGKSC->PGKQTS", query_PGKQTC, own.key, _spread(own.key_scale, 3), softcap)
    scores_PGKQTS = jnp.where(mask_PGTS[:, :, None, None], scores_PGKQTS, MASKED)
    if prefix is None:
        shares_PGKQTS = jax.nn.softmax(scores_PGKQTS, axis=-1)
    else:
        key_scale = _spread(prefix.key_scale, 2)
        scores_PGKQTL = scores_of("PGKQTC,PKLC->PGKQTL", query_PGKQTC, prefix.key, key_scale, softcap)
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


def scores_of(axes: str, query: Array, key: Array, scale: Array | None, softcap: float | None) -> Array:
    """Products of queries and keys, before any mask."""
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
