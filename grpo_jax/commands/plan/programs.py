"""A config's own programs, compiled for a TPU slice on any machine, and what they need there."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.commands.plan.case import Case, fitted
from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.commands.plan.lengths import Size
from grpo_jax.devices.memory import device_bytes
from grpo_jax.devices.sharding import (
    CACHE,
    PROMPTS,
    even_vocabulary,
    prefix_sharding,
    serving_shardings,
    weight_shardings,
    with_shardings,
)
from grpo_jax.learner.by_layer import descend_by_layer
from grpo_jax.learner.microbatches import Cut
from grpo_jax.learner.states import shardings_of
from grpo_jax.learner.update import add_gradient, descend, microbatch_logprobs, zeros
from grpo_jax.objectives import first_coefficients
from grpo_jax.rollout import stages
from grpo_jax.rollout.serving import row_keys
from grpo_jax.rollout.sizes import prefix_length, ring_lengths
from grpo_jax.structs import Batch, Params, prompt_shapes, rollout_shapes


@dataclass(frozen=True)
class Phase:
    """What one phase of a step needs on each device, in bytes. `peak` is None if the program does not fit."""

    peak: int | None
    argument: int = 0
    temporary: int = 0
    collective: int = 0
    message: str = ""

    @property
    def asked(self) -> int | None:
        """What the compiler would have needed at least, if it has found no room and said so."""
        found = re.search(r"Used ([\d.]+)([GM]) of|\(([\d.]+)([GM])\) exceeds", self.message)
        if found is None:
            return None
        number, unit = (each for each in found.groups() if each is not None)
        return int(float(number) * 2 ** {"G": 30, "M": 20}[unit])


def _without_peak_if_too_large(plan: Callable[..., Phase]) -> Callable[..., Phase]:
    """A plan that returns a phase without a peak, instead of raising, if the compiler finds no room."""

    @wraps(plan)
    def planned(*arguments: Any) -> Phase:
        try:
            return plan(*arguments)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Phase(None, message=str(error).split("\n")[0])

    return planned


@_without_peak_if_too_large
def plan_sampling(case: Case) -> Phase:
    """Reading the prompts and the decoding loop, while the train state stays in memory. What a decoding step moves
    counts `max_tokens` times.
    """
    sampler, rounds = case.sampler, case.sampled[2]
    reading, decoding = compile_reading(case), compile_decoding(case)
    used, before = memory_of(decoding), memory_of(reading)
    served = decoding_inputs(case)[0]
    state, weights = device_bytes(case.state) + case.other_bytes, device_bytes(case.state.params)
    moved = collective_bytes(compile_serving(case).as_text() or "")
    moved += rounds * collective_bytes(reading.as_text() or "")
    moved += rounds * collective_bytes(decoding.as_text() or "", iterations=sampler.max_tokens)
    # One host reads with the weights, while the copy stays in memory; one of several reads with the copy.
    waiting = state - weights + device_bytes(served) if case.slice.hosts == 1 else state
    return Phase(
        max(used.peak_memory_in_bytes + state, before.peak_memory_in_bytes + waiting),
        used.argument_size_in_bytes,
        max(used.temp_size_in_bytes, before.temp_size_in_bytes),
        moved,
    )


def microbatches(case: Case, how: Cut) -> int:
    """How many microbatches a step has."""
    return case.settings.prompts * how.spread // how.subgroups * how.splits


@_without_peak_if_too_large
def plan_learning(case: Case, responses_at_once: int) -> Phase:
    """The gradient of a microbatch or the optimiser, whichever needs more, and what all microbatches of a step move."""
    how = case.cut(responses_at_once)
    if case.algorithm.gradients == "by_layer":
        return _plan_by_layer(case, how)
    learn, step = compile_learning(case, how)
    used, after = memory_of(learn), memory_of(step)
    moved = microbatches(case, how) * collective_bytes(learn.as_text() or "")
    moved += case.algorithm.minibatches * collective_bytes(step.as_text() or "")
    waiting = device_bytes((case.state.opt_state, case.state.reference))
    return Phase(
        max(device_peak(used) + waiting, device_peak(after)) + case.other_bytes,
        used.argument_size_in_bytes,
        used.temp_size_in_bytes,
        moved,
    )


def _plan_by_layer(case: Case, how: Cut) -> Phase:
    """Learning from a minibatch layer by layer, which is one program."""
    algorithm, learn = case.algorithm, lower_by_layer(case, how).compile()
    used = memory_of(learn)
    return Phase(
        device_peak(used) + case.other_bytes,
        used.argument_size_in_bytes,
        used.temp_size_in_bytes,
        algorithm.minibatches * collective_bytes(learn.as_text() or ""),
    )


def lower_by_layer(case: Case, how: Cut) -> jax.stages.Lowered:
    """Learning from a minibatch layer by layer."""
    state, (chosen, slots) = case.state, microbatch_shapes(case, how)
    return descend_by_layer.lower(case.algorithm, shardings_of(state), state, chosen, slots, 1, math.inf, 0)


def memory_of(compiled: jax.stages.Compiled) -> Any:
    """What the compiler says of a program's memory, in bytes."""
    return compiled.memory_analysis()


