"""What every optimiser step needs to know of a state: how it is sharded, and which random bits are the step's own."""

from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding, Sharding

from grpo_jax.structs import TrainState

Shardings = tuple[Any, tuple[Sharding, ...]]  # of a state: its tree, and a sharding for each leaf


def shardings_of(state: TrainState) -> Shardings:
    """How a state is sharded, in a form that programs can be compiled for."""
    leaves, tree = jax.tree.flatten(state)
    return tree, tuple(array.sharding for array in leaves)


def pinned_state(state: TrainState, shardings: Shardings) -> TrainState:
    """The state sharded like this: left alone, the compiler might choose otherwise."""
    leaves, tree = jax.tree.flatten(state)
    return jax.tree.unflatten(tree, [pinned(array, each) for array, each in zip(leaves, shardings[1], strict=True)])


def pinned(array: Array, sharding: Sharding) -> Array:
    """An array within a program, with this sharding if it is that of a mesh."""
    return jax.lax.with_sharding_constraint(array, sharding) if isinstance(sharding, NamedSharding) else array


def key_of_step(state: TrainState, minibatch: int | Array) -> Array:
    """The key of an optimiser step, by the counters of the state: a resumed run rounds as it would have anyway."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), state.step), minibatch)
