"""Decoding's counterpart for tokens that are known: several of them are read at once, after those in a row's cache."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.attention import KeyValues, attend, paired, unpaired
from grpo_jax.models.decoder import Shape, quantize
from grpo_jax.models.experts import recorded
from grpo_jax.models.rope import rotations
from grpo_jax.models.vocabulary import embed
from grpo_jax.structs import Params


class _Context(NamedTuple):
    """What the tokens attend to in a layer, and where their keys and values stand in the rings; beyond S: nowhere."""

    shared: KeyValues
    prefix_mask: Array
    cached: KeyValues
    mask_PGTS: Array
    slot_PGT: Array
    softcap: float | None


def extend_block(
    shape: Shape,
    activations: DTypeLike,
    graph: Any,
    params: Params,
    prefix: dict[str, Any],
    own: list[KeyValues],
    tokens_PGT: Array,
    count_PG: Array,
    index_PG: Array,
    start_PG: Array,
) -> list[KeyValues]:
    """The caches with the keys and values of the first `count` tokens given for every response, of which the first
    stands at position `index` of the response. `params` are the copy for sampling, `graph` is that of a `Layer`.
    """
    S, T, L = own[0].key.shape[3], tokens_PGT.shape[2], prefix["valid_PL"].shape[1]
    index_PGT = index_PG[..., None] + jnp.arange(T)[None, None]
    given_PGT = jnp.arange(T)[None, None] < count_PG[..., None]
    slot_PGT = jnp.where(given_PGT, (start_PG[..., None] + index_PGT) % S, S)
    depth_PG1S = (jnp.arange(S)[None, None, None] - start_PG[..., None, None]) % S  # the positions of a ring's keys
    positions_PGT = prefix["length_P"][:, None, None] + index_PGT

    def reach(window: int | None) -> tuple[Array, Array]:
        mask_PGTS, prefix_mask = depth_PG1S <= index_PGT[..., None], prefix["valid_PL"][:, None, None]
        if window is not None:
            mask_PGTS &= depth_PG1S > index_PGT[..., None] - window
            prefix_mask &= index_PGT[..., None] + L - jnp.arange(L)[None, None, None] < window
        return mask_PGTS, jnp.broadcast_to(prefix_mask, (*index_PGT.shape, L))

    spans = shape.spans
    masks = {window: reach(window) for window in {span.window for span in spans}}
    cos_sin = {rope: rotations(rope, shape.channels, positions_PGT) for rope in {span.rope for span in spans}}
    x_PGTD = embed(shape, activations, params, tokens_PGT)
    extended = []
    for weights, span, shared, ring in zip(params["layers"], spans, prefix["key_values"], own, strict=True):
        mask_PGTS, prefix_mask = masks[span.window]
        cached = ring._replace(experts=None)
        context = _Context(shared, prefix_mask, cached, mask_PGTS, slot_PGT, shape.softcap)
        layer = nnx.merge(graph, weights)
        x_PGTD, now, routing = layer(x_PGTD, cos_sin[span.rope], partial(_write_and_attend, context))
        if ring.experts is not None and routing is not None:
            now = now._replace(experts=_put(ring.experts, recorded(routing), slot_PGT))
        extended.append(now)
    return extended


@jax.named_scope("cache")
def _put(ring: Any, new: Any, slot_PGT: Array) -> Any:
    """Ring buffers with the values of several positions of each row."""

    def row(ring_XS: Array, new_XT: Array, slot_T: Array) -> Array:
        return ring_XS.at[:, slot_T].set(new_XT, mode="drop")

    rows = jax.vmap(jax.vmap(row))
    return jax.tree.map(lambda a, b: rows(a, b, slot_PGT), ring, new)


def _write_and_attend(context: _Context, query_PGHTC: Array, new: KeyValues) -> tuple[Array, KeyValues]:
    """The attention of the tokens to the cache, which they are in, and to their prompt; and this cache."""
    shared, prefix_mask, cached, mask_PGTS, slot_PGT, softcap = context
    side_by_side = cached.key.shape[4] != new.key.shape[4]  # heads, as decoding's kernel keeps them
    cached = cached._replace(key=unpaired(cached.key), value=unpaired(cached.value)) if side_by_side else cached
    own = _put(cached, new if cached.key_scale is None else quantize(new), slot_PGT)
    output_PGHTC = attend(query_PGHTC, own, mask_PGTS, shared, prefix_mask, softcap)
    return output_PGHTC, own._replace(key=paired(own.key), value=paired(own.value)) if side_by_side else own
