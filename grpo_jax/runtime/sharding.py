"""Where arrays live: the one mesh, and the one table from axis letters to mesh axes."""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Weights: D is cut by fsdp, what attention and feed-forward split naturally by tensor.
RULES = {"D": "fsdp", "H": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
PROMPTS = PartitionSpec(("data", "fsdp"))


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
    return jax.tree_util.tree_map_with_path(lambda path, a: NamedSharding(mesh, _spec(path, a.shape, mesh)), tree)


def _spec(path: tuple, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    names = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
    found = re.search(r"_([A-Z]+)$", names[-1]) if names else None
    if found is None or len(found[1]) < 2 or len(shape) < len(found[1]):
        return PartitionSpec()
    axes = [None] * (len(shape) - len(found[1])) + [RULES.get(letter) for letter in found[1]]
    cuts = [axis if axis and _divides(mesh.shape[axis], size) else None for axis, size in zip(axes, shape, strict=True)]
    while cuts and cuts[-1] is None:  # the one way of writing a layout: jit compiles again for any other
        cuts.pop()
    return PartitionSpec(*cuts)


def _divides(parts: int, size: int) -> bool:
    return parts > 1 and size % parts == 0


def prompt_parts(mesh: Mesh) -> int:
    """Into how many parts the prompts of a step are divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_prompts(count: int, mesh: Mesh) -> None:
    """Refuses a number of prompts that the devices cannot share evenly."""
    parts = prompt_parts(mesh)
    if count % parts:
        raise ValueError(
            f"Each device works on its own prompts, so their number must be a multiple of {parts}; got {count}."
            f" The nearest are {max(count // parts, 1) * parts} and {(count // parts + 1) * parts}."
        )


def place_prompts(tree: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis is P, divided over the mesh by prompts."""
    check_prompts(jax.tree.leaves(tree)[0].shape[0], mesh)
    return jax.device_put(tree, NamedSharding(mesh, PROMPTS))
