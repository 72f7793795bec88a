"""Attention written out: keys and values, which of them each token attends to, and the formula for both.

Decoding computes this formula, and tests compare the kernels with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.distribution import EXCLUDED


class KeyValues(NamedTuple):
    """Keys and values `[..., K, S, C]`. The scales `[..., K, S]` belong to int8 values and are None for others.

    In a cache that records them, `experts` `[..., e, S]` are those that computed each token.
    """

    key: Array
    value: Array
    key_scale: Array | None = None
    value_scale: Array | None = None
    experts: Array | None = None


class Scope(NamedTuple):
    """What each token may attend to: the prompt, and the tokens of its own response up to itself.

    A row may hold several responses one after the other; each token's response begins at position `start_PGT`. With
    `trunk_PG`, the first so many positions of a row are no response, but what all that follow there go on from.
    """

    start_PGT: Array
    valid_PGT: Array
    prompt_valid_PL: Array | None  # None: the rows have no prompt before them
    trunk_PG: Array | None = None

    @property
    def depth_PGT(self) -> Array:
        """How many tokens of its row each token has before it, those that it does not see left out."""
        position_11T = jnp.arange(self.start_PGT.shape[2])[None, None]
        depth_PGT = position_11T - self.start_PGT
        if self.trunk_PG is None:
            return depth_PGT
        trunk_PG1 = self.trunk_PG[..., None]
        return depth_PGT + jnp.where(position_11T >= trunk_PG1, trunk_PG1, 0)


def attend(
    query_PGHTC: Array,
    own: KeyValues,
    mask_PGTS: Array,
    prefix: KeyValues | None = None,
    prefix_mask_PGTL: Array | None = None,
    softcap: float | None = None,
) -> Array:
    """One softmax over the response's own keys and, if a prefix and its mask are given, those of the group's prompt."""
    P, G, H, T, C = query_PGHTC.shape
    dtype = query_PGHTC.dtype
    query_PGKQTC = query_PGHTC.reshape(P, G, own.key.shape[2], -1, T, C) * C**-0.5
    scores_PGKQTS = scores_of("PGKQTC,PGKSC->PGKQTS", query_PGKQTC, own.key, _own_scale(own.key_scale), softcap)
    scores_PGKQTS = jnp.where(mask_PGTS[:, :, None, None], scores_PGKQTS, EXCLUDED)
    value_scale = _own_scale(own.value_scale)
    if prefix is None or prefix_mask_PGTL is None:
        probs_PGKQTS = jax.nn.softmax(scores_PGKQTS, axis=-1)
        output_PGKQTC = _read_values("PGKQTS,PGKSC->PGKQTC", probs_PGKQTS, own.value, value_scale, dtype)
        return output_PGKQTC.reshape(P, G, H, T, C)
    key_scale = _prefix_scale(prefix.key_scale)
    scores_PGKQTL = scores_of("PGKQTC,PKLC->PGKQTL", query_PGKQTC, prefix.key, key_scale, softcap)
    scores_PGKQTL = jnp.where(prefix_mask_PGTL[:, :, None, None], scores_PGKQTL, EXCLUDED)
    probs = jax.nn.softmax(jnp.concatenate([scores_PGKQTL, scores_PGKQTS], axis=-1), axis=-1)
    probs_PGKQTL, probs_PGKQTS = jnp.split(probs, [scores_PGKQTL.shape[-1]], axis=-1)
    output_PGKQTC = _read_values("PGKQTS,PGKSC->PGKQTC", probs_PGKQTS, own.value, value_scale, dtype)
    value_scale = _prefix_scale(prefix.value_scale)
    prefix_PKGQTC = _read_values("PGKQTL,PKLC->PKGQTC", probs_PGKQTL, prefix.value, value_scale, dtype)
    output_PGKQTC += jnp.swapaxes(prefix_PKGQTC, 1, 2)
    return output_PGKQTC.reshape(P, G, H, T, C)


def scores_of(axes: str, query: Array, key: Array, scale: Array | None, softcap: float | None) -> Array:
    """The products of queries and keys in float32, with the soft cap and before any mask."""
    scores = jnp.einsum(axes, query, key.astype(query.dtype), preferred_element_type=jnp.float32)
    scores = scores if scale is None else scores * scale
    return scores if softcap is None else jnp.tanh(scores / softcap) * softcap


def _read_values(axes: str, probs: Array, value: Array, scale: Array | None, dtype: DTypeLike) -> Array:
    """The mean of the values, weighted by the softmax."""
    probs = probs if scale is None else probs * scale
    return jnp.einsum(axes, probs.astype(dtype), value.astype(dtype))


def _own_scale(scale_PGKS: Array | None) -> Array | None:
    """The scale as `[P, G, K, 1, 1, S]`, to multiply scores with."""
    return None if scale_PGKS is None else scale_PGKS[:, :, :, None, None, :]


def _prefix_scale(scale_PKL: Array | None) -> Array | None:
    """The scale as `[P, 1, K, 1, 1, L]`, to multiply scores with."""
    return None if scale_PKL is None else scale_PKL[:, None, :, None, None, :]


def masks(scope: Scope, window: int | None) -> tuple[Array, Array | None]:
    """Which own positions `[P, G, T, S]` and which of the prompt's `[P, G or 1, T or 1, L]` each token attends to."""
    position_T = jnp.arange(scope.start_PGT.shape[2])
    query_11T1, key_111S = position_T[None, None, :, None], position_T[None, None, None]
    start_PGT1 = scope.start_PGT[..., None]
    if scope.trunk_PG is None:
        own_PGTS = (key_111S >= start_PGT1) & (key_111S <= query_11T1) & scope.valid_PGT[:, :, None, :]
        near_PGTS = None if window is None else key_111S > query_11T1 - window
    else:
        in_trunk_PG1S = key_111S < scope.trunk_PG[..., None, None]
        own_PGTS = (
            ((key_111S >= start_PGT1) | in_trunk_PG1S) & (key_111S <= query_11T1) & scope.valid_PGT[:, :, None, :]
        )
        depth_PGT = scope.depth_PGT
        near_PGTS = None if window is None else depth_PGT[..., None] - depth_PGT[:, :, None] < window
    if near_PGTS is not None:
        own_PGTS &= near_PGTS
    if scope.prompt_valid_PL is None:
        return own_PGTS, None
    prompt_P11L = scope.prompt_valid_PL[:, None, None]
    if window is None:
        return own_PGTS, prompt_P11L
    L = prompt_P11L.shape[3]
    distance_PGTL = scope.depth_PGT[..., None] + L - jnp.arange(L)[None, None, None]
    return own_PGTS, prompt_P11L & (distance_PGTL < window)
