"""Decoding: the caches of prompts and of responses, and one more token for every response.

Layers are unrolled over separate arrays, because a scan would hold every cache twice.
"""

import logging
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.attention import (
    KeyValues,
    Live,
    attend,
    attend_part,
    attend_ring,
    by_group,
    heads_side_by_side,
    live_positions,
    merged,
    mesh_parts,
    takes,
)
from grpo_jax.models.decoder import Shape, Span, quantize
from grpo_jax.models.experts import recorded
from grpo_jax.models.rope import rotations
from grpo_jax.models.rows import put, reach
from grpo_jax.models.vocabulary import embed, normalized
from grpo_jax.structs import Params


class _Context(NamedTuple):
    """What the new token of each row attends to in a layer, beside itself: the prompts, and the rows' own cache."""

    shared: KeyValues
    prefix_mask: Array
    cached: KeyValues
    mask_PG1S: Array
    index: Array  # of the token in the ring
    softcap: float | None


def caches(
    shape: Shape, activations: DTypeLike, platform: str, prefix: dict[str, Any], L: int, G: int, S: int, int8: bool
) -> tuple[dict[str, Any], list[KeyValues]]:
    """The prefix padded to L positions, and an empty cache of S positions for G responses to each prompt."""
    store = quantize if int8 else _unchanged
    P, K, C, experts = prefix["length_P"].shape[0], shape.kv_heads, shape.channels, None
    padding = L - prefix["valid_PL"].shape[1]

    def layer(n: int) -> KeyValues:
        pads = ((0, 0), (0, 0), (padding, 0), (0, 0))
        return store(jax.tree.map(lambda a: jnp.pad(a[n], pads[: a.ndim - 1]), prefix["key_values"]))

    shared = prefix | {
        "key_values": [layer(n) for n in range(shape.layers)],
        "valid_PL": jnp.pad(prefix["valid_PL"], ((0, 0), (padding, 0))),
    }
    pairs = heads_in_lanes(shape, platform, int8)
    side_by_side = (P, G, K // max(pairs, 1), S, C * pairs)
    in_kernel = pairs > 0 and _fits_kernel(shape, side_by_side, activations)
    empty_PGKSC = jnp.zeros(side_by_side if in_kernel else (P, G, K, S, C), activations)
    if (known := prefix["key_values"].experts) is not None:
        experts = jnp.zeros((P, G, known.shape[2], S), known.dtype)
    empty = KeyValues(empty_PGKSC, empty_PGKSC, experts=experts)
    return shared, [store(empty) for _ in range(shape.layers)]


def _unchanged(own: KeyValues) -> KeyValues:
    return own


def extend(
    shape: Shape,
    activations: DTypeLike,
    platform: str,
    graph: Any,
    params: Params,
    prefix: dict[str, Any],
    own: list[KeyValues],
    tokens_PG: Array,
    cursor: Array,
    start_PG: Array,
    active_PG: Array | None = None,
) -> tuple[Array, list[KeyValues]]:
    """The hidden states of one more token for every response, and the caches with its keys and values.

    `params` are the copy for sampling, and `graph` is that of a `Layer`. Rows that are not active need neither.
    """
    S, L = own[0].key.shape[3], prefix["valid_PL"].shape[1]
    index, index_PG = cursor % S, cursor - start_PG  # of the token in the ring, and in its response
    age_S = (cursor - jnp.arange(S)) % S  # how many tokens ago a position was written
    positions_PG1 = (prefix["length_P"][:, None] + index_PG)[:, :, None]
    spans = shape.spans
    masks = {window: reach(window, index_PG, age_S, prefix["valid_PL"]) for window in {s.window for s in spans}}
    tables = {rope: rotations(rope, shape.channels, jnp.arange(L + S)) for rope in {s.rope for s in spans}}
    # looked up, or every layer would compute its own
    cos_sin = {rope: jax.tree.map(lambda a: a[positions_PG1], table) for rope, table in tables.items()}
    in_kernel = platform == "tpu" and _serves(shape, own[0].key)
    attend_of = _attend_to_all if platform == "tpu" else _write_and_attend
    live = _live(spans, index_PG, active_PG, index, own[0].key) if in_kernel else {}
    x_PG1D = embed(shape, activations, params, tokens_PG[:, :, None])
    extended = []
    for weights, span, shared, cached in zip(params["layers"], spans, prefix["key_values"], own, strict=True):
        mask_PG1S, prefix_mask = masks[span.window]
        context = _Context(shared, prefix_mask, cached._replace(experts=None), mask_PG1S, index, shape.softcap)
        attend_cache = partial(attend_of, context)
        if in_kernel:
            attend_cache = partial(_attend_live, context, live[span.window])
        layer = nnx.merge(graph, weights)
        x_PG1D, now, routing = layer(x_PG1D, cos_sin[span.rope], attend_cache)
        if cached.experts is not None and routing is not None:
            now = now._replace(experts=put(cached.experts, recorded(routing), index))
        extended.append(now)
    if platform == "tpu" and not in_kernel:
        x_PG1D, extended = _written(x_PG1D, own, extended, index)
    return normalized(shape, params, x_PG1D[:, :, 0]), extended


def _write_and_attend(context: _Context, query_PGH1C: Array, new: KeyValues) -> tuple[Array, KeyValues]:
    """The attention of one token to the cache, which it is in, and to its prompt; and this cache."""
    shared, prefix_mask, cached, mask_PG1S, index, softcap = context
    with jax.named_scope("cache"):
        own = put(cached, _as_cached(new, cached), index)
    return attend(query_PGH1C, own, mask_PG1S, shared, prefix_mask, softcap), own


def _attend_to_all(context: _Context, query_PGH1C: Array, new: KeyValues) -> tuple[Array, KeyValues]:
    """The attention of one token to the cache without it, to itself and to its prompt; and its keys and values."""
    shared, prefix_mask, cached, mask_PG1S, index, softcap = context
    new, S = _as_cached(new, cached), mask_PG1S.shape[3]
    others_PG1S, itself_1111 = mask_PG1S & (jnp.arange(S) != index)[None, None, None], jnp.ones((1, 1, 1, 1), bool)
    query_PGKQC = by_group(query_PGH1C, cached.key.shape[2])
    sources = (cached, others_PG1S), (new, itself_1111), (shared, prefix_mask)
    output_PGKQC = merged([attend_part(query_PGKQC, source, mask, softcap) for source, mask in sources])
    return output_PGKQC.reshape(query_PGH1C.shape).astype(query_PGH1C.dtype), new


def _attend_live(context: _Context, live: Live, query_PGH1C: Array, new: KeyValues) -> tuple[Array, KeyValues]:
    """The same by the kernel that reads only what lives of the cache, and writes."""
    shared, prefix_mask, cached, _, index, softcap = context
    query_PGKQC = by_group(query_PGH1C, new.key.shape[2])
    own, written = attend_ring(query_PGKQC, new, cached, live, index, softcap)
    output_PGKQC = merged([own, attend_part(query_PGKQC, shared, prefix_mask, softcap)])
    return output_PGKQC.reshape(query_PGH1C.shape).astype(query_PGH1C.dtype), written


def _live(
    spans: tuple[Span, ...], index_PG: Array, active_PG: Array | None, index: Array, cached: Array
) -> dict[int | None, Live]:
    """What each window reads of the ring buffers."""
    count_PG = jnp.clip(index_PG + 1, 0, cached.shape[3])
    count_PG = count_PG if active_PG is None else jnp.where(active_PG, count_PG, 0)
    return {
        window: live_positions(count_PG if window is None else jnp.minimum(count_PG, window), index, cached)
        for window in {span.window for span in spans}
    }


def heads_in_lanes(shape: Shape, platform: str, int8: bool) -> int:
    """How many heads the cache keeps side by side for the kernel that reads only what lives; 0 if it is not used."""
    return 0 if int8 or platform != "tpu" else heads_side_by_side(shape.kv_heads, shape.channels)


def _serves(shape: Shape, key: Array) -> bool:
    """Whether the kernel reads this cache; says so once where it does not."""
    fits = _fits_kernel(shape, key.shape, key.dtype)
    if not fits:
        _say_whole_rings(key.shape, str(key.dtype))
    return fits


def _fits_kernel(shape: Shape, cache_shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether the kernel takes a cache `[P, G, K, S, C]`, of which each device has its part."""
    P, G, K = cache_shape[:3]
    shards, heads = mesh_parts(P, K)
    return takes(cache_shape, shape.channels, dtype, P * G // shards, shape.heads // heads)


@cache
def _say_whole_rings(shape: tuple[int, ...], dtype: str) -> None:
    """Says why decoding is slower than it might be, once for each shape."""
    logging.getLogger("grpo_jax").info(
        "decoding reads whole ring buffers: its TPU kernel does not take a cache %s of %s", list(shape), dtype
    )


def _as_cached(new: KeyValues, cached: KeyValues) -> KeyValues:
    """New keys and values in the types of a cache."""
    return new if cached.key_scale is None else quantize(new)


@jax.named_scope("cache")
def _written(
    hidden: Array, cached: list[KeyValues], new: list[KeyValues], index: Array
) -> tuple[Array, list[KeyValues]]:
    """The same hidden states, and the caches of all layers with one more position, written after the last layer.

    If a cache were written beside its layer, a TPU's compiler would do so in the chip's own memory, where attention has
    just read it, and move all of it back.
    """
    hidden, new = jax.lax.optimization_barrier((hidden, new))
    written = []
    for ring, one in zip(cached, new, strict=True):
        key_values = put(ring._replace(experts=None), one._replace(experts=None), index)
        written.append(key_values._replace(experts=one.experts))  # in the ring already
    return hidden, written
