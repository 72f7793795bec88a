"""How arrays are divided over the devices, as a table for people."""

import math

import jax
from jax.sharding import Mesh

from grpo_jax.devices.memory import gigabytes
from grpo_jax.devices.mesh import PROMPT_AXES, prompt_shards
from grpo_jax.devices.sharding import devices_per_group, even_vocabulary, serving_shardings, with_shardings
from grpo_jax.structs import Policy, TrainState


def table(mesh: Mesh, hosts: int, policy: Policy, state: TrainState, prompts: int, responses: int | None) -> str:
    """A line for each kind of array: which axes of the mesh divide it, and how much of it a device has."""
    copy = jax.eval_shape(lambda params: even_vocabulary(policy.serve(params), mesh), policy.shapes)
    copy = with_shardings(copy, serving_shardings(copy, mesh))
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = {
        "mesh": f"{shape}: {mesh.size} device(s) on {hosts} host(s)",
        "weights and optimiser": f"{_divided(mesh, 'fsdp', 'expert', 'tensor')}, {gigabytes(state)} a device",
        "copy for sampling": f"{_divided(mesh, 'expert', 'tensor')}, {gigabytes(copy)} a device",
        "prompts of a step": f"{_divided(mesh, *PROMPT_AXES)}, {_on_each(mesh, prompts, responses)} a device",
    }
    return "\n".join(f"{name:<23}{text}" for name, text in lines.items())


def _on_each(mesh: Mesh, prompts: int, responses: int | None) -> str:
    """The prompts and responses on each device; only the prompts, if the number of responses is not known."""
    shards = prompt_shards(mesh)
    if responses is None:
        return f"{prompts / shards:g} prompt(s)"
    spread = devices_per_group(prompts, responses, mesh)
    if spread == 1:
        return f"{prompts // shards} prompt(s) of {responses} responses"
    return f"{prompts * spread // shards} part(s) of a group, of {responses // spread} responses"


def _divided(mesh: Mesh, *axes: str) -> str:
    names = [axis for axis in axes if mesh.shape.get(axis, 1) > 1]
    return f"divided by {' x '.join(names)}" if names else "whole on every device"


def copy_bytes(policy: Policy) -> int:
    """The bytes of the whole copy of the weights for sampling."""
    copy = jax.eval_shape(policy.serve, policy.shapes)
    return sum(a.dtype.itemsize * math.prod(a.shape) for a in jax.tree.leaves(copy))
