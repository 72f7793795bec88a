"""`grpo-jax plan`: compiles a config's own programs for a TPU slice, on any machine, and says what fits."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.commands.train import Train, check_microbatch
from grpo_jax.config import Config, ConfigError
from grpo_jax.grpo import Algorithm, add_gradient, begin, check_split, descend, layout_of
from grpo_jax.models import Shape, decoder_policy, find_shape
from grpo_jax.rollout import Sampler, stages
from grpo_jax.rollout.plan import prefix_length
from grpo_jax.runtime.hlo import collective_bytes
from grpo_jax.runtime.sharding import (
    CACHE,
    PROMPTS,
    check_prompts,
    fit,
    on,
    prefix_sharding,
    prompt_parts,
    serving_shardings,
    weight_shardings,
)
from grpo_jax.runtime.sizes import bucket
from grpo_jax.runtime.topology import GIB, Slice, find_slice
from grpo_jax.structs import Batch, Prompts, Rollouts, TrainState

UTILISATION = 0.4  # of a chip's arithmetic while learning, and of its memory's bandwidth while decoding


@dataclass(frozen=True)
class Case:
    """What is compiled: a config on a slice."""

    algorithm: Algorithm
    shape: Shape
    settings: Train
    slice: Slice
    mesh: Mesh
    remat: str

    @property
    def state(self) -> TrainState:
        """The state's shapes, laid out."""
        params = jax.eval_shape(self.algorithm.policy.init, jax.random.key(0))
        state = jax.eval_shape(partial(begin, self.algorithm), params)
        return placed(state, weight_shardings(state, self.mesh))


@dataclass(frozen=True)
class Phase:
    """What one phase of a step needs on each device, in bytes; None where the compiler found no room."""

    peak: float | None
    argument: int = 0
    temporary: int = 0
    collective: int = 0
    message: str = ""


def run(arguments: argparse.Namespace) -> int:
    """Prints what fits, and writes it to a file if asked; 0 if it fits, 1 if not."""
    jax.config.update("jax_enable_compilation_cache", False)  # such programs cannot be loaded again without a TPU
    try:
        case = assemble(arguments.config, find_slice(arguments.topology))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(introduction(case), flush=True)
    weights, state = device_bytes(case.state.params), device_bytes(case.state)
    sample = timed("sampling", partial(plan_sampling, case))
    train = timed("learning", partial(plan_learning, case, microbatch(case)))
    limit = case.slice.chip.memory
    fits = all(phase.peak is not None and phase.peak <= limit for phase in (sample, train))
    largest = search(case, train) if sample.peak is not None else None
    figures = {
        "fits": fits,
        "hbm_limit_bytes": limit,
        "weights_bytes": weights,
        "optimizer_bytes": state - weights,
        "sampling_copy_bytes": sampling_copy_bytes(case),
        "kv_cache_bytes": cache_bytes(case),
        "largest_microbatch": largest,
        "ppo_critic_bytes": state + weights,
        "sample": plain(sample),
        "train": plain(train),
    } | roofline(case)
    print(table(case, figures, sample, train))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if fits else 1


def assemble(config: Config, found: Slice) -> Case:
    """The objects of a config for a slice; no weight is read and no data."""
    settings: Train = config.train.build()
    model = config.model.arguments
    shape = find_shape(model["name"])
    kind = jnp.dtype("bfloat16" if model["activations"] == "auto" else model["activations"])
    policy = decoder_policy(shape, kind, model["remat"], platform="tpu")
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
    )
    mesh = config.mesh.build().mesh(found.devices())
    check_prompts(settings.prompts, mesh)
    check_split(algorithm, settings.prompts, sampler.responses)
    check_microbatch(algorithm, settings.prompts, mesh)
    return Case(algorithm, shape, settings, found, mesh, model["remat"])


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def fitted(tree: Any, spec: PartitionSpec, mesh: Mesh) -> Any:
    """Shapes laid out by one rule."""
    return placed(tree, jax.tree.map(lambda a: fit(spec, a.shape, mesh), tree))


def device_bytes(tree: Any) -> float:
    """Bytes of an array or a tree on one device."""
    return float(
        sum(
            a.dtype.itemsize * jnp.prod(jnp.array(a.sharding.shard_shape(a.shape), float)).item()
            for a in jax.tree.leaves(tree)
        )
    )


def prompt_length(case: Case) -> int:
    """Positions of the longest prompts."""
    return bucket(case.settings.max_prompt_tokens)


