"""How many responses a device can learn from at once, estimated from its memory without compiling anything.

What the backward pass keeps is read off the traced program (the residuals of its vector-Jacobian product); weights,
optimiser state and gradients are counted as they are sharded. `grpo-jax plan` compiles the program and knows exactly.
"""

import logging
import math
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.memory import device_memory
from grpo_jax.devices.mesh import mesh_of, own_mesh, prompt_shards
from grpo_jax.devices.sharding import devices_per_group, weight_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.learner.logprobs import CHUNK_TOKENS, token_logprobs
from grpo_jax.optimizers import LAYERS, first_state, on_device
from grpo_jax.structs import Params, Policy, Rollouts, axes_of, prompt_shapes, rollout_shapes

LEAST_TOKENS = 3072  # of responses at once: with fewer, adding up gradients costs what keeping more saves
MARGIN = 1.1  # temporaries as the compiler makes them, over those that are counted here
FRACTION = 0.98  # of the memory that may be filled


class Fitting(NamedTuple):
    """How a device learns: with which policy, how many responses at once, and by which name `faster` has the policy
    (None: it is the algorithm's own).
    """

    policy: Policy
    responses_at_once: int
    remat: str | None


def fitting(algorithm: Algorithm, params: Params, rollouts: Rollouts) -> Fitting:
    """How each device learns: as the user set it, or as its memory allows."""
    if algorithm.responses_at_once is not None and not algorithm.policy.faster and algorithm.gradients == "whole":
        return Fitting(algorithm.policy, algorithm.responses_at_once, None)
    (P, G, T), L = rollouts.tokens_PGT.shape, rollouts.prompts.tokens_PL.shape[1]
    return what_fits(algorithm, P, G, L, T, mesh_of(params), device_memory())


@cache
def what_fits(algorithm: Algorithm, P: int, G: int, L: int, T: int, mesh: Mesh | None, memory: int) -> Fitting:
    """How a device with so many bytes learns from responses of T tokens to P prompts of L tokens: with the fastest
    policy that leaves room for `LEAST_TOKENS`, from as many responses at once as then fit.

    If none is estimated to fit, it is the policy that keeps least and the fewest responses, and the compiler says
    whether the program is too large.
    """
    all_choices = choices_for(algorithm, P, G, mesh)
    asked = algorithm.responses_at_once
    choices = all_choices if asked is None else [next((n for n in all_choices if n <= asked), all_choices[-1])]

    def fits(policy: Policy, n: int) -> bool:
        return needed_bytes(algorithm, n, all_choices[0], G, L, T, mesh, policy) <= FRACTION * memory

    worthwhile = [n for n in choices if n * T >= LEAST_TOKENS] or choices[:1]
    whole = algorithm.gradients == "whole"  # else layers are computed again, whatever a policy keeps
    tried = ((policy, name, n) for name, policy in algorithm.policy.faster.items() for n in worthwhile if whole)
    found = next((Fitting(policy, n, name) for policy, name, n in tried if fits(policy, n)), None)
    if found is None:
        n = next((n for n in choices if fits(algorithm.policy, n)), choices[-1])
        found = Fitting(algorithm.policy, n, None)
    if found.responses_at_once < choices[0]:
        said = "memory for learning from %d of a device's %d responses at once (algorithm.responses_at_once sets this)"
        logging.getLogger("grpo_jax").info(said, found.responses_at_once, choices[0])
    if found.remat is not None:
        logging.getLogger("grpo_jax").info("memory for model.remat=%s", found.remat)
    return found


@cache
def with_policy(algorithm: Algorithm, policy: Policy) -> Algorithm:
    """The algorithm with a policy that computes the same; the same object for the same policy, and so one program."""
    return algorithm if policy is algorithm.policy else replace(algorithm, policy=policy)


