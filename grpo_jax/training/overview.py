"""What lies where on the devices, as a small table for people."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from grpo_jax.devices.mesh import prompt_parts
from grpo_jax.devices.sharding import serving_shardings, shares_of
from grpo_jax.structs import Policy, TrainState


def table(mesh: Mesh, hosts: int, policy: Policy, state: TrainState, prompts: int, responses: int) -> str:
    """A line for each kind of array: which axes of the mesh divide it, and how much of it a device has."""
    copy = jax.eval_shape(policy.serve, policy.shapes)
    copy = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), copy, serving_shardings(copy, mesh)
    )
    shares, parts = shares_of(prompts, responses, mesh), prompt_parts(mesh)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    each = f"{prompts // parts} prompt(s)" if shares == 1 else f"{prompts * shares // parts} share(s) of a group"
    lines = {
        "mesh": f"{shape}: {mesh.size} device(s) on {hosts} host(s)",
        "weights and optimiser": f"{_divided(mesh, 'fsdp', 'tensor')}, {gigabytes(state)} a device",
        "copy for sampling": f"{_divided(mesh, 'tensor')}, {gigabytes(copy)} a device",
        "prompts of a step": f"{_divided(mesh, 'data', 'fsdp')}, {each} of {responses // shares} responses a device",
    }
    return "\n".join(f"{name:<23}{text}" for name, text in lines.items())


def _divided(mesh: Mesh, *axes: str) -> str:
    names = [axis for axis in axes if mesh.shape[axis] > 1]
    return f"divided by {' x '.join(names)}" if names else "whole on every device"


def gigabytes(tree: Any) -> str:
    """The size of what a device has of a tree, in words."""
    return f"{device_bytes(tree) / 1e9:.2f} GB"


def device_bytes(tree: Any) -> int:
    """Bytes of an array or a tree on one device."""
    return sum(a.dtype.itemsize * math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree))


def copy_bytes(policy: Policy) -> int:
    """Bytes of the whole copy for sampling."""
    copy = jax.eval_shape(policy.serve, policy.shapes)
    return sum(a.dtype.itemsize * math.prod(a.shape) for a in jax.tree.leaves(copy))
