"""The weights of one layer as its products take them on a TPU: cast in the layer's turn, and gathered whole.

Left to itself, XLA casts the weights of all layers before the scan over them, and keeps that copy through the forward
and the backward pass. It moves a cast out of a loop, also past `jax.lax.optimization_barrier`, but not the sum of a
weight and a number of its layer. So a zero is added first that XLA cannot know to be one.

Where up to 16 chips share the weights, XLA would multiply with one shard after the other while it passes them from chip
to chip, and add up as many partial products in memory. A weight that is gathered first is multiplied once.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from grpo_jax.devices.sharding import serving_spec, weight_spec
from grpo_jax.models.adapted import Adapted, is_adapted
from grpo_jax.models.decoder import cast_matrix
from grpo_jax.models.remat import WEIGHT
from grpo_jax.structs import Params, axes_of


def ready(dtype: DTypeLike, weights: Params) -> Params:
    """The weights of a layer, its matrices in this dtype, on each device all of those that it multiplies with.

    Of adapted weights the parts are gathered and not cast: their sum has a gradient of its own.
    """
    zero = _zero(weights)

    def one(path: tuple, a: Array | Adapted) -> Array | Adapted:
        letters = axes_of(str(path[-1].key))
        if isinstance(a, Adapted):
            return _gathered_parts(letters, a)
        a = a if a.dtype == dtype else a + zero.astype(a.dtype)
        return checkpoint_name(gathered(letters, cast_matrix(dtype, path, a)), WEIGHT)

    return jax.tree_util.tree_map_with_path(one, weights, is_leaf=is_adapted)


def _zero(weights: Params) -> Array:
    """Zero. XLA does not know that no number is below zero and above it, and finds the number in the layer's norms,
    which all devices have.
    """
    number = next(a for a in jax.tree.leaves(weights) if a.ndim == 1)[0]
    return jax.lax.stop_gradient(((number > 0) & (number < 0)).astype(jnp.float32))


def _gathered_parts(letters: str, weight: Adapted) -> Adapted:
    """An adapted weight whose parts are whole; the base and its scale have no gradient."""
    outputs, inputs = letters[: -weight.inputs], letters[-weight.inputs :]
    experts = "E" if outputs.startswith("E") else ""
    base, scale = jax.lax.stop_gradient(weight.frozen)
    return replace(
        weight,
        base=_constrained(letters, base),
        scale=None if scale is None else _constrained(outputs, scale),
        a=None if weight.a is None else gathered(f"{experts}A{inputs}", weight.a),
        b=None if weight.b is None else gathered(f"{outputs}A", weight.b),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered(letters: str, a: Array) -> Array:
    """An array with these axes, not divided along D on any device. Its gradient is divided as weights are."""
    return _constrained(letters, a)


def _gathered_forward(letters: str, a: Array) -> tuple[Array, None]:
    return gathered(letters, a), None


def _gathered_backward(letters: str, _: None, grad: Array) -> tuple[Array]:
    return (_scattered(letters, grad),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def _constrained(letters: str, a: Array) -> Array:
    """The array as it is in the copy for sampling. Without a mesh it is what it was."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(letters) < 2:
        return a
    return jax.lax.with_sharding_constraint(a, serving_spec(letters, a.shape, mesh))


def _scattered(letters: str, grad: Array) -> Array:
    """A gradient, divided as weights are. Without a mesh it is what it was.

    It is first whole, or its product would be cut into partial products. XLA makes one reduce-scatter of both steps if
    D is the first axis, and else sums the whole gradient on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(letters) < 2:
        return grad
    order = sorted(range(len(letters)), key=lambda axis: letters[axis] != "D")
    moved = jnp.transpose(grad, order)
    for spec in (serving_spec(letters, grad.shape, mesh), weight_spec(letters, grad.shape, mesh)):
        names = [*spec, *[None] * (len(letters) - len(spec))]
        moved = jax.lax.with_sharding_constraint(moved, PartitionSpec(*(names[axis] for axis in order)))
    return jnp.transpose(moved, sorted(range(len(order)), key=lambda axis: order[axis]))