def device_peak(used: Any) -> int:
    """The most bytes of a program on the device; the compiler's own peak has what is in the host's memory, too."""
    kept = used.host_argument_size_in_bytes + used.host_output_size_in_bytes - used.host_alias_size_in_bytes
    return used.peak_memory_in_bytes - kept - used.host_temp_size_in_bytes


def lower_serving(case: Case) -> jax.stages.Lowered:
    """The program that makes the copy of the weights for sampling, gathered from wherever the weights are."""
    policy, params = case.algorithm.policy, case.state.params

    def serve(params: Params) -> Params:
        return even_vocabulary(policy.serve(params), case.mesh)

    shardings = serving_shardings(jax.eval_shape(serve, params), case.mesh)
    return jax.jit(serve, out_shardings=shardings).lower(params)


def lower_reading(case: Case) -> jax.stages.Lowered:
    """The pass over the prompts that are held at once, which makes the first and shortest cache.

    One host of several reads with its copy for sampling.
    """
    sampler, mesh, (P, G, _) = case.sampler, case.host_mesh, case.sampled
    shape = (prefix_length(case.length), G, rings(case)[0])
    several = mesh if mesh.size > 1 else None
    params = case.state.params if case.slice.hosts == 1 else decoding_inputs(case)[0]
    prompts = fitted(prompt_shapes(P, case.length), PROMPTS, mesh)
    return stages.read.lower(case.algorithm.policy, params, prompts, shape, sampler.int8_cache, several)


def compile_serving(case: Case) -> jax.stages.Compiled:
    """The program that makes the copy for sampling, compiled."""
    return lower_serving(case).compile()


def compile_reading(case: Case) -> jax.stages.Compiled:
    """That program, compiled."""
    return lower_reading(case).compile()


def lower_decoding(case: Case, size: Size | None = None) -> jax.stages.Lowered:
    """The decoding loop with rows of this size; None is all rows and the longest cache."""
    served, shared, own, rows = decoding_inputs(case, size)
    sampler, mesh = case.sampler, case.host_mesh
    until = stages.Until(2**30, -1, 1, rows.length_PG.shape[0] + 1)
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
    )


def compile_decoding(case: Case) -> jax.stages.Compiled:
    """The decoding loop with all rows and the longest cache, compiled."""
    return lower_decoding(case).compile()


