"""A config's own programs, compiled for a TPU slice on any machine, and what they need there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.algorithm import Algorithm
from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.commands.plan.topology import Slice
from grpo_jax.config import Config
from grpo_jax.devices.memory import device_bytes
from grpo_jax.devices.mesh import check_hosts, host_mesh, on, prompt_parts
from grpo_jax.devices.sharding import (
    CACHE,
    PROMPTS,
    devices_per_group,
    fit,
    prefix_sharding,
    serving_shardings,
    weight_shardings,
)
from grpo_jax.grpo import init
from grpo_jax.learner.microbatches import Cut, cut
from grpo_jax.learner.update import add_gradient, check_split, descend, shardings_of
from grpo_jax.models import Shape, decoder_policy, find_shape
from grpo_jax.objectives import first_coefficients
from grpo_jax.rollout import Sampler, stages
from grpo_jax.rollout.sizes import prefix_length, ring_lengths
from grpo_jax.structs import Batch, Params, Policy, Prompts, Rollouts, TrainState, bucket
from grpo_jax.training.overview import copy_bytes
from grpo_jax.training.session import Settings


@dataclass(frozen=True)
class Case:
    """What is compiled: a config on a slice."""

    config: Config
    algorithm: Algorithm
    shape: Shape
    settings: Settings
    slice: Slice
    mesh: Mesh
    host_mesh: Mesh  # what one host samples with; all of the mesh, if there is one host

    @property
    def state(self) -> TrainState:
        """The state's shapes, laid out."""
        params = self.algorithm.policy.shapes
        state = jax.eval_shape(partial(init, self.algorithm), params)
        return placed(state, weight_shardings(state, self.mesh))

    @property
    def length(self) -> int:
        """Positions of the longest prompts."""
        return bucket(self.settings.max_prompt_tokens)

    @property
    def shares(self) -> int:
        """Rows that each prompt takes, with a part of its responses each."""
        return devices_per_group(self.settings.prompts, self.algorithm.sample.responses, self.mesh)

    @property
    def held(self) -> int:
        """Prompts that are sampled from at once."""
        parts, at_once = prompt_parts(self.mesh) // self.shares, self.algorithm.sample.at_once
        prompts = self.settings.prompts
        return prompts if at_once is None else min(prompts, -(-at_once // parts) * parts)

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that one host samples at once, and the responses in each."""
        hosts = self.mesh.size // self.host_mesh.size
        return self.held * self.shares // hosts, self.algorithm.sample.responses // self.shares

    def cut(self, responses_at_once: int | None) -> Cut:
        """How minibatches are cut if each device learns from so many responses at once."""
        responses, minibatches = self.algorithm.sample.responses, self.algorithm.minibatches
        return cut(self.settings.prompts, responses, minibatches, responses_at_once, self.mesh)

    @property
    def reference_bytes(self) -> int:
        """The copy of the first weights on each device, if the objective compares with it."""
        return device_bytes(self.state.reference)

    @property
    def teacher_bytes(self) -> int:
        """The teacher's weights on each device, if there is one."""
        if self.algorithm.teacher is None:
            return 0
        params = self.algorithm.teacher[1]
        return device_bytes(placed(params, weight_shardings(params, self.mesh)))


@dataclass(frozen=True)
class Phase:
    """What one phase of a step needs on each device, in bytes; no peak where the compiler found no room."""

    peak: int | None
    argument: int = 0
    temporary: int = 0
    collective: int = 0
    message: str = ""


def assemble(config: Config, found: Slice) -> Case:
    """The objects of a config for a slice; no weight is read and no data."""
    settings: Settings = config.train.build()
    shape, policy = find_policy(config.model.arguments)
    teacher = None
    if config.teacher is not None:
        taught = find_policy(config.teacher.arguments)[1]
        teacher = taught, taught.shapes
    sampler = config.rollout.build(ends=(0,), decode=str)
    if not isinstance(sampler, Sampler):
        raise ValueError("A plan is made for the native sampler; leave out rollout.use.")
    algorithm = config.algorithm.build(
        policy=policy,
        sample=sampler,
        decode=str,
        reward=len,
        objective=config.objective.build(),
        optimizer=config.optimizer.build(),
        teacher=teacher,
    )
    mesh = config.mesh.build().mesh(found.devices(), copy_bytes(policy), found.chip.memory)
    check_hosts(mesh)
    check_split(algorithm, settings.prompts, sampler.responses, mesh)
    one = mesh if found.hosts == 1 else host_mesh(mesh, found.host.devices())
    return Case(config, algorithm, shape, settings, found, mesh, one)


def find_policy(model: Mapping[str, Any]) -> tuple[Shape, Policy]:
    """The shape and the policy that a section of a config means, as they are on a TPU."""
    shape = find_shape(model["name"])
    kind = jnp.dtype("bfloat16" if model["activations"] == "auto" else model["activations"])
    return shape, decoder_policy(shape, kind, model["remat"], platform="tpu")


def _or_no_room(plan: Callable[..., Phase]) -> Callable[..., Phase]:
    """A plan that gives a phase without a peak where the compiler finds no room."""

    @wraps(plan)
    def planned(*arguments: Any) -> Phase:
        try:
            return plan(*arguments)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Phase(None, message=str(error).split("\n")[0])

    return planned


@_or_no_room
def plan_sampling(case: Case) -> Phase:
    """Reading prompts and the decoding loop, while the whole state waits; each token moves what it moves again."""
    sampler = case.algorithm.sample
    reading, decoding = compile_reading(case), compile_decoding(case)
    used, before = decoding.memory_analysis(), reading.memory_analysis()
    served = decoding_inputs(case)[0]
    state, weights = device_bytes(case.state) + case.teacher_bytes, device_bytes(case.state.params)
    rounds = -(-case.settings.prompts // case.held)
    moved = collective_bytes(compile_serving(case).as_text())
    moved += rounds * collective_bytes(reading.as_text())
    moved += rounds * collective_bytes(decoding.as_text(), turns=sampler.max_tokens)
    # One host reads with the weights, while the copy waits; one among several with the copy, while the weights wait.
    waiting = state - weights + device_bytes(served) if case.slice.hosts == 1 else state
    peak = max(used.peak_memory_in_bytes + state, before.peak_memory_in_bytes + waiting)
    return Phase(
        peak,
        used.argument_size_in_bytes,
        max(used.temp_size_in_bytes, before.temp_size_in_bytes),
        moved,
    )


@_or_no_room
def plan_learning(case: Case, responses_at_once: int | None) -> Phase:
    """Gradient and optimiser, whichever needs more, and what all microbatches of a step move between devices."""
    how = case.cut(responses_at_once)
    learn, step = compile_learning(case, how)
    used, after = learn.memory_analysis(), step.memory_analysis()
    microbatches = case.settings.prompts * how.spread // how.rows * how.splits
    moved = microbatches * collective_bytes(learn.as_text())
    moved += case.algorithm.minibatches * collective_bytes(step.as_text())
    waiting = device_bytes((case.state.opt_state, case.state.reference))
    return Phase(
        max(used.peak_memory_in_bytes + waiting, after.peak_memory_in_bytes) + case.teacher_bytes,
        used.argument_size_in_bytes,
        used.temp_size_in_bytes,
        moved,
    )


def compile_serving(case: Case) -> jax.stages.Compiled:
    """The copy of the weights that sampling reads, gathered from wherever the weights are."""
    policy, params = case.algorithm.policy, case.state.params
    layout = serving_shardings(jax.eval_shape(policy.serve, params), case.mesh)

    def serve(params: Params) -> Params:
        return policy.serve(params)

    return jax.jit(serve, out_shardings=layout).lower(params).compile()


def compile_reading(case: Case) -> jax.stages.Compiled:
    """The pass over the prompts that are sampled from at once, which makes the first cache, the shortest.

    One host among several reads with its copy for sampling.
    """
    sampler, mesh, (P, G) = case.algorithm.sample, case.host_mesh, case.rows
    shape = (prefix_length(case.length), G, ring_lengths(sampler.max_tokens)[0])
    several = mesh if mesh.size > 1 else None
    params = case.state.params if case.slice.hosts == 1 else decoding_inputs(case)[0]
    prompts = fitted(prompt_shapes(P, case.length), PROMPTS, mesh)
    with on(several):
        return stages.read.lower(case.algorithm.policy, params, prompts, shape, sampler.int8_cache, several).compile()


def compile_decoding(case: Case) -> jax.stages.Compiled:
    """The decoding loop with every row and the longest cache."""
    served, shared, own, rows = decoding_inputs(case)
    sampler, mesh = case.algorithm.sample, case.host_mesh
    until = stages.Until(2**30, -1, 1, case.rows[0] + 1)
    return stages.decode.lower(
        case.algorithm.policy,
        sampler.distribution,
        served,
        shared,
        own,
        rows,
        sampler.max_tokens,
        until,
        mesh if mesh.size > 1 else None,
    ).compile()


def decoding_inputs(case: Case) -> tuple[Any, Any, Any, Any]:
    """The sampling copy, both caches and the rows, in full size."""
    policy, sampler, mesh = case.algorithm.policy, case.algorithm.sample, case.host_mesh
    (P, G), L, T = case.rows, case.length, sampler.max_tokens
    shapes = policy.shapes
    served = jax.eval_shape(policy.serve, shapes)
    prompts = prompt_shapes(P, L)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (P, G)))
    read = partial(stages.read, policy, shape=(prefix_length(L), G, T), int8=sampler.int8_cache, mesh=None)
    with on(mesh if mesh.size > 1 else None):
        last_PD, shared, own = jax.eval_shape(read, shapes, prompts)
    start = partial(stages.begin, policy, sampler.distribution, max_tokens=T, S=T, mesh=None)
    rows = jax.eval_shape(lambda served, *rest: start(served, *rest), served, prompts, last_PD, keys)
    return (
        placed(served, serving_shardings(served, mesh)),
        placed(shared, jax.tree.map(lambda a: prefix_sharding(a.shape, mesh), shared)),
        fitted(own, CACHE, mesh),
        fitted(rows, PROMPTS, mesh),
    )


def compile_learning(case: Case, how: Cut) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """The gradient of a microbatch, added to that of others if there are any, and the optimiser's step."""
    algorithm, state, mesh = case.algorithm, case.state, case.mesh
    part, slots = microbatch_shapes(case, how)
    layout = shardings_of(state)
    with on(mesh if mesh.size > 1 else None):
        total, _ = jax.eval_shape(partial(add_gradient, algorithm, layout), state.params, None, part, slots)
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = (*jax.tree.map(lambda _: whole, total[:2]), weight_shardings(total[2], mesh))
        total = placed(total, shardings)
        rows = case.settings.prompts // algorithm.minibatches * how.spread
        alone = how.rows == rows and how.splits == 1
        learn = add_gradient.lower(algorithm, layout, state.params, None if alone else total, part, slots).compile()
        return learn, descend.lower(algorithm, layout, state, total[2], 1).compile()


def microbatch_shapes(case: Case, how: Cut) -> tuple[Batch, Any]:
    """A microbatch with the longest responses, and its slots."""
    sampler, mesh = case.algorithm.sample, case.mesh
    P, G = how.rows, sampler.responses // how.spread // how.splits
    T = sampler.max_tokens

    def rows(shape: tuple[int, ...], kind: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=fit(PROMPTS, shape, mesh))

    prompts = fitted(prompt_shapes(P, case.length), PROMPTS, mesh)
    flags_PGT, numbers_PGT = rows((P, G, T), bool), rows((P, G, T), jnp.float32)
    rollouts = Rollouts(
        prompts,
        rows((P, G, T), jnp.int32),
        flags_PGT,
        flags_PGT,
        numbers_PGT,
        numbers_PGT,
        rows((P, G), bool),
        distribution=sampler.distribution,
    )
    objective = case.algorithm.objective
    batch = Batch(
        rollouts,
        rows((P, G), jnp.float32),
        numbers_PGT,
        numbers_PGT if objective.masks else None,
        (numbers_PGT,) * len(objective.terms),
        jax.eval_shape(partial(first_coefficients, objective)),
        **dict.fromkeys(case.algorithm.compared_with(case.state), numbers_PGT),
    )
    return batch, rows((P, G, T), jnp.int32)


def prompt_shapes(P: int, L: int) -> Prompts:
    """Prompts without a layout."""
    return Prompts(jax.ShapeDtypeStruct((P, L), jnp.int32), jax.ShapeDtypeStruct((P, L), bool))


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def fitted(tree: Any, spec: PartitionSpec, mesh: Mesh) -> Any:
    """Shapes laid out by one rule."""
    return placed(tree, jax.tree.map(lambda a: fit(spec, a.shape, mesh), tree))
