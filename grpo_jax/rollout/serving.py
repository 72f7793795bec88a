"""What sampling begins with: the copy of the weights that it reads, keys and prompts for its rows; and its memory."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.sharding import PROMPTS, even_vocabulary, fit, serving_shardings
from grpo_jax.rollout.sizes import prefix_length
from grpo_jax.structs import Params, Policy, Prompts, prompt_shapes


def serve(policy: Policy, params: Params) -> Params:
    """The copy of the weights that sampling reads, made and sharded once for each rollout."""
    mesh = mesh_of(params)
    served = even_vocabulary(policy.serve(params), mesh)
    return served if mesh is None else jax.device_put(served, serving_shardings(served, mesh))


@cache
def needed_bytes(policy: Policy, P: int, L: int, G: int, S: int, int8: bool) -> int:
    """Bytes of both caches at their largest, and of the weights that are read."""
    params = policy.shapes
    _, prefix = jax.eval_shape(policy.read, params, prompt_shapes(P, L))
    caches = jax.eval_shape(lambda prefix: policy.cache(prefix, prefix_length(L), G, S, int8), prefix)
    arrays = jax.tree.leaves((caches, jax.eval_shape(policy.serve, params)))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)


@partial(jax.jit, static_argnames=("spread", "mesh"))
def repeated(prompts: Prompts, spread: int, mesh: Mesh) -> Prompts:
    """Each prompt once for every device that its group is spread over."""

    def repeat(a_PL: Array) -> Array:
        a_PL = jnp.repeat(a_PL, spread, axis=0)
        return jax.lax.with_sharding_constraint(a_PL, fit(PROMPTS, a_PL.shape, mesh))

    return jax.tree.map(repeat, prompts)


@partial(jax.jit, static_argnums=(1, 2))
def row_keys(key: Array, P: int, G: int) -> Array:
    """A key for each row of a rollout, whatever other rows there are."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(P * G)).reshape(P, G)