def held(case: Case) -> int:
    """Prompts that are sampled from at once."""
    parts, at_once = prompt_parts(case.mesh), case.algorithm.sample.at_once
    return case.settings.prompts if at_once is None else min(case.settings.prompts, -(-at_once // parts) * parts)


def decoding_inputs(case: Case) -> tuple[Any, Any, Any, Any]:
    """The sampling copy, both caches and the rows, in full size."""
    policy, sampler, mesh = case.algorithm.policy, case.algorithm.sample, case.mesh
    P, G, L, T = held(case), sampler.responses, prompt_length(case), sampler.max_tokens
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    served = jax.eval_shape(policy.serve, shapes)
    prompts = Prompts(jax.ShapeDtypeStruct((P, L), jnp.int32), jax.ShapeDtypeStruct((P, L), bool))
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


def compile_decoding(case: Case) -> jax.stages.Compiled:
    """The decoding loop with every row and the longest cache."""
    served, shared, own, rows = decoding_inputs(case)
    sampler, mesh = case.algorithm.sample, case.mesh
    until = stages.Until(2**30, -1, 1, held(case) + 1)
    with on(mesh if mesh.size > 1 else None):
        return stages.decode.lower(
            case.algorithm.policy,
            sampler.distribution,
            served,
            shared,
            own,
            rows,
            sampler.max_tokens,
            until,
            prompt_parts(mesh),
        ).compile()


def microbatch(case: Case) -> int:
    """Prompts that are learned from at once."""
    each = case.settings.prompts // case.algorithm.minibatches
    return each if case.algorithm.microbatch is None else case.algorithm.microbatch


def part_shapes(case: Case, P: int) -> tuple[Batch, Any]:
    """A part of P prompts with the longest responses, and its slots."""
    sampler, mesh = case.algorithm.sample, case.mesh
    G, L, T = sampler.responses // case.algorithm.group_parts, prompt_length(case), sampler.max_tokens

    def rows(shape: tuple[int, ...], kind: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=fit(PROMPTS, shape, mesh))

    prompts = Prompts(rows((P, L), jnp.int32), rows((P, L), bool))
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
    kept = case.algorithm.minibatches > 1 or (objective.needs_reference and objective.kl.place == "reward")
    ref_PGT = numbers_PGT if objective.needs_reference else None
    batch = Batch(rollouts, rows((P, G), jnp.float32), numbers_PGT, numbers_PGT if kept else None, ref_PGT)
    return batch, rows((P, G, T), jnp.int32)


def compile_learning(case: Case, P: int) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """The gradient of a part of P prompts, added to that of others if there are any, and the optimiser's step."""
    algorithm, state, mesh = case.algorithm, case.state, case.mesh
    part, slots = part_shapes(case, P)
    layout = layout_of(state)
    with on(mesh if mesh.size > 1 else None):
        total = jax.eval_shape(partial(add_gradient, algorithm, layout), state.params, None, part, slots)
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = (*jax.tree.map(lambda _: whole, total[:2]), weight_shardings(total[2], mesh))
        total = placed(total, shardings)
        alone = P * algorithm.minibatches == case.settings.prompts and algorithm.group_parts == 1
        learn = add_gradient.lower(algorithm, layout, state.params, None if alone else total, part, slots).compile()
        return learn, descend.lower(algorithm, layout, state, total[2], 1).compile()


def plan_sampling(case: Case) -> Phase:
    """The decoding loop, while the whole state waits."""
    compiled = compile_decoding(case)
    used = compiled.memory_analysis()
    return Phase(
        used.peak_memory_in_bytes + device_bytes(case.state) + reference_bytes(case),
        used.argument_size_in_bytes,
        used.temp_size_in_bytes,
        collective_bytes(compiled.as_text()) * case.algorithm.sample.max_tokens,
    )


def plan_learning(case: Case, P: int) -> Phase:
    """Gradient and optimiser, whichever needs more, and what all parts of a step move between devices."""
    learn, step = compile_learning(case, P)
    used, after = learn.memory_analysis(), step.memory_analysis()
    parts = case.settings.prompts // P * case.algorithm.group_parts
    moved = parts * collective_bytes(learn.as_text())
    moved += case.algorithm.minibatches * collective_bytes(step.as_text())
    waiting = device_bytes(case.state.opt_state)
    return Phase(
        max(used.peak_memory_in_bytes + waiting, after.peak_memory_in_bytes) + reference_bytes(case),
        used.argument_size_in_bytes,
        used.temp_size_in_bytes,
        moved,
    )


def reference_bytes(case: Case) -> float:
    """The copy of the first weights on each device, if the objective compares with it."""
    return device_bytes(case.state.params) if case.algorithm.objective.needs_reference else 0.0


def timed(name: str, work: Callable[[], Phase]) -> Phase:
    """A phase, with a line about how long it took to compile; without a peak if the compiler found no room."""
    begun = time.monotonic()
    try:
        phase = work()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        phase = Phase(None, message=str(error).split("\n")[0])
    print(f"compiled {name} in {time.monotonic() - begun:.0f} s", flush=True)
    return phase


def search(case: Case, present: Phase) -> int | None:
    """The most prompts to learn from at once that fit, found by halving the choices; None if not even the fewest do."""
    each, parts = case.settings.prompts // case.algorithm.minibatches, prompt_parts(case.mesh)
    choices = [n for n in range(1, each + 1) if each % n == 0 and n % parts == 0]
    known = {microbatch(case): fits(case, present)}
    best = None
    while choices:
        middle = choices[-1] if each in choices else choices[len(choices) // 2]  # all at once adds no gradients up
        if middle not in known:
            phase = timed(f"learning from {middle} prompts at once", partial(plan_learning, case, middle))
            known[middle] = fits(case, phase)
        best = middle if known[middle] else best
        choices = [n for n in choices if (n > middle) == known[middle] and n != middle]
    return best


def fits(case: Case, phase: Phase) -> bool:
    """Whether a phase fits a device."""
    return phase.peak is not None and phase.peak <= case.slice.chip.memory


def sampling_copy_bytes(case: Case) -> float:
    """The weights that sampling reads, on each device."""
    return device_bytes(decoding_inputs(case)[0])


def cache_bytes(case: Case) -> float:
    """Keys and values of prompts and responses, on each device."""
    _, shared, own, _ = decoding_inputs(case)
    return device_bytes(shared) + device_bytes(own)


def roofline(case: Case) -> dict[str, float]:
    """Seconds of a step if learning reached `UTILISATION` of the arithmetic and decoding that of the bandwidth."""
    sampler, chip, chips = case.algorithm.sample, case.slice.chip, case.slice.chips
    P, G, L, T = case.settings.prompts, sampler.responses, prompt_length(case), sampler.max_tokens
    size = sum(a.size for a in jax.tree.leaves(jax.eval_shape(case.algorithm.policy.init, jax.random.key(0))))
    learning = 6 * size * P * (L + G * T) * (4 / 3) / (chips * chip.flops * UTILISATION)
    rounds = -(-P // held(case))
    decoding = rounds * T * (sampling_copy_bytes(case) + cache_bytes(case)) / (chip.bandwidth * UTILISATION)
    return {"estimated_sample_s": decoding, "estimated_train_s": learning}


def plain(phase: Phase) -> dict[str, int | float | None]:
    """A phase as JSON has it."""
    return {
        "peak_hbm_bytes": phase.peak,
        "argument_bytes": phase.argument,
        "temp_bytes": phase.temporary,
        "collective_bytes": phase.collective,
    }


def introduction(case: Case) -> str:
    """What is compiled, in words."""
    sampler = case.algorithm.sample
    layout = ", ".join(f"{name} {size}" for name, size in case.mesh.shape.items())
    return (
        f"{case.slice.name}: {case.slice.chips} chip(s) of {case.slice.chip.memory / GIB:.2f} GiB ({layout})\n"
        f"{case.settings.prompts} prompts of {prompt_length(case)} tokens, {sampler.responses} responses of"
        f" {sampler.max_tokens}; {microbatch(case)} prompts learned from at once; compiling ..."
    )


def table(case: Case, figures: dict[str, Any], sample: Phase, train: Phase) -> str:
    """Memory of each device, and whether it is enough."""

    def gib(number: int | float | None) -> str:
        if number is None:
            return "more than there is"
        return f"{number / GIB:7.2f} GiB" if number > GIB / 10 else f"{number / 2**20:7.2f} MiB"

    lines = [
        f"weights         {gib(figures['weights_bytes'])}   (float32, on each device)",
        f"optimiser       {gib(figures['optimizer_bytes'])}",
        f"reference       {gib(reference_bytes(case))}",
        f"sampling copy   {gib(figures['sampling_copy_bytes'])}",
        f"keys and values {gib(figures['kv_cache_bytes'])}",
        f"sampling needs  {gib(sample.peak)}   temporaries {gib(sample.temporary)},"
        f" moved between devices {gib(sample.collective)} a step",
        f"learning needs  {gib(train.peak)}   temporaries {gib(train.temporary)},"
        f" moved between devices {gib(train.collective)} a step",
        f"limit           {gib(figures['hbm_limit_bytes'])}",
        f"largest microbatch that fits: {figures['largest_microbatch'] or 'none found'}",
        *(phase.message for phase in (sample, train) if phase.message),
        f"PPO's critic would add {gib(figures['ppo_critic_bytes'])} (a second model and its optimiser)",
        f"estimate: sampling {figures['estimated_sample_s']:.1f} s, learning {figures['estimated_train_s']:.1f} s a"
        f" step, at {UTILISATION} of bandwidth and of arithmetic, every response at its longest",
    ]
    if figures["fits"]:
        return "\n".join([*lines, "It fits."])
    return "\n".join([*lines, "It does not fit. " + advice(case, figures, sample)])


def advice(case: Case, figures: dict[str, Any], sample: Phase) -> str:
    """The three settings that help most."""
    if sample.peak is None or sample.peak > case.slice.chip.memory:
        found = ["rollout.at_once (fewer prompts held)", "rollout.int8_cache=true", "rollout.max_tokens"]
    else:
        fewer = figures["largest_microbatch"]
        found = [f"algorithm.microbatch={fewer}" if fewer else "algorithm.group_parts (fewer responses at once)"]
        found += ["rollout.max_tokens" if case.remat == "full" else "model.remat=full"]
        found += ["optimizer.moments=bfloat16"]
    if case.mesh.shape["data"] > 1:
        found = [*found[:2], "mesh.fsdp (divide weights and optimiser over more devices)"]
    return "What helps most: " + ", ".join(found) + "."
