"""The mesh: how many ways the devices are divided, which of them stand side by side, and whose they are."""

import itertools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

Device = Any  # a jax.Device, or what says as much of itself
AXES = ("data", "fsdp", "tensor")  # an axis more, for experts or for context, is a name here and a line in RULES


@dataclass(frozen=True)
class Layout:
    """How many ways the devices are divided: the product is the number of devices, -1 is whatever is left.

    `data` is how many copies of the weights there are, `fsdp` into how many parts each is divided, layer by layer put
    together again, and `tensor` how many devices compute a layer together, inside a host.
    """

    data: int | None = None  # null: one for each slice, or the rest where fsdp is given
    fsdp: int | None = None  # null: the rest
    tensor: int | None = None  # null: so many that the copy for sampling takes a third of a device at most, or the rest

    def mesh(self, devices: list[Device] | None = None, copy_bytes: int = 0, memory: int | float | None = None) -> Mesh:
        """A mesh over all devices, its axes placed automatically by the compiler, for a model of so many bytes while
        sampling and devices with so much memory.

        Devices of a host stand side by side, neighbours next to each other, and hosts of a slice one after the other:
        so `tensor` stays inside a host, and `data` goes over slices, whatever the shape of the slice.
        """
        devices = sorted(jax.devices() if devices is None else devices, key=_address)
        data, tensor = self.data, self.tensor
        if data is None:
            given = self.fsdp not in (None, -1) and tensor != -1
            data = -1 if given else len({_address(device)[0] for device in devices})
        if tensor is None and (self.fsdp is None or -1 in (data, self.fsdp)):
            known = max(data, 1) * max(self.fsdp or 1, 1)
            tensor = _tensor(devices, known, copy_bytes, _device_bytes(devices) if memory is None else memory)
        elif tensor is None:
            tensor = -1
        rest = -1 not in (data, tensor)
        fsdp = (-1 if rest else 1) if self.fsdp is None else self.fsdp
        return mesh_over(devices, _fill((data, fsdp, tensor), len(devices)))


def mesh_over(devices: Any, sizes: tuple[int, ...]) -> Mesh:
    """The devices in their order, divided by `data`, `fsdp` and `tensor`; the compiler divides arrays over them."""
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _address(device: Device) -> tuple:
    """Slice, host, and place on the host's board, the first coordinate counting fastest."""
    place = tuple(reversed(getattr(device, "coords", ())))
    return getattr(device, "slice_index", 0), device.process_index, place, device.id


def _tensor(devices: list[Device], known: int, copy_bytes: int, memory: int | float | None) -> int:
    """The fewest devices of a host that hold the copy for sampling in a third of their memory; `known` are the ways in
    which the devices are divided otherwise.
    """
    tensor, here = 1, len([device for device in devices if device.process_index == devices[0].process_index])
    while memory is not None and copy_bytes / tensor > memory / 3 and here % (2 * tensor) == 0:
        if len(devices) % (2 * tensor * known):
            break
        tensor *= 2
    return tensor


def _device_bytes(devices: list[Device]) -> int | None:
    """What a device of this process can hold, as only they say."""
    own = [device for device in devices if device.process_index == jax.process_index() and device.platform != "cpu"]
    stats = own[0].memory_stats() if own else None
    return stats and stats.get("bytes_limit")


def _fill(sizes: tuple[int, ...], devices: int) -> tuple[int, ...]:
    known = math.prod(size for size in sizes if size != -1)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(f"A mesh is made of positive sizes and at most one -1 for the rest; got {sizes}.")
    if devices % known or (-1 not in sizes and known != devices):
        rest = "" if -1 in sizes else ", or leave one of them -1"
        raise ValueError(
            f"A mesh of data, fsdp, tensor = {sizes} does not cover {devices} device(s): make the product {devices}, as"
            f" {_nearest(sizes, devices)} does{rest}."
        )
    return tuple(devices // known if size == -1 else size for size in sizes)


def _nearest(sizes: tuple[int, ...], devices: int) -> tuple[int, ...]:
    """The sizes that cover the devices and are least different, as ratios, from those that were asked for."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    covering = [mesh for mesh in itertools.product(divisors, repeat=len(sizes)) if math.prod(mesh) == devices]
    asked = [(place, size) for place, size in enumerate(sizes) if size != -1]
    return min(covering, key=lambda mesh: sum(abs(math.log(mesh[place] / size)) for place, size in asked))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of the first array in a tree that is laid out on more than one device; None without such an array."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def on(mesh: Mesh | None) -> AbstractContextManager:
    """Where what divides its work by hand, kernels and log-probs, finds the mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def prompt_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the prompts of a step are divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def hosts_of(mesh: Mesh | None) -> int:
    """How many hosts the devices of a mesh belong to."""
    return 1 if mesh is None else len({device.process_index for device in mesh.devices.flat})


def check_hosts(mesh: Mesh) -> None:
    """Refuses a mesh whose responses would belong to several hosts at once."""
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    if all(len({device.process_index for device in row}) == 1 for row in rows):
        return
    here = mesh.size // hosts_of(mesh)
    divisors = ", ".join(str(n) for n in range(1, here + 1) if here % n == 0)
    raise ValueError(
        f"Each host samples and scores its own responses, so mesh.tensor must divide the {here} devices of a host;"
        f" got {mesh.shape['tensor']}. Choose one of {divisors} for mesh.tensor, and -1 for mesh.fsdp, the rest."
    )
