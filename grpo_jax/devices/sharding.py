"""Where arrays live: the one table from axis letters to mesh axes, and what hosts hold of an array."""

import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from grpo_jax.devices.mesh import hosts_of, mesh_over, prompt_parts

# What divides the axes of arrays, by their letters; tensor, what attention and feed-forward split naturally.
RULES = {"P": ("data", "fsdp"), "D": "fsdp", "H": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
# Sampling reads weights that are whole on every fsdp shard, or each token of a rollout would gather them again.
SERVING = {letter: axes for letter, axes in RULES.items() if letter != "D"}


def spec(letters: str) -> PartitionSpec:
    """What divides an array with these axes."""
    return PartitionSpec(*(RULES.get(letter) for letter in letters))


ROWS = RULES["P"]
PROMPTS = spec("P")
PREFIX = spec("PKL")  # keys and values of prompts
CACHE = spec("PGKS")  # keys and values of responses
LOGITS = spec("PGV")


def weight_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every array of parameters or of optimiser state, from the letters its name ends in.

    A layer-stacked array has one axis more than letters. Vectors, and axes that do not divide, stay whole.
    """
    return _by_letters(tree, mesh, RULES)


def serving_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for the copy of the parameters that sampling reads."""
    return _by_letters(tree, mesh, SERVING)


def fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A sharding of an array by `spec`, without the axes that it does not have or that do not divide."""
    return NamedSharding(mesh, _trimmed(list(spec)[: len(shape)], shape, mesh))


def prefix_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of what decoding knows of prompts: keys and values by head, masks and lengths by prompt alone."""
    return fit(PREFIX if len(shape) > 2 else PROMPTS, shape, mesh)


def _by_letters(tree: Any, mesh: Mesh, rules: dict[str, Any]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, a: NamedSharding(mesh, _spec(path, a.shape, mesh, rules)), tree
    )


def _spec(path: tuple, shape: tuple[int, ...], mesh: Mesh, rules: dict[str, Any]) -> PartitionSpec:
    names = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
    found = re.search(r"_([A-Z]+)$", names[-1]) if names else None
    if found is None or len(found[1]) < 2 or len(shape) < len(found[1]):
        return PartitionSpec()
    return _trimmed([None] * (len(shape) - len(found[1])) + [rules.get(letter) for letter in found[1]], shape, mesh)


def _trimmed(axes: list, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    cuts = [axis if axis and _divides(mesh, axis, size) else None for axis, size in zip(axes, shape, strict=False)]
    while cuts and cuts[-1] is None:  # the one way of writing a layout: jit compiles again for any other
        cuts.pop()
    return PartitionSpec(*cuts)


def _divides(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...], size: int) -> bool:
    parts = math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))
    return parts > 1 and size % parts == 0


