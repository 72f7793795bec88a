"""What every optimiser step needs to know of a state: how it is sharded, and which random bits are the step's own."""

from typing import Any

import jax
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, Sharding

from grpo_jax.devices.memory import HOST, check_host_memory
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.optimizers import has_moments_in_host, is_moment
from grpo_jax.structs import TrainState

Shardings = tuple[Any, tuple[Sharding, ...]]  # of a state: its tree, and a sharding for each leaf


def check_moments(optimizer: optax.GradientTransformation, mesh: Mesh) -> None:
    """Refuses moments in the host's memory where the devices cannot read it."""
    if has_moments_in_host(optimizer):
        check_host_memory(mesh.local_devices[0] if mesh.local_devices else mesh.devices.flat[0])


def state_shardings(optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh) -> TrainState:
    """The sharding of every array of a state on a mesh, which says in whose memory it is, too."""
    shardings = weight_shardings(state, mesh)
    if not has_moments_in_host(optimizer):
        return shardings

    def of(path: tuple, sharding: NamedSharding) -> NamedSharding:
        return sharding.with_memory_kind(HOST) if is_moment(path) else sharding

    return jax.tree_util.tree_map_with_path(of, shardings)


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
