"""What the devices do with a long answer: its row is copied out of the caches, reads it in blocks, and is put back.

Each shard of the prompts reads the answer of one of its rows at a time, or none, while all others wait. The program
that reads a block depends neither on an answer's length nor on how many rows there are; those that copy a row out and
back depend on the size of the caches.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.devices.programs import program
from grpo_jax.devices.sharding import CACHE, PROMPTS, prefix_sharding
from grpo_jax.rollout.stages import on_shards, pin
from grpo_jax.structs import Params, Policy

BLOCK_TOKENS = 128  # that a row reads at once
LONG_ANSWER = 32  # tokens; in fewer steps of the decoding loop a short one is read, too


def worthwhile(lengths: Sequence[int], shards: int) -> bool:
    """Whether long answers of these lengths, to rows on so many shards, are read in blocks, one after the other, in
    fewer passes over the weights than by the decoding loop, which reads all together. Copying a row counts as a pass.
    """
    passes = sum(-(-length // BLOCK_TOKENS) + 1 for length in lengths)
    return bool(lengths) and passes / shards < max(lengths)


class Reading(NamedTuple):
    """What row g of prompt p reads: tokens whose first stands at position `index` of the response."""

    p: int
    g: int
    start: int  # of the row, in its ring buffer
    index: int
    ids: tuple[int, ...]


def read_answers(
    policy: Policy, served: Params, shared: Any, own: Any, readings: Sequence[Reading], shards: int, mesh: Mesh | None
) -> Any:
    """The caches of the responses, whose rows have read their answers. Donates them."""
    P = len(jax.tree.leaves(own)[0])
    of_shards = [[reading for reading in readings if reading.p // (P // shards) == n] for n in range(shards)]
    for together in zip_longest(*of_shards):
        own = _read_one_each(policy, served, shared, own, together, P // shards, mesh)
    return own


def _read_one_each(
    policy: Policy,
    served: Params,
    shared: Any,
    own: Any,
    readings: Sequence[Reading | None],
    prompts: int,
    mesh: Mesh | None,
) -> Any:
    """The caches after one row of each shard, which has so many prompts, has read its answer."""
    at_n2 = np.array([(0, 0) if one is None else (one.p % prompts, one.g) for one in readings], np.int32)
    start_n1, index_n1 = (
        np.array([[0 if one is None else getattr(one, name)] for one in readings], np.int32)
        for name in ("start", "index")
    )
    ids = [() if one is None else one.ids for one in readings]
    rows, prefix = row_of_each(own, at_n2, mesh), prompt_of_each(shared, at_n2, mesh)
    for begin in range(0, max(map(len, ids)), BLOCK_TOKENS):
        block = [some[begin : begin + BLOCK_TOKENS] for some in ids]
        tokens_n1T = np.array([[*some, *[0] * (BLOCK_TOKENS - len(some))] for some in block], np.int32)[:, None]
        count_n1 = np.array([[len(some)] for some in block], np.int32)
        rows = read_block(policy, served, prefix, rows, tokens_n1T, count_n1, index_n1 + begin, start_n1, mesh)
    leaves, structure = jax.tree.flatten(own)
    del own
    for n, row in enumerate(jax.tree.leaves(rows)):
        leaves[n] = put_row(leaves[n], row, at_n2, mesh)
    return jax.tree.unflatten(structure, leaves)


@program(static_argnames=("policy", "mesh"), donate_argnames="own")
def read_block(
    policy: Policy,
    served: Params,
    shared: Any,
    own: Any,
    tokens_n1T: Array | np.ndarray,
    count_n1: Array | np.ndarray,
    index_n1: Array | np.ndarray,
    start_n1: Array | np.ndarray,
    mesh: Mesh | None,
) -> Any:
    """The caches of one row of each shard, with some more tokens. Donates them."""
    if policy.extend_block is None:
        raise ValueError("This policy has no extend_block: its rows read their answers a token at a time.")
    given = pin((jnp.asarray(tokens_n1T), *map(jnp.asarray, (count_n1, index_n1, start_n1))), mesh, PROMPTS)
    return pin(policy.extend_block(served, shared, own, *given), mesh, CACHE)


@program(static_argnames="mesh")
def row_of_each(own: Any, at_n2: Array | np.ndarray, mesh: Mesh | None) -> Any:
    """The caches of one row of each shard: `[P, G, ...]` becomes `[n, 1, ...]`."""

    def take(a: Array, at_12: Array) -> Array:
        return jax.lax.dynamic_slice(a, (*at_12[0], *(0,) * (a.ndim - 2)), (1, 1, *a.shape[2:]))

    return pin(jax.tree.map(lambda a: on_shards(take, mesh, a, jnp.asarray(at_n2)), own), mesh, CACHE)


@program(static_argnames="mesh")
def prompt_of_each(shared: Any, at_n2: Array | np.ndarray, mesh: Mesh | None) -> Any:
    """The prompts of these rows: `[P, ...]` becomes `[n, ...]`."""

    def take(a: Array, at_12: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(a, at_12[0, 0], 1)

    prefix = jax.tree.map(lambda a: on_shards(take, mesh, a, jnp.asarray(at_n2)), shared)
    if mesh is None:
        return prefix
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, prefix_sharding(a.shape, mesh)), prefix)


@program(static_argnames="mesh", donate_argnames="array")
def put_row(array: Array, row: Array, at_n2: Array | np.ndarray, mesh: Mesh | None) -> Array:
    """One array of the responses' cache with one row of each shard in its place. Donates it."""

    def put(a: Array, row: Array, at_12: Array) -> Array:
        return jax.lax.dynamic_update_slice(a, row, (*at_12[0], *(0,) * (a.ndim - 2)))

    return pin(on_shards(put, mesh, array, row, jnp.asarray(at_n2)), mesh, CACHE)
