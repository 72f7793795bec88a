"""The device mesh: how many ways the devices are divided, their order in it, and which host each belongs to."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from grpo_jax.devices.memory import memory_limit

Device = Any  # a jax.Device, or an object with the attributes of one that are read here
AXES = ("data", "fsdp", "tensor")
AXES_WITH_EXPERTS = ("data", "fsdp", "expert", "tensor")
PROMPT_AXES = ("data", "fsdp", "expert")  # those of them that divide the prompts


@dataclass(frozen=True)
class Layout:
    """How many ways the devices are divided along each axis of the mesh. The product is their number; -1 is the rest.

    `data` is the number of copies of the weights, `fsdp` how many shards each copy is divided into, gathered layer by
    layer when they are used, and `tensor` how many devices of a host compute each layer together. `expert` is how many
    devices of a host share the experts of a mixture; each has prompts of its own, and shards of the other weights.
    """

    data: int | None = None  # null: one for each slice, or the rest where fsdp is given
    fsdp: int | None = None  # null: the rest
    tensor: int | None = None  # null: the rest if both others are given, else as few as hold the copy for sampling
    expert: int = 1  # for models with experts, whose number it divides

    def mesh(self, devices: list[Device] | None = None, copy_bytes: int = 0, memory: int | float | None = None) -> Mesh:
        """A mesh over all devices, or these. Where `tensor` is left out, it depends on the bytes of the whole copy for
        sampling and on the `memory` of a device, which is asked for if it is not given.

        Devices are ordered by slice, host and position on the host. So `tensor` stays inside a host, and `data` goes
        over slices, whatever the shape of a slice.
        """
        devices = sorted(jax.devices() if devices is None else devices, key=_address)
        data, tensor, expert = self.data, self.tensor, self.expert
        if data is None:
            given = self.fsdp not in (None, -1) and -1 not in (tensor, expert)
            data = -1 if given else len({_address(device)[0] for device in devices})
        if tensor is None and (self.fsdp is None or -1 in (data, self.fsdp)):
            limit = memory_limit(devices) if memory is None else memory
            others = max(data, 1) * max(self.fsdp or 1, 1)
            tensor = _tensor_size(devices, others, max(expert, 1), copy_bytes, limit)
        elif tensor is None:
            tensor = 1 if expert == -1 else -1
        complete = -1 not in (data, tensor, expert)
        fsdp = (-1 if complete else 1) if self.fsdp is None else self.fsdp
        sizes = (data, fsdp, tensor) if expert == 1 else (data, fsdp, expert, tensor)
        return mesh_over(devices, _fill(sizes, len(devices)))


def mesh_over(devices: Any, sizes: tuple[int, ...]) -> Mesh:
    """A mesh of devices in the given order; `sizes` are those of `data`, `fsdp` and `tensor`, and one may be -1.

    Where there are four, the third is that of `expert`; a mesh without it has no such axis.
    """
    return Mesh(np.asarray(devices).reshape(sizes), _axes(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _axes(sizes: tuple[int, ...]) -> tuple[str, ...]:
    return AXES if len(sizes) == len(AXES) else AXES_WITH_EXPERTS


def host_mesh(mesh: Mesh, devices: Any) -> Mesh:
    """A mesh of one host's devices in the given order, with the `tensor` and `expert` of `mesh`; `data` is the rest."""
    return mesh_over(np.asarray(devices).reshape(-1), (-1, 1, *(mesh.shape[axis] for axis in mesh.axis_names[2:])))


def own_mesh(mesh: Mesh, process: int) -> Mesh:
    """The devices of a process, for what it computes without the others: the whole mesh, if no other has a part of it.
    A copy of weights is divided over all of them.
    """
    own = [device for device in mesh.devices.flat if device.process_index == process]
    if len(own) == mesh.size:
        return mesh
    return mesh_over(own, (1, -1, *(mesh.shape[axis] for axis in mesh.axis_names[2:])))


def _address(device: Device) -> tuple:
    """Slice, host, and position on the host, where the first coordinate changes fastest."""
    position = tuple(reversed(getattr(device, "coords", ())))
    return getattr(device, "slice_index", 0), device.process_index, position, device.id


def _tensor_size(devices: list[Device], others: int, expert: int, copy_bytes: int, memory: int | float | None) -> int:
    """The smallest power of two, within a host, with which the copy for sampling fits in a third of a device's memory.
    `expert` divides it, too: nearly all of it are experts. `others` is the product of the other sizes that are known.
    """
    tensor = 1
    on_one_host = len([device for device in devices if device.process_index == devices[0].process_index])
    while memory is not None and copy_bytes / expert / tensor > memory / 3 and on_one_host % (2 * tensor * expert) == 0:
        if len(devices) % (2 * tensor * expert * others):
            break
        tensor *= 2
    return tensor


def _fill(sizes: tuple[int, ...], devices: int) -> tuple[int, ...]:
    """The sizes with a number in place of -1. Refuses sizes that do not cover the devices."""
    known = math.prod(size for size in sizes if size != -1)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(f"A mesh is made of positive sizes and at most one -1 for the rest; got {sizes}.")
    if devices % known or (-1 not in sizes and known != devices):
        rest = "" if -1 in sizes else ", or leave one of them -1"
        raise ValueError(
            f"A mesh of {', '.join(_axes(sizes))} = {sizes} does not cover {devices} device(s): make the product"
            f" {devices}, as {_nearest(sizes, devices)} does{rest} (mesh.data, mesh.fsdp, mesh.expert, mesh.tensor)."
        )
    return tuple(devices // known if size == -1 else size for size in sizes)


def _nearest(sizes: tuple[int, ...], devices: int) -> tuple[int, ...]:
    """The sizes that cover the devices and differ least, as ratios, from those that were asked for."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    covering = [mesh for mesh in itertools.product(divisors, repeat=len(sizes)) if math.prod(mesh) == devices]
    asked = [(axis, size) for axis, size in enumerate(sizes) if size != -1]
    return min(covering, key=lambda mesh: sum(abs(math.log(mesh[axis] / size)) for axis, size in asked))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of the first array in a tree that is laid out on more than one device; None without such an array."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def prompt_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of shards that the prompts of a step are divided into."""
    return math.prod(mesh.shape[axis] for axis in prompt_axes(mesh))


def prompt_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of a mesh that divide the prompts of a step."""
    return tuple(axis for axis in PROMPT_AXES if axis in mesh.axis_names)


def shard_devices(mesh: Mesh) -> np.ndarray:
    """The devices of a mesh, one row for each shard of the prompts, with the `tensor` devices that have it."""
    return mesh.devices.reshape(-1, mesh.shape["tensor"])


def hosts_of(mesh: Mesh | None) -> int:
    """The number of hosts that the devices of a mesh belong to."""
    return 1 if mesh is None else len({device.process_index for device in mesh.devices.flat})


def check_hosts(mesh: Mesh) -> None:
    """Refuses a mesh in which devices of several hosts compute a layer together."""
    names = [axis for axis in mesh.axis_names if axis not in ("data", "fsdp")]
    together = math.prod(mesh.shape[axis] for axis in names)
    if all(len({device.process_index for device in group}) == 1 for group in mesh.devices.reshape(-1, together)):
        return
    each = mesh.size // hosts_of(mesh)
    divisors = ", ".join(str(n) for n in range(1, each + 1) if each % n == 0)
    product = " x ".join(f"mesh.{name}" for name in names)
    raise ValueError(
        f"Each host samples and scores its own responses, so {product} must divide the {each} devices of a host;"
        f" got {together}. Choose one of {divisors} for {product}, and -1 for mesh.fsdp, the rest."
    )
