"""What the devices do while sampling: begin rows, decode them for a stage, move active ones together.

All rows share one cursor into ring buffers of S positions, so a decoding step writes every row's keys with one slice,
and a row may begin at any step: `start` is where. A row that has ended stays as it is until another takes its position.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from grpo_jax.devices.mesh import prompt_axes, prompt_shards
from grpo_jax.devices.programs import program
from grpo_jax.devices.sharding import CACHE, PROMPTS, fit, logits_sharding, prefix_sharding
from grpo_jax.distribution import Distribution, draw, greedy
from grpo_jax.structs import Params, Policy, Prompts, Rows


class Until(NamedTuple):
    """Conditions that return control to the host, besides "no row is active" and "a row has filled its ring buffer"."""

    cursor: int  # the cursor has reached this step
    prompts: int  # so few prompts of `width` rows would hold the active rows of every shard (-1: never)
    width: int
    free: int  # so many prompts have no active row


@program(static_argnames=("policy", "shape", "int8", "mesh"))
def read(
    policy: Policy, params: Params, prompts: Prompts, shape: tuple[int, int, int], int8: bool, mesh: Mesh | None
) -> tuple[Array, Any, Any]:
    """One pass over the prompts: the hidden state after each, their cache as decoding wants it, and an empty cache.

    `shape` is the length that the prompts' cache is padded to, the responses to each, and the positions of their cache.
    """
    last_PD, prefix = policy.read(params, prompts)
    shared, own = policy.cache(prefix, *shape, int8)
    if mesh is not None:
        shared = jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, prefix_sharding(a.shape, mesh)), shared)
    return last_PD, shared, pin(own, mesh, CACHE)


@program(static_argnames=("policy", "distribution", "S", "mesh"))
def begin(
    policy: Policy,
    distribution: Distribution,
    params: Params,
    prompts: Prompts | None,
    last_PD: Array,
    key_PG: Array,
    max_tokens: int | Array,
    S: int,
    mesh: Mesh | None,
) -> Rows:
    """Rows with their first token. Only a distribution that penalizes repetition needs the prompts."""
    P, G = key_PG.shape
    nothing_PG = jnp.zeros((P, G), jnp.int32)
    empty_PGS = pin(jnp.zeros((P, G, S)), mesh, PROMPTS)
    last_PG1 = jnp.broadcast_to(last_PD[:, None], (P, G, last_PD.shape[1]))
    logits_PGV = policy.unembed(params, last_PG1)
    seen_PGV = None
    if distribution.penalizes and prompts is not None:
        index_P1 = jnp.arange(P)[:, None]
        seen_PV = jnp.zeros((P, logits_PGV.shape[2]), bool).at[index_P1, prompts.tokens_PL].max(prompts.valid_PL)
        seen_PGV = jnp.broadcast_to(seen_PV[:, None], logits_PGV.shape)
    rows = Rows(
        cursor=jnp.zeros((), jnp.int32),
        start_PG=nothing_PG,
        length_PG=nothing_PG,
        active_PG=jnp.ones((P, G), bool),
        ended_PG=jnp.zeros((P, G), bool),
        key_PG=key_PG,
        last_PG=nothing_PG,
        tokens_PGS=empty_PGS.astype(jnp.int32),
        logprobs_PGS=empty_PGS,
        entropy_PGS=empty_PGS,
        seen_PGV=seen_PGV,
    )
    return pin(_choose(distribution, rows, logits_PGV, max_tokens, mesh), mesh, PROMPTS)


@program(static_argnames=("policy", "distribution", "mesh"), donate_argnames=("own", "rows"))
def decode(
    policy: Policy,
    distribution: Distribution,
    params: Params,
    shared: Any,
    own: Any,
    rows: Rows,
    max_tokens: int | Array,
    until: Until,
    mesh: Mesh | None,
) -> tuple[Any, Rows]:
    """The cache and the rows after one stage. Donates both."""
    S, shards = rows.tokens_PGS.shape[2], 1 if mesh is None else prompt_shards(mesh)

    def goes_on(carry: tuple[Any, Rows]) -> Array:
        rows = carry[1]
        active_P = rows.active_PG.sum(axis=1)
        longest = jnp.max(jnp.where(rows.active_PG, rows.length_PG, 0))
        needed = jnp.sum(-(-active_P // until.width).reshape(shards, -1), axis=1).max()
        unfinished = (longest > 0) & (longest < S) & (rows.cursor < until.cursor)
        return unfinished & (needed > until.prompts) & (jnp.sum(active_P == 0) < until.free)

    def decode_one(carry: tuple[Any, Rows]) -> tuple[Any, Rows]:
        own, rows = carry
        given = (rows.last_PG, rows.cursor - 1, rows.start_PG, rows.active_PG)
        hidden_PGD, own = policy.extend(params, shared, own, *given)
        return own, _choose(distribution, rows, policy.unembed(params, hidden_PGD), max_tokens, mesh)

    return jax.lax.while_loop(goes_on, decode_one, (own, rows))


@jax.named_scope("choice")
def _choose(
    distribution: Distribution, rows: Rows, logits_PGV: Array, max_tokens: int | Array, mesh: Mesh | None
) -> Rows:
    """The rows with one more token in each active one."""
    if mesh is not None:  # or the head would be gathered for every token
        logits_PGV = jax.lax.with_sharding_constraint(logits_PGV, logits_sharding(logits_PGV.shape, mesh))
    logits_PGV = distribution(logits_PGV, rows.length_PG, rows.seen_PGV)
    if distribution.temperature == 0:
        token_PG, logprob_PG, entropy_PG = greedy(logits_PGV)
    else:
        token_PG, logprob_PG, entropy_PG = draw(_noise(rows.key_PG, rows.length_PG), logits_PGV)
    active_PG, chosen_PG = rows.active_PG, rows.active_PG
    if rows.given_PGT is not None:
        given_PG = jnp.take_along_axis(rows.given_PGT, rows.length_PG[..., None], axis=2, mode="clip")[..., 0]
        chosen_PG = active_PG & (given_PG < 0)
        token_PG = jnp.where(chosen_PG, token_PG, given_PG)
    token_PG = jnp.where(active_PG, token_PG, rows.last_PG)
    ended_PG = chosen_PG & jnp.isin(token_PG, jnp.asarray(distribution.ends))
    length_PG = rows.length_PG + active_PG
    index = rows.cursor % rows.tokens_PGS.shape[2]

    def put(ring_PGS: Array, new_PG: Array) -> Array:
        old_PG = jax.lax.dynamic_index_in_dim(ring_PGS, index, 2, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(ring_PGS, jnp.where(active_PG, new_PG, old_PG), index, 2)

    if rows.given_PGT is not None:
        logprob_PG, entropy_PG = (jnp.where(chosen_PG, a_PG, 0.0) for a_PG in (logprob_PG, entropy_PG))

    seen_PGV = rows.seen_PGV
    if seen_PGV is not None:
        seen_PGV |= token_PG[:, :, None] == jnp.arange(seen_PGV.shape[2])[None, None]
    return replace(
        rows,
        cursor=rows.cursor + 1,
        length_PG=length_PG,
        active_PG=active_PG & ~ended_PG & (length_PG < max_tokens),
        ended_PG=rows.ended_PG | ended_PG,
        last_PG=token_PG,
        tokens_PGS=put(rows.tokens_PGS, token_PG),
        logprobs_PGS=put(rows.logprobs_PGS, logprob_PG),
        entropy_PGS=put(rows.entropy_PGS, entropy_PG),
        seen_PGV=seen_PGV,
    )


def _noise(key_PG: Array, length_PG: Array) -> Array:
    """Two uniform numbers for each row, from its own key and its own length alone."""

    def one(key: Array, length: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, length), (2,))

    return jax.vmap(jax.vmap(one))(key_PG, length_PG)


@program(static_argnames=("T", "mesh"))
def conversing(rows: Rows, T: int, mesh: Mesh | None) -> Rows:
    """The rows, ready to be given some of their T tokens."""
    return pin(replace(rows, given_PGT=jnp.full((*rows.start_PG.shape, T), -1, jnp.int32)), mesh, PROMPTS)


@program(static_argnames="mesh", donate_argnames="rows")
def resume(
    rows: Rows,
    shift_PG: Array | np.ndarray,
    begins_PG: Array | np.ndarray,
    length_PG: Array | np.ndarray,
    last_PG: Array | np.ndarray,
    given_PGT: Array | np.ndarray,
    mesh: Mesh | None,
) -> Rows:
    """The rows after a `Resumption`; `move_cache` moves what they have in the caches. Donates the rows."""
    changed = replace(
        rows,
        start_PG=rows.start_PG + shift_PG,
        length_PG=jnp.where(begins_PG, length_PG, rows.length_PG),
        last_PG=jnp.where(begins_PG, last_PG, rows.last_PG),
        active_PG=rows.active_PG | begins_PG,
        ended_PG=rows.ended_PG & ~begins_PG,
        given_PGT=jnp.where(begins_PG[..., None], given_PGT, -1 if rows.given_PGT is None else rows.given_PGT),
        seen_PGV=None if rows.seen_PGV is None else _also_seen(rows.seen_PGV, jnp.asarray(given_PGT)),
    )
    return pin(changed, mesh, PROMPTS)


def _also_seen(seen_PGV: Array, given_PGT: Array) -> Array:
    """The tokens that each row has seen, and those that it is given; -1 is none."""
    V = seen_PGV.shape[2]

    def also(seen_V: Array, given_T: Array) -> Array:
        return seen_V.at[jnp.where(given_T < 0, V, given_T)].set(True, mode="drop")

    return jax.vmap(jax.vmap(also))(seen_PGV, given_PGT)


@program(static_argnames="mesh", donate_argnames="array")
def move_cache(array: Array, shift_PG: Array | np.ndarray, mesh: Mesh | None) -> Array:
    """One array of the responses' cache, each row moved in place by so many positions in its ring. Donates it."""

    def move(array: Array, shift_PG: Array) -> Array:
        shift_X = shift_PG.reshape(-1)
        order_X = jnp.argsort(shift_X == 0)  # rows that move come first
        others = (0,) * (array.ndim - 2)

        def move_row(index: Array, array: Array) -> Array:
            p, g = jnp.divmod(order_X[index], shift_PG.shape[1])
            row_11KS = jax.lax.dynamic_slice(array, (p, g, *others), (1, 1, *array.shape[2:]))
            return jax.lax.dynamic_update_slice(array, jnp.roll(row_11KS, shift_X[order_X[index]], 3), (p, g, *others))

        return jax.lax.fori_loop(0, jnp.count_nonzero(shift_X), move_row, array)

    return pin(on_shards(move, mesh, array, jnp.asarray(shift_PG)), mesh, CACHE)


