"""Cutting a batch into parts that are computed one after the other, and putting what they give together again.

What is cut are tokens, masks and a number for each token: small arrays, wherever they live.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.devices.mesh import prompt_parts
from grpo_jax.devices.sharding import PROMPTS, fit
from grpo_jax.learner.packing import Part, divide
from grpo_jax.structs import Batch, Prompts, Rollouts

EVERYWHERE = PartitionSpec()


def arrange(
    rollouts: Rollouts, minibatches: int, microbatch: int | None, group_parts: int, mesh: Mesh | None
) -> list[list[Part]]:
    """The parts of each minibatch. Minibatches are dealt like cards, so that each has prompts of every device."""
    P, _, T = rollouts.tokens_PGT.shape
    shares = rollouts.shares
    length_PG = np.asarray(lengths(rollouts.valid_PGT | rollouts.action_PGT, mesh))
    shards = 1 if mesh is None else prompt_parts(mesh)
    arranged = []
    for minibatch in range(minibatches):
        place_P = np.arange(P).reshape(-1, shares)[minibatch::minibatches].reshape(-1)
        at_once = len(place_P) if microbatch is None else microbatch * shares
        parts = divide(length_PG[place_P], T, at_once, group_parts, shards)
        arranged.append([replace(part, place_p=place_P[part.place_p]) for part in parts])
    return arranged


@partial(jax.jit, static_argnames="mesh")
def lengths(used_PGT: Array, mesh: Mesh | None) -> Array:
    """Tokens of each response up to the last that is used, on every device."""
    place_11T = jnp.arange(1, used_PGT.shape[2] + 1)[None, None]
    length_PG = jnp.max(jnp.where(used_PGT, place_11T, 0), axis=2)
    return length_PG if mesh is None else jax.lax.with_sharding_constraint(length_PG, NamedSharding(mesh, EVERYWHERE))


@partial(jax.jit, static_argnames="mesh")
def choose(tree: Any, place_p: Array, place_pg: Array, mesh: Mesh | None) -> Any:
    """A batch or rollouts of some prompts and some responses of each, by their places. Coefficients are for all."""

    def take(tree: Any) -> Any:
        if isinstance(tree, Prompts):
            return jax.tree.map(lambda a_PL: a_PL[place_p], tree)
        return tree[place_p[:, None], place_pg] if tree.ndim > 1 else tree

    chosen = jax.tree.map(take, tree, is_leaf=lambda node: isinstance(node, Prompts))
    if mesh is None:
        return chosen

    def pin(a: Array) -> Array:
        return jax.lax.with_sharding_constraint(a, fit(PROMPTS, a.shape, mesh)) if a.ndim > 1 else a

    return jax.tree.map(pin, chosen)


@partial(jax.jit, static_argnames="shares")
def joined(tree: Any, shares: int) -> Any:
    """Rollouts, or arrays that belong to them, with the shares of each group put together."""

    def join(a: Array) -> Array:
        return a.reshape(-1, shares * a.shape[1], *a.shape[2:])

    def of_rollouts(node: Any) -> Any:
        if not isinstance(node, Rollouts):
            return join(node)
        prompts = jax.tree.map(lambda a_PL: a_PL[::shares], node.prompts)
        return replace(jax.tree.map(join, replace(node, prompts=None)), prompts=prompts, shares=1)

    return jax.tree.map(of_rollouts, tree, is_leaf=lambda node: isinstance(node, Rollouts))


@partial(jax.jit, static_argnames=("shares", "mesh"))
def shared_out(batch: Batch, shares: int, mesh: Mesh | None) -> Batch:
    """A batch with each group divided again into shares, which are rows of their own."""

    def divide(node: Any) -> Any:
        if isinstance(node, Prompts):
            return jax.tree.map(lambda a_PL: jnp.repeat(a_PL, shares, axis=0), node)
        return node.reshape(-1, node.shape[1] // shares, *node.shape[2:]) if node.ndim > 1 else node

    def pin(a: Array) -> Array:
        laid_out = mesh is not None and a.ndim > 1
        return jax.lax.with_sharding_constraint(a, fit(PROMPTS, a.shape, mesh)) if laid_out else a

    divided = jax.tree.map(divide, batch, is_leaf=lambda node: isinstance(node, Prompts))
    return jax.tree.map(pin, replace(divided, rollouts=replace(divided.rollouts, shares=shares)))


@partial(jax.jit, donate_argnames="all_PGT")
def put(all_PGT: Array, place_p: Array, place_pg: Array, some_pgT: Array) -> Array:
    """Values of a part where they belong."""
    return all_PGT.at[place_p[:, None], place_pg].set(some_pgT)
