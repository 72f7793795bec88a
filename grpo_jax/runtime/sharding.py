"""Where arrays live: the one mesh, and the one table from axis letters to mesh axes."""

import math
import os
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

# Weights: D is cut by fsdp, what attention and feed-forward split naturally by tensor.
RULES = {"D": "fsdp", "H": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
PROMPTS = PartitionSpec(("data", "fsdp"))
PREFIX = PartitionSpec(("data", "fsdp"), "tensor")  # keys and values of prompts: [P, K, L, ...]
CACHE = PartitionSpec(("data", "fsdp"), None, "tensor")  # keys and values of responses: [P, G, K, S, ...]


@dataclass(frozen=True)
class Layout:
    """How many ways the devices are divided: the product is the number of devices, -1 is whatever is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def mesh(self, devices: list[jax.Device] | None = None) -> Mesh:
        """A mesh over all devices, its axes placed automatically by the compiler."""
        devices = jax.devices() if devices is None else devices
        sizes = _fill((self.data, self.fsdp, self.tensor), len(devices))
        return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def _fill(sizes: tuple[int, ...], devices: int) -> tuple[int, ...]:
    known = math.prod(size for size in sizes if size != -1)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(f"A mesh is made of positive sizes and at most one -1 for the rest; got {sizes}.")
    if devices % known or (-1 not in sizes and known != devices):
        raise ValueError(
            f"A mesh of data, fsdp, tensor = {sizes} does not cover {devices} devices:"
            f" make the product {devices}, or leave one of them -1."
        )
    return tuple(devices // known if size == -1 else size for size in sizes)


def weight_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every array of parameters or of optimiser state, from the letters its name ends in.

    A layer-stacked array has one axis more than letters. Vectors, and axes that do not divide, stay whole.
    """
    return _by_letters(tree, mesh, RULES)


def serving_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for the copy of the parameters that sampling reads: whole on every fsdp shard, or each token of a
    rollout would gather it again.
    """
    return _by_letters(tree, mesh, {letter: axis for letter, axis in RULES.items() if axis != "fsdp"})


def fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """A sharding of an array by `spec`, without the axes that it does not have or that do not divide."""
    return NamedSharding(mesh, _trimmed(list(spec)[: len(shape)], shape, mesh))


def prefix_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of what decoding knows of prompts: keys and values by head, masks and lengths by prompt alone."""
    return fit(PREFIX if len(shape) > 2 else PROMPTS, shape, mesh)


def _by_letters(tree: Any, mesh: Mesh, rules: dict[str, str]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, a: NamedSharding(mesh, _spec(path, a.shape, mesh, rules)), tree
    )


def _spec(path: tuple, shape: tuple[int, ...], mesh: Mesh, rules: dict[str, str]) -> PartitionSpec:
    names = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
    found = re.search(r"_([A-Z]+)$", names[-1]) if names else None
    if found is None or len(found[1]) < 2 or len(shape) < len(found[1]):
        return PartitionSpec()
    return _trimmed([None] * (len(shape) - len(found[1])) + [rules.get(letter) for letter in found[1]], shape, mesh)


def _trimmed(axes: list, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    cuts = [axis if axis and _divides(mesh, axis, size) else None for axis, size in zip(axes, shape, strict=False)]
    while cuts and cuts[-1] is None:  # the one way of writing a layout: jit compiles again for any other
        cuts.pop()
    return PartitionSpec(*cuts)


def _divides(mesh: Mesh, axis: str | tuple[str, ...], size: int) -> bool:
    parts = math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))
    return parts > 1 and size % parts == 0


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the first array of a tree is laid out on, if it is more than one device."""
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None


def on(mesh: Mesh | None) -> AbstractContextManager:
    """Where kernels that divide their work by hand find the mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def prompt_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the prompts of a step are divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_prompts(count: int, mesh: Mesh) -> None:
    """Refuses a number of prompts that the devices cannot share evenly."""
    parts = prompt_parts(mesh)
    if count % parts:
        nearest = {max(count // parts, 1) * parts, (count // parts + 1) * parts}
        raise ValueError(
            f"Each device works on its own prompts, so their number must be a multiple of {parts}; got {count}."
            f" Choose {' or '.join(map(str, sorted(nearest)))}."
        )


def place_prompts(tree: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis is P, divided over the mesh by prompts."""
    check_prompts(jax.tree.leaves(tree)[0].shape[0], mesh)
    return jax.device_put(tree, NamedSharding(mesh, PROMPTS))


def free_bytes() -> int:
    """What the devices of this process can still hold together; on a CPU, what the machine holds in all."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats) and all("bytes_limit" in stat for stat in stats):
        return sum(stat["bytes_limit"] - stat["bytes_in_use"] for stat in stats)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