@program(static_argnames=("S", "wrapped", "mesh"))
def grow(rows: Rows, S: int, wrapped: bool, mesh: Mesh | None) -> Rows:
    """The rows in ring buffers of S positions, unrolled first if the cursor has `wrapped` around."""
    offset = rows.cursor - rows.tokens_PGS.shape[2] if wrapped else jnp.zeros((), jnp.int32)
    names = ("tokens_PGS", "logprobs_PGS", "entropy_PGS")
    grown = {name: _resized(getattr(rows, name), S, offset, wrapped, 2) for name in names}
    grown |= {"cursor": rows.cursor - offset, "start_PG": rows.start_PG - offset}
    return pin(replace(rows, **grown), mesh, PROMPTS)


@program(static_argnames=("S", "wrapped", "mesh"))
def grow_cache(array: Array, cursor: Array, S: int, wrapped: bool, mesh: Mesh | None) -> Array:
    """One array of the responses' cache in a ring buffer of S positions."""
    return pin(_resized(array, S, cursor - array.shape[3], wrapped, 3), mesh, CACHE)


def _resized(a: Array, S: int, offset: Array, wrapped: bool, axis: int) -> Array:
    old = a.shape[axis]
    a = jnp.take(a, (jnp.arange(old) + offset) % old, axis=axis) if wrapped else a
    return jnp.pad(a, [(0, S - old if i == axis else 0) for i in range(a.ndim)])


