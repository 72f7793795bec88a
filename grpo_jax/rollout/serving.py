"""The copy of the weights that sampling reads, and the memory that sampling needs."""

import math
from functools import cache

import jax

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.sharding import even_vocabulary, serving_shardings
from grpo_jax.rollout.sizes import prefix_length
from grpo_jax.structs import Params, Policy, prompt_shapes


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