def decoding_inputs(case: Case, size: Size | None = None) -> tuple[Any, Any, Any, Any]:
    """The copy for sampling, both caches and the rows; in full size if `size` is None."""
    policy, sampler, mesh = case.algorithm.policy, case.sampler, case.host_mesh
    P, G, S = (*case.sampled[:2], rings(case)[-1]) if size is None else size
    L, T = case.length, sampler.max_tokens
    served = jax.eval_shape(lambda params: even_vocabulary(policy.serve(params), mesh), policy.shapes)
    prompts = prompt_shapes(P, L)
    keys = jax.eval_shape(lambda: row_keys(jax.random.key(0), P, G))
    read = partial(stages.read, policy, shape=(prefix_length(L), G, S), int8=sampler.int8_cache, mesh=None)
    last_PD, shared, own = jax.eval_shape(read, policy.shapes, prompts)
    start = partial(stages.begin, policy, sampler.distribution, max_tokens=T, S=S, mesh=None)
    rows = jax.eval_shape(lambda served, *rest: start(served, *rest), served, prompts, last_PD, keys)
    return (
        with_shardings(served, serving_shardings(served, mesh)),
        with_shardings(shared, jax.tree.map(lambda a: prefix_sharding(a.shape, mesh), shared)),
        fitted(own, CACHE, mesh),
        fitted(rows, PROMPTS, mesh),
    )


def rings(case: Case) -> list[int]:
    """The lengths of the responses' cache."""
    return ring_lengths(case.sampler.max_tokens, case.sampler.live_block(case.algorithm.policy))


def compile_learning(case: Case, how: Cut) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """The gradient of a microbatch, added to that of others if there are any, and the optimiser's step."""
    learn, step = lower_learning(case, how)
    return learn.compile(), step.compile()


def lower_learning(case: Case, how: Cut) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """These two programs, not compiled yet."""
    algorithm, state, mesh = case.algorithm, case.state, case.mesh
    chosen, slots = microbatch_shapes(case, how)
    shardings = shardings_of(state)
    alone = how.splits == 1 and how.subgroups == case.settings.prompts // algorithm.minibatches * how.spread
    if alone:
        total, _ = add_gradient.eval_shape(algorithm, shardings, state.params, None, chosen, slots)
    else:
        total = zeros.eval_shape(algorithm, shardings, state.params, chosen, slots)
    replicated = NamedSharding(mesh, PartitionSpec())
    total = with_shardings(total, (*jax.tree.map(lambda _: replicated, total[:2]), weight_shardings(total[2], mesh)))
    before = None if alone else total
    learn = add_gradient.lower(algorithm, shardings, state.params, before, chosen, slots)
    return learn, descend.lower(algorithm, shardings, state, total, 1, math.inf)


def lower_logprobs(case: Case, how: Cut, name: str) -> jax.stages.Lowered:
    """The log-probs of a microbatch under another policy, by its name in a `Batch`."""
    policy, params = case.algorithm.compared_with(case.state)[name]
    params = with_shardings(params, weight_shardings(params, case.mesh))
    chosen, slots = microbatch_shapes(case, how)
    return microbatch_logprobs.lower(policy, params, chosen.rollouts, slots)


def microbatch_shapes(case: Case, how: Cut) -> tuple[Batch, jax.ShapeDtypeStruct]:
    """A microbatch with the longest responses, and its slots."""
    sampler, objective, T = case.sampler, case.algorithm.objective, case.sampler.max_tokens
    P, G = how.subgroups, sampler.responses // how.spread // how.splits
    rollouts = rollout_shapes(prompt_shapes(P, case.length), G, T, sampler.distribution)
    numbers_PGT, advantages_PG = rollouts.logprobs_PGT, jax.ShapeDtypeStruct((P, G), jnp.float32)
    batch = Batch(
        rollouts,
        cast(Array, advantages_PG),
        numbers_PGT,
        keep_PGT=numbers_PGT if objective.masks else None,
        term_weights_PGT=(numbers_PGT,) * len(objective.terms),
    )
    batch = replace(batch, **dict.fromkeys(case.algorithm.compared_with(case.state), numbers_PGT))
    if case.algorithm.load_balancing:
        batch = replace(batch, balance=cast(Array, jax.ShapeDtypeStruct((), jnp.float32)))
    batch, slots = fitted((batch, rollouts.tokens_PGT), PROMPTS, case.mesh)
    return replace(batch, coefficients=jax.eval_shape(partial(first_coefficients, objective))), slots