def choices_for(algorithm: Algorithm, P: int, G: int, mesh: Mesh | None) -> list[int]:
    """The numbers of responses, to P prompts in all, that a device can learn from at once, all of a minibatch first.

    Gradients that are applied layer by layer cannot be added up, so that this is then the only one.
    """
    found = choices_of(P // algorithm.minibatches, G, mesh, algorithm.compares_in_groups)
    return found if algorithm.gradients == "whole" else found[:1]


def choices_of(P: int, G: int, mesh: Mesh | None, whole_groups: bool = False) -> list[int]:
    """The numbers of responses that a device can learn from at once, all of a minibatch of P prompts first. With
    `whole_groups` there are none that split a group.
    """
    spread, shards = devices_per_group(P, G, mesh), 1 if mesh is None else prompt_shards(mesh)
    subgroups, each = P * spread // shards, G // spread
    whole = [n * each for n in range(subgroups, 0, -1) if subgroups % n == 0]
    return whole + [each // n for n in range(2, each + 1) if each % n == 0 and not whole_groups]


def needed_bytes(
    algorithm: Algorithm, n: int, most: int, G: int, L: int, T: int, mesh: Mesh | None, policy: Policy | None = None
) -> int:
    """The estimated peak, on one device, of learning from n responses at once, of `most` in a minibatch, with the
    algorithm's policy or another that computes the same.
    """
    policy = algorithm.policy if policy is None else policy
    shapes, trained = algorithm.policy.shapes, algorithm.policy.trained(algorithm.policy.shapes)
    learned = _device_bytes(trained, mesh)
    first = partial(first_state, algorithm.optimizer, gradients=algorithm.gradients)
    held = _device_bytes(shapes, mesh) + _device_bytes(
        on_device(algorithm.optimizer, jax.eval_shape(first, trained)), mesh
    )
    held += learned if algorithm.objective.needs_reference else 0
    held += _device_bytes(algorithm.teacher[1], mesh) if algorithm.teacher is not None else 0
    held += _judge_bytes(algorithm, mesh)
    gradients = _gradient_bytes(algorithm, trained, n == most, mesh)
    kept, D, V = _kept_bytes(policy, max(n // G, 1), min(n, G), L, T)
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    divided = mesh is not None and prompt_shards(mesh) > mesh.shape["data"]  # along D
    gathered = _head_bytes(policy) * V * D // tensor if divided else 0
    logits = 2 * 4 * CHUNK_TOKENS * V // tensor
    return held + gradients + int(MARGIN * (gathered + logits + kept))


def _head_bytes(policy: Policy) -> int:
    """Bytes for each number of the head where it is gathered: frozen in its own dtype, else float32 with a gradient."""
    of_words = {name: a for name, a in policy.shapes.items() if axes_of(name).startswith("V")}
    frozen = of_words and policy.frozen.issuperset(of_words)
    return max(a.dtype.itemsize for a in of_words.values()) if frozen else 2 * 4


def _gradient_bytes(algorithm: Algorithm, trained: Params, alone: bool, mesh: Mesh | None) -> int:
    """The bytes of the gradient of a microbatch, and unless it is alone of the sums. Layers that are added to their
    sums, or whose step is taken, in the backward pass have one gradient at a time.
    """
    learned, summed = _device_bytes(trained, mesh), 0 if alone else _device_bytes(gradient_sums(trained), mesh)
    if LAYERS not in trained or (alone and algorithm.gradients == "whole"):
        return learned + summed
    of_layers = _device_bytes(trained[LAYERS], mesh)
    return learned + summed - of_layers + of_layers // len(jax.tree.leaves(trained[LAYERS])[0])


def gradient_sums(gradient: Params) -> Params:
    """The shapes of the sums of several microbatches' gradients: float32, or small ones would be lost in them."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.promote_types(a.dtype, jnp.float32)), gradient)


def _judge_bytes(algorithm: Algorithm, mesh: Mesh | None) -> int:
    """The bytes of a judge's weights on one device: each host has a copy of its own."""
    if algorithm.judge is None:
        return 0
    own = None if mesh is None else own_mesh(mesh, mesh.devices.flat[0].process_index)
    return _device_bytes(algorithm.judge[1], own)


@cache
def _kept_bytes(policy: Policy, P: int, G: int, L: int, T: int) -> tuple[int, int, int]:
    """What the forward pass over P prompts with G responses each keeps for the backward pass, beside the weights; and
    the width and the vocabulary of the model.
    """
    prompts = prompt_shapes(P, L)
    rollouts = rollout_shapes(prompts, G, T, Distribution())

    def kept(params: Params, rollouts: Rollouts, slots_PBW: Array) -> Any:
        def logprobs(trained: Params) -> tuple[Array, Array]:
            return token_logprobs(policy, params | trained, rollouts, slots_PBW)

        return jax.vjp(logprobs, policy.trained(params))[1]

    residuals = jax.eval_shape(kept, policy.shapes, rollouts, rollouts.tokens_PGT)
    last_PD = jax.eval_shape(policy.read, policy.shapes, prompts)[0]
    V = jax.eval_shape(policy.unembed, policy.shapes, last_PD).shape[-1]
    return _device_bytes(residuals, None) - _device_bytes(policy.shapes, None), last_PD.shape[-1], V


def _device_bytes(tree: Any, mesh: Mesh | None) -> int:
    """The bytes of a tree on one device, sharded as weights are."""
    leaves = jax.tree.leaves(tree)
    shapes = [a.shape for a in leaves]
    if mesh is not None:
        shardings = jax.tree.leaves(weight_shardings(tree, mesh))
        shapes = [sharding.shard_shape(a.shape) for a, sharding in zip(leaves, shardings, strict=True)]
    return sum(a.dtype.itemsize * math.prod(shape) for a, shape in zip(leaves, shapes, strict=True))
