"""Adding each layer's gradient to a sum as soon as the backward pass has it, so that no second whole gradient exists.

The sums go through the scan over layers in its carry, where nothing changes them. What is carried backwards in their
place is their cotangent, which begins as the sums themselves, and to which each layer adds the gradient of its weights.
So the gradient by the sums is their new value, with every rematerialisation policy.
"""

import jax
from jax import Array

from grpo_jax.structs import Params


@jax.custom_vjp
def added(sums: Params, weights: Params, n: Array) -> tuple[Params, Params]:
    """Both as they are. The gradient of the weights, which are those of layer n, is added to that of the sums."""
    return sums, weights


def _added_forward(sums: Params, weights: Params, n: Array) -> tuple[tuple[Params, Params], Array]:
    return (sums, weights), n


def _added_backward(n: Array, grads: tuple[Params, Params]) -> tuple[Params, None, None]:
    def add(sum_N: Array, grad: Array) -> Array:
        total = jax.lax.dynamic_index_in_dim(sum_N, n, keepdims=False) + grad
        return jax.lax.dynamic_update_index_in_dim(sum_N, total, n, axis=0)

    return jax.tree.map(add, *grads), None, None


added.defvjp(_added_forward, _added_backward)


@jax.custom_vjp
def begun(sums: Params, x: Array) -> Array:
    """x as it is. The gradient of the sums begins as the sums."""
    return x


def _begun_forward(sums: Params, x: Array) -> tuple[Array, Params]:
    return x, sums


def _begun_backward(sums: Params, grad: Array) -> tuple[Params, Array]:
    return sums, grad


begun.defvjp(_begun_forward, _begun_backward)