def devices_per_group(prompts: int, responses: int, mesh: Mesh | None) -> int:
    """Over how many devices each group is spread, so that every device has as many responses as the others: 1 where
    there are enough prompts. Refuses what cannot be spread evenly.
    """
    shards = 1 if mesh is None else prompt_parts(mesh)
    spread, hosts = shards // math.gcd(prompts, shards), hosts_of(mesh)
    if spread > 1 and prompts % hosts:
        raise ValueError(
            f"A group stays on one host, so prompts must be a multiple of the {hosts} hosts; got {prompts}."
            f" Choose {' or '.join(str(n * hosts) for n in (prompts // hosts, prompts // hosts + 1) if n)} prompts."
        )
    if responses % spread == 0:
        return spread
    nearest = sorted({max(prompts // shards, 1) * shards, (prompts // shards + 1) * shards})
    raise ValueError(
        f"The devices share prompts, or the responses to each, in {shards} equal parts: their number must be a multiple"
        f" of {shards}, or the responses to each a multiple of {spread}; got {prompts} prompts and {responses}"
        f" responses. Choose {' or '.join(map(str, nearest))} prompts."
    )


def place(array: Array | np.ndarray, sharding: NamedSharding) -> Array:
    """An array laid out. What lives on a host has to be the same on every host."""
    if sharding.is_fully_addressable or not (isinstance(array, np.ndarray) or array.is_fully_addressable):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array[index]))


def place_prompts(tree: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis is P, divided over the mesh by prompts; whole on every device if they are too few."""
    return jax.tree.map(lambda a: place(a, fit(PROMPTS, a.shape, mesh)), tree)


def host_mesh(mesh: Mesh) -> Mesh:
    """The devices of this host, each row of them with prompts of its own."""
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])[_host_rows(mesh)]
    return mesh_over(rows, (len(rows), 1, -1))


def _host_rows(mesh: Mesh) -> list[int]:
    """Which of the parts that prompts are divided into are on this host: all, if one process controls every host."""
    if jax.process_count() == 1:
        return list(range(prompt_parts(mesh)))
    hosts = [{device.process_index for device in row} for row in mesh.devices.reshape(-1, mesh.shape["tensor"])]
    return [index for index, here in enumerate(hosts) if here == {jax.process_index()}]


def host_places(mesh: Mesh | None, P: int) -> np.ndarray:
    """The indices, of P prompts, of those whose responses this host samples and scores."""
    if mesh is None:
        return np.arange(P)
    shards = prompt_parts(mesh)
    spread = shards // math.gcd(P, shards)
    rows = np.arange(P * spread).reshape(shards, -1)[_host_rows(mesh)].reshape(-1)
    return np.unique(rows // spread)


def on_host(tree: Any) -> Any:
    """What this host's devices hold of arrays over several hosts, as arrays of its own: nothing is copied.

    For arrays that are divided by prompts, by tensor, or not at all.
    """

    def view(a: Array) -> Array:
        mesh = host_mesh(a.sharding.mesh)
        spec = PartitionSpec(*("data" if axes == PROMPTS[0] else axes for axes in a.sharding.spec))
        parts = {shard.device: shard.data for shard in a.addressable_shards}
        sharding = NamedSharding(mesh, spec)
        shape = list(a.shape)
        if spec and spec[0] == "data":
            shape[0] = mesh.shape["data"] * (a.shape[0] // prompt_parts(a.sharding.mesh))
        ordered = [parts[device] for device in mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(tuple(shape), sharding, ordered)

    return jax.tree.map(view, tree)


def from_hosts(own: np.ndarray, mesh: Mesh | None) -> Array:
    """One array of all prompts, made of what each host has: divided by prompts where they divide, else replicated."""
    if mesh is None:
        return jax.numpy.asarray(own)
    P = own.shape[0] * prompt_parts(mesh) // len(_host_rows(mesh))
    sharding = fit(PROMPTS, (P, *own.shape[1:]), mesh)
    if jax.process_count() == 1:
        return jax.device_put(own, sharding)
    if sharding.is_fully_replicated:
        return place(_gathered(own, mesh), sharding)
    first = {index: row for row, index in enumerate(host_places(mesh, P).tolist())}

    def rows(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(P)
        return own[first[start] : first[start] + stop - start]

    return jax.make_array_from_callback((P, *own.shape[1:]), sharding, rows)


def _gathered(own: np.ndarray, mesh: Mesh) -> np.ndarray:
    """What all hosts have, in the order of their prompts."""
    gathered = multihost_utils.process_allgather(own)
    order = dict.fromkeys(device.process_index for device in mesh.devices.flat)
    return np.concatenate([gathered[process] for process in order])


def host_rows(array: Array | np.ndarray) -> np.ndarray:
    """What belongs to this host's prompts, in their order, of an array whose first axis is P."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array)[host_places(array.sharding.mesh, array.shape[0])]
    rows = {shard.index[0].indices(array.shape[0])[0]: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def everywhere(array: Array | np.ndarray) -> np.ndarray:
    """The whole of an array, on every host. For small ones."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def settle(tree: Any) -> Any:
    """A tree; where CPUs stand in for several hosts, once it is there. Two programs at once would wait for each other's
    collective operations, which accelerators run in order.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(tree)
    return tree


def free_bytes() -> int:
    """What the devices of this process can still hold together; on a CPU, what the machine holds in all."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats) and all("bytes_limit" in stat for stat in stats):
        return sum(stat["bytes_limit"] - stat["bytes_in_use"] for stat in stats)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_memory() -> int:
    """How many bytes one device can hold in all. CPU devices share the memory of the machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