@program(static_argnames=("shards", "mesh"))
def compact(
    rows: Rows,
    source_p: Array | np.ndarray,
    row_pg: Array | np.ndarray,
    active_pg: Array | np.ndarray,
    shards: int,
    mesh: Mesh | None,
) -> Rows:
    """The rows that a `Compaction` chooses."""
    rows = jax.tree.map(lambda a: a if a.ndim < 2 else _responses(a, source_p, row_pg, shards), rows)
    return pin(replace(rows, active_PG=rows.active_PG & active_pg), mesh, PROMPTS)


@program(static_argnames=("shards", "mesh"))
def compact_cache(
    array: Array, source_p: Array | np.ndarray, row_pg: Array | np.ndarray, shards: int, mesh: Mesh | None
) -> Array:
    """One array of the responses' cache, for the rows that a `Compaction` chooses."""
    return pin(_responses(array, source_p, row_pg, shards), mesh, CACHE)


@program(static_argnames=("shards", "mesh"))
def compact_prompts(array: Array, source_p: Array | np.ndarray, shards: int, mesh: Mesh | None) -> Array:
    """One array of the prompts' cache, for the prompts that a `Compaction` chooses."""
    array = _take(array, source_p, shards)
    return array if mesh is None else jax.lax.with_sharding_constraint(array, prefix_sharding(array.shape, mesh))


