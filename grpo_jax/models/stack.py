"""The layers of a decoder one after the other: teacher forcing scans over them, and `REMAT` says what it keeps for the
backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from grpo_jax.models.attention import KeyValues
from grpo_jax.models.decoder import Shape
from grpo_jax.models.experts import Routing
from grpo_jax.models.remat import INPUT, REMAT
from grpo_jax.models.rope import rotations
from grpo_jax.models.rows import AttendWithin
from grpo_jax.models.summing import added, begun
from grpo_jax.structs import Params, Summing

Keep = Callable[[KeyValues, Routing | None], Any]  # what is kept of a layer beside its rows


def layer_of(
    shape: Shape,
    graph: Any,
    positions_PGT: Array,
    attend_rows: AttendWithin,
    keep: Keep,
    ready: Callable[[Params], Params],
) -> tuple[Callable[..., tuple[Array, Any]], list[int]]:
    """A layer as a function of rows, weights, its kind and its experts; and the kind of each layer.

    Layers may be of several kinds, and are one program: which kind a layer is goes through the scan as a number.
    `ready` makes of a layer's weights those that it computes with.
    """
    kinds = list(dict.fromkeys(shape.spans))
    tables = [rotations(span.rope, shape.channels, positions_PGT) for span in kinds]
    kernels = [partial(attend_rows, span.window) for span in kinds]

    def layer(
        x_PGTD: Array, weights: Params, kind: int | Array | None, experts_PGTe: Array | None
    ) -> tuple[Array, Any]:
        x_PGTD = checkpoint_name(x_PGTD, INPUT)
        if kind is None or isinstance(kind, int):  # None: all layers are of the first kind
            position = 0 if kind is None else kind
            cos_sin, attend_layer = tables[position], kernels[position]
        else:
            cos_sin = jax.tree.map(lambda *a: jax.lax.select_n(kind, *a), *tables)
            same_window = len({span.window for span in kinds}) == 1
            attend_layer = kernels[0] if same_window else partial(jax.lax.switch, kind, kernels)
        block = nnx.merge(graph, ready(weights))
        x_PGTD, own, routing = block(x_PGTD, cos_sin, partial(_attend_own, attend_layer), experts_PGTe)
        return x_PGTD, keep(own, routing)

    return layer, [kinds.index(span) for span in shape.spans]


def _attend_own(attend: Callable[[Array, KeyValues], Array], query: Array, own: KeyValues) -> tuple[Array, KeyValues]:
    return attend(query, own), own


def each_layer(
    remat: str,
    layer: Callable[..., tuple[Array, Any]],
    x_PGTD: Array,
    layers: Params | list | Summing,
    kind_N: list[int],
    experts_NPGTe: Array | None,
) -> tuple[Array, Any]:
    """The rows after all layers, and what each kept. `layers` are stacked, or the list of a copy for sampling."""
    if isinstance(layers, list):
        kept = []
        for weights, kind in zip(layers, kind_N, strict=True):
            x_PGTD, own = layer(x_PGTD, weights, kind, None)
            kept.append(own)
        return x_PGTD, jax.tree.map(lambda *arrays: jnp.stack(arrays), *kept)
    saved, alike = REMAT[remat], len(set(kind_N)) == 1

    def body(x_PGTD: Array, given: Any) -> tuple[Array, Any]:
        return layer(x_PGTD, *given)

    kept = body if saved is None else jax.checkpoint(body, policy=saved, prevent_cse=False)
    others = (None if alike else jnp.array(kind_N), experts_NPGTe)
    if not isinstance(layers, Summing):
        return jax.lax.scan(kept, x_PGTD, (layers, *others))

    def summing(carry: tuple[Params, Array], given: tuple[Array, Params, Any]) -> tuple[tuple[Params, Array], Any]:
        (sums, x_PGTD), (n, weights, others) = carry, given
        sums, weights = added(sums, weights, n)
        x_PGTD, own = kept(x_PGTD, (weights, *others))
        return (sums, x_PGTD), own

    given = (jnp.arange(len(kind_N)), layers.weights, others)
    (sums, x_PGTD), own = jax.lax.scan(summing, (layers.sums, x_PGTD), given)
    return begun(sums, x_PGTD), own
