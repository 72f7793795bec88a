"""Decoding: the caches of prompts and of responses, and one more token for every response.

Layers are unrolled over separate arrays, because a scan would hold every cache twice.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.attention import KeyValues, attend
from grpo_jax.models.decoder import Shape, quantize
from grpo_jax.models.experts import recorded
from grpo_jax.models.rope import rotations
from grpo_jax.models.rows import put, reach
from grpo_jax.models.vocabulary import embed, normalized
from grpo_jax.structs import Params


def caches(
    shape: Shape, activations: DTypeLike, prefix: dict[str, Any], L: int, G: int, S: int, int8: bool
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
    empty_PGKSC = jnp.zeros((P, G, K, S, C), activations)
    if (known := prefix["key_values"].experts) is not None:
        experts = jnp.zeros((P, G, known.shape[2], S), known.dtype)
    empty = KeyValues(empty_PGKSC, empty_PGKSC, experts=experts)
    return shared, [store(empty) for _ in range(shape.layers)]


def _unchanged(own: KeyValues) -> KeyValues:
    return own


def extend(
    shape: Shape,
    activations: DTypeLike,
    graph: Any,
    params: Params,
    prefix: dict[str, Any],
    own: list[KeyValues],
    tokens_PG: Array,
    cursor: Array,
    start_PG: Array,
) -> tuple[Array, list[KeyValues]]:
    """The hidden states of one more token for every response, and the caches with its keys and values.

    `params` are the copy for sampling, and `graph` is that of a `Layer`.
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
    x_PG1D = embed(shape, activations, params, tokens_PG[:, :, None])
    extended = []
    for weights, span, shared, cached in zip(params["layers"], spans, prefix["key_values"], own, strict=True):
        attend_cache = partial(_attend, shape.softcap, shared, *masks[span.window])
        store = partial(_store, cached._replace(experts=None), index)
        layer = nnx.merge(graph, weights)
        x_PG1D, now, routing = layer(x_PG1D, cos_sin[span.rope], attend_cache, store)
        if cached.experts is not None and routing is not None:
            now = now._replace(experts=put(cached.experts, recorded(routing), index))
        extended.append(now)
    return normalized(shape, params, x_PG1D[:, :, 0]), extended


@jax.named_scope("cache")
def _store(cached: KeyValues, index: Array, new: KeyValues) -> KeyValues:
    """The cache with the keys and values of one position."""
    return put(cached, new if cached.key_scale is None else quantize(new), index)


def _attend(
    softcap: float | None, shared: KeyValues, mask_PG1S: Array, prefix_mask: Array, query: Array, own: KeyValues
) -> Array:
    """The attention of one token to the cache and to its prompt."""
    return attend(query, own, mask_PG1S, shared, prefix_mask, softcap)
