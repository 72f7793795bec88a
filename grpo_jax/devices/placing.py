"""Placing arrays on a mesh: global arrays from what each host has, and a host's part of global arrays.

Prompts are divided into shards, one for each `data` x `fsdp` of the mesh (`shard_devices`). A host samples and scores
the prompts of the shards whose devices it has; a process that controls the devices of all hosts has all prompts.
"""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.devices.mesh import host_mesh, mesh_of, prompt_axes, prompt_shards, shard_devices
from grpo_jax.devices.sharding import PROMPTS, fit, shards_per_group


def place(array: Array | np.ndarray, sharding: NamedSharding) -> Array:
    """The array with this sharding. A host array has to be the same on every host."""
    if sharding.is_fully_addressable or not (isinstance(array, np.ndarray) or array.is_fully_addressable):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array[index]))


def place_prompts(tree: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis is P, divided by prompts over the mesh; replicated if the mesh does not divide P."""
    return jax.tree.map(lambda a: place(a, fit(PROMPTS, a.shape, mesh)), tree)


def from_hosts(own: np.ndarray, mesh: Mesh | None) -> Array:
    """One array of all prompts, made of what each host has: divided by prompts where they divide, else replicated."""
    if mesh is None:
        return jax.numpy.asarray(own)
    P = own.shape[0] * prompt_shards(mesh) // len(_host_shards(mesh))
    sharding = fit(PROMPTS, (P, *own.shape[1:]), mesh)
    if jax.process_count() == 1:
        return jax.device_put(own, sharding)
    if sharding.is_fully_replicated:
        return place(_gathered(own, mesh), sharding)
    position = {prompt: position for position, prompt in enumerate(prompts_of_host(mesh, P).tolist())}

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        start, stop, _ = (slice(None) if index is None else index[0]).indices(P)
        return own[position[start] : position[start] + stop - start]

    return jax.make_array_from_callback((P, *own.shape[1:]), sharding, shard)


def _gathered(own: np.ndarray, mesh: Mesh) -> np.ndarray:
    """What all hosts have, in the order of their prompts."""
    gathered = multihost_utils.process_allgather(own)
    order = dict.fromkeys(device.process_index for device in mesh.devices.flat)
    return np.concatenate([gathered[process] for process in order])


def prompts_of_host(mesh: Mesh | None, P: int) -> np.ndarray:
    """The indices, of P prompts, of those whose responses this host samples and scores."""
    if mesh is None:
        return np.arange(P)
    shards = prompt_shards(mesh)
    spread = shards_per_group(P, shards)
    positions = np.arange(P * spread).reshape(shards, -1)[_host_shards(mesh)].reshape(-1)
    return np.unique(positions // spread)


def _host_shards(mesh: Mesh) -> list[int]:
    """The shards of the prompts whose devices this host has; all of them if one process controls every host."""
    if jax.process_count() == 1:
        return list(range(prompt_shards(mesh)))
    hosts = [{device.process_index for device in devices} for devices in shard_devices(mesh)]
    return [shard for shard, of_shard in enumerate(hosts) if of_shard == {jax.process_index()}]


def values_of_host(array: Array | np.ndarray) -> np.ndarray:
    """The part of an array with first axis P that belongs to this host's prompts, in their order."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array)[prompts_of_host(mesh_of(array), array.shape[0])]
    shards = {shard.index[0].indices(array.shape[0])[0]: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_host(tree: Any) -> Any:
    """This host's part of arrays over several hosts, as arrays over its own devices. Nothing is copied.

    The arrays are divided by prompts, by tensor, or replicated.
    """
    return jax.tree.map(_on_host, tree)


def _on_host(a: Array) -> Array:
    sharding, whole = a.sharding, mesh_of(a)
    if whole is None or not isinstance(sharding, NamedSharding):
        raise ValueError(f"Only an array that is laid out on a mesh has a part on each host; got one with {sharding}.")
    own = _host_shards(whole)
    mesh = host_mesh(whole, shard_devices(whole)[own])
    rows = tuple(axis for axis in prompt_axes(mesh) if axis != "fsdp")  # of which a host's mesh has one
    rows = rows[0] if len(rows) == 1 else rows
    spec = PartitionSpec(*(rows if axes == prompt_axes(whole) else axes for axes in sharding.spec))
    shape = list(a.shape)
    if spec and spec[0] == rows:
        shape[0] = a.shape[0] // prompt_shards(whole) * len(own)
    of_device = {shard.device: shard.data for shard in a.addressable_shards}
    arrays = [of_device[device] for device in mesh.devices.flat]
    return jax.make_array_from_single_device_arrays(tuple(shape), NamedSharding(mesh, spec), arrays)


def everywhere(array: Array | np.ndarray) -> np.ndarray:
    """The whole array, on every host. For small arrays."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