def one_by_one(change: Callable[[Array], Array], tree: Any) -> Any:
    """A tree with each array changed before the next, so that there is never a second copy of more than one.

    The caller must not keep a reference to `tree`, whose arrays are freed one after the other.
    """
    leaves, structure = jax.tree.flatten(tree)
    del tree
    for index, leaf in enumerate(leaves):
        leaves[index] = jax.block_until_ready(change(leaf))
        del leaf
    return jax.tree.unflatten(structure, leaves)


def _responses(a: Array, source_p: Array | np.ndarray, row_pg: Array | np.ndarray, shards: int) -> Array:
    index_pg = source_p[:, None] * a.shape[1] + row_pg
    return _take(a.reshape(-1, *a.shape[2:]), index_pg.reshape(-1), shards).reshape(*row_pg.shape, *a.shape[2:])


def _take(a: Array, index: Array | np.ndarray, shards: int) -> Array:
    """a[index], each shard of the first axis indexing into itself."""
    apart = a.reshape(shards, -1, *a.shape[1:])
    taken = jax.vmap(lambda a, index: a[index])(apart, index.reshape(shards, -1))
    return taken.reshape(-1, *a.shape[1:])


@program(static_argnames="mesh", donate_argnames=("shared", "rows"))
def admit(
    shared: Any, rows: Rows, new_shared: Any, new_rows: Rows, position_p: Array | np.ndarray, mesh: Mesh | None
) -> tuple[Any, Rows]:
    """New prompts with their first tokens at these positions. They begin now; positions beyond the last are ignored."""
    index = (rows.cursor - 1) % rows.tokens_PGS.shape[2]

    def put(a: Array, new: Array) -> Array:
        return a.at[position_p].set(new, mode="drop")

    def put_first(name: str) -> Array:
        return getattr(rows, name).at[position_p, :, index].set(getattr(new_rows, name)[:, :, 0], mode="drop")

    fields = ("length_PG", "active_PG", "ended_PG", "key_PG", "last_PG")
    changed = {name: put(getattr(rows, name), getattr(new_rows, name)) for name in fields}
    changed |= {name: put_first(name) for name in ("tokens_PGS", "logprobs_PGS", "entropy_PGS")}
    changed["start_PG"] = put(rows.start_PG, new_rows.start_PG + rows.cursor - 1)
    if rows.seen_PGV is not None and new_rows.seen_PGV is not None:
        changed["seen_PGV"] = put(rows.seen_PGV, new_rows.seen_PGV)
    if rows.given_PGT is not None:  # new rows are given nothing yet
        changed["given_PGT"] = rows.given_PGT.at[position_p].set(-1, mode="drop")
    return jax.tree.map(put, shared, new_shared), pin(replace(rows, **changed), mesh, PROMPTS)


def on_shards(change: Callable[..., Array], mesh: Mesh | None, *arrays: Array) -> Array:
    """A function of arrays whose first axis the mesh divides, on each shard of the prompts by itself."""
    if mesh is None:
        return change(*arrays)
    axes, spec = prompt_axes(mesh), PartitionSpec(prompt_axes(mesh))
    by_shard = jax.shard_map(
        change, mesh=mesh, in_specs=(spec,) * len(arrays), out_specs=spec, axis_names=set(axes), check_vma=False
    )
    return by_shard(*arrays)


def pin(tree: Any, mesh: Mesh | None, spec: PartitionSpec) -> Any:
    """A tree whose arrays are divided as they should be, whatever the compiler would choose."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, fit(spec, a.shape, mesh)), tree)
