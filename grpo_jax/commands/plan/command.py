"""`grpo-jax plan`: what a config needs on a TPU slice, whether it fits, and what would help."""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from grpo_jax.commands.plan.programs import (
    Case,
    Phase,
    assemble,
    decoding_inputs,
    plan_learning,
    plan_sampling,
)
from grpo_jax.commands.plan.topology import GIB, find_slice
from grpo_jax.config import Config, ConfigError
from grpo_jax.devices.memory import device_bytes
from grpo_jax.devices.mesh import prompt_parts
from grpo_jax.training.overview import table as layout_table

PATIENCE = 240.0  # seconds for a microbatch that only the search asks for
FAR_TOO_MUCH = 2  # times the memory; not all temporaries grow with the prompts
UTILISATION = 0.4  # of arithmetic while learning, of memory's bandwidth while decoding, of the links between chips


def run(arguments: argparse.Namespace) -> int:
    """Prints what fits, and writes it to a file if asked; 0 if it fits, 1 if not."""
    jax.config.update("jax_enable_compilation_cache", False)  # such programs cannot be loaded again without a TPU
    try:
        case = assemble(arguments.config, find_slice(arguments.topology))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(introduction(case), flush=True)
    sample = timed("sampling", partial(plan_sampling, case))
    train = timed("learning", partial(plan_learning, case, case.microbatch))
    figures = measure(case, sample, train)
    print(table(figures, sample, train))
    if figures["fits"]:
        print("It fits.")
    else:
        print(f"It does not fit. What helps most: {', '.join(advice(case, figures, sample, train))}.")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["fits"] else 1


def introduction(case: Case) -> str:
    """What is compiled, in words."""
    sampler = case.algorithm.sample
    layout = layout_table(
        case.mesh, case.slice.hosts, case.algorithm.policy, case.state, case.settings.prompts, sampler.responses
    )
    return (
        f"{case.slice.name}: {case.slice.chips} chip(s) of {case.slice.chip.memory / GIB:.2f} GiB \n{layout}\n"
        f"{case.settings.prompts} prompts of {case.length} tokens, {sampler.responses} responses of"
        f" {sampler.max_tokens}; {case.microbatch} prompts learned from at once; compiling ..."
    )


def timed(name: str, work: Callable[[], Phase | None]) -> Phase | None:
    """A phase, with a line about how long it took to compile."""
    begun = time.monotonic()
    phase = work()
    outcome = f"compiled {name} in" if phase else f"gave up compiling {name} after"
    print(f"{outcome} {time.monotonic() - begun:.0f} s", flush=True)
    return phase


def measure(case: Case, sample: Phase, train: Phase) -> dict[str, Any]:
    """All figures, as JSON has them: bytes on each device, and seconds."""
    served, shared, own, _ = decoding_inputs(case)
    weights = device_bytes(case.state.params)
    figures = {
        "fits": fits(case, sample) and fits(case, train),
        "hbm_limit_bytes": case.slice.chip.memory,
        "weights_bytes": weights,
        "optimizer_bytes": device_bytes(case.state.opt_state),
        "reference_bytes": case.reference_bytes,
        "teacher_bytes": case.teacher_bytes,
        "sampling_copy_bytes": device_bytes(served),
        "kv_cache_bytes": device_bytes((shared, own)),
        "largest_microbatch": search(case, train) if sample.peak is not None else None,
        "ppo_critic_bytes": 2 * weights + device_bytes(case.state.opt_state),
        "sample": plain(sample),
        "train": plain(train),
    }
    return figures | estimate(case, figures)


def fits(case: Case, phase: Phase) -> bool:
    """Whether a phase fits a device."""
    return phase.peak is not None and phase.peak <= case.slice.chip.memory


def search(case: Case, present: Phase) -> int | None:
    """The most prompts to learn from at once that are known to fit, found by halving the choices; None if none are.

    Temporaries grow with the prompts. What they would make far too large is not compiled, and what takes the compiler
    longer than `PATIENCE` is not waited for.
    """
    each, parts = case.settings.prompts // case.algorithm.minibatches, prompt_parts(case.mesh)
    choices = [n for n in range(1, each + 1) if each % n == 0 and n * case.shares % parts == 0]
    phases, best = {case.microbatch: present}, None
    while choices:
        middle = choices[-1] if each in choices else choices[len(choices) // 2]  # all at once adds no gradients up
        if middle not in phases and _expected(case, middle, phases) < FAR_TOO_MUCH * case.slice.chip.memory:
            found = timed(f"learning from {middle} prompts at once", partial(in_time, case, middle))
            phases[middle] = found or Phase(None)
        fitting = middle in phases and fits(case, phases[middle])
        best = middle if fitting else best
        choices = [n for n in choices if (n > middle) == fitting and n != middle]
    return best


def in_time(case: Case, prompts: int) -> Phase | None:
    """The phase of learning from so many prompts; None if the compiler needs more than `PATIENCE` seconds, or if it
    ends without an answer, as it does where this machine's own memory is too small for it.
    """
    spawned = multiprocessing.get_context("spawn")
    receiver, sender = spawned.Pipe(duplex=False)
    child = spawned.Process(target=_plan_and_send, args=(sender, case.config, case.slice.name, prompts), daemon=True)
    child.start()
    sender.close()  # or the end of the child would not be noticed
    try:
        return receiver.recv() if receiver.poll(PATIENCE) else None
    except EOFError:
        return None
    finally:
        child.kill()
        child.join()


def _plan_and_send(sender: Connection, config: Config, name: str, prompts: int) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    sender.send(plan_learning(assemble(config, find_slice(name)), prompts))


def _expected(case: Case, prompts: int, phases: dict[int, Phase]) -> float:
    """The peak of learning from so many prompts, by that of the nearest number whose peak is known."""
    known = [number for number, phase in phases.items() if phase.peak is not None]
    if not known:
        return 0.0
    nearest = min(known, key=lambda number: abs(number - prompts))
    temporary = phases[nearest].temporary
    return phases[nearest].peak - temporary + temporary * prompts / nearest


def estimate(case: Case, figures: dict[str, Any]) -> dict[str, int | float]:
    """Seconds of a step at `UTILISATION` of the chip's rates, with every response at its longest.

    Learning is 8 FLOP for each weight and token (6, and 2 for what the backward pass computes again). Decoding reads
    the weights and all keys and values for each token. What chips send each other is not hidden behind either.
    """
    sampler, chip = case.algorithm.sample, case.slice.chip
    P, G, T = case.settings.prompts, sampler.responses, sampler.max_tokens
    size = sum(a.size for a in jax.tree.leaves(case.algorithm.policy.shapes))
    learning = 8 * size * P * (case.length + G * T) / (case.slice.chips * chip.flops)
    read = figures["sampling_copy_bytes"] + figures["kv_cache_bytes"]
    decoding = -(-P // case.held) * T * read / chip.bandwidth
    moving = {phase: figures[phase]["collective_bytes"] / chip.links for phase in ("sample", "train")}
    return {
        "estimated_sample_s": (decoding + moving["sample"]) / UTILISATION,
        "estimated_train_s": (learning + moving["train"]) / UTILISATION,
    }


def plain(phase: Phase) -> dict[str, int | None]:
    """A phase as JSON has it."""
    return {
        "peak_hbm_bytes": phase.peak,
        "argument_bytes": phase.argument,
        "temp_bytes": phase.temporary,
        "collective_bytes": phase.collective,
    }


def table(figures: dict[str, Any], sample: Phase, train: Phase) -> str:
    """The figures for people."""

    def gib(number: int | float | None) -> str:
        if number is None:
            return "more than there is"
        return f"{number / GIB:7.2f} GiB" if number > GIB / 10 else f"{number / 2**20:7.2f} MiB"

    lines = [
        f"weights         {gib(figures['weights_bytes'])}   (float32, on each device)",
        f"optimiser       {gib(figures['optimizer_bytes'])}",
        f"reference       {gib(figures['reference_bytes'])}",
        *([f"teacher         {gib(figures['teacher_bytes'])}"] if figures["teacher_bytes"] else []),
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
        f" step, at {UTILISATION} of bandwidth, arithmetic and links, every response at its longest",
    ]
    return "\n".join(lines)


def advice(case: Case, figures: dict[str, Any], sample: Phase, train: Phase) -> list[str]:
    """The three settings that save most of what is too much, by what each would save; none that is set already."""
    found = _for_state(case, figures)
    if not fits(case, sample):
        found |= _for_sampling(case, figures)
    if not fits(case, train):
        found |= _for_learning(case, figures, train)
    ranked = sorted(found, key=found.get, reverse=True)
    return [*ranked, "a larger slice"][:3]


def _for_state(case: Case, figures: dict[str, Any]) -> dict[str, int | float]:
    """Settings that make what is always there smaller, and the bytes that each saves."""
    weights, optimizer = figures["weights_bytes"], case.config.optimizer
    found: dict[str, int | float] = {}
    if "moments" in optimizer.arguments:
        found["optimizer.use=adafactor"] = 2 * weights
        if optimizer.arguments["moments"] == "float32":
            found["optimizer.moments=bfloat16"] = weights / 2
    if figures["reference_bytes"]:
        found["an objective without KL"] = weights
    if data := case.mesh.shape["data"] - 1:
        saved = (weights + figures["optimizer_bytes"]) * data / (data + 1)
        found[f"mesh.fsdp={case.mesh.size // case.mesh.shape['tensor']} mesh.data=1"] = saved
    return found


def _for_sampling(case: Case, figures: dict[str, Any]) -> dict[str, int | float]:
    sampler, caches = case.algorithm.sample, figures["kv_cache_bytes"]
    found = {f"rollout.max_tokens={sampler.max_tokens // 2}": caches * sampler.responses / (2 * sampler.responses + 1)}
    if case.held > prompt_parts(case.mesh):
        found[f"rollout.at_once={case.held // 2}"] = caches / 2
    if not sampler.int8_cache:
        found["rollout.int8_cache=true"] = caches / 2
    return found


def _for_learning(case: Case, figures: dict[str, Any], train: Phase) -> dict[str, int | float]:
    sampler, shape = case.algorithm.sample, case.shape
    temporary = train.temporary or case.slice.chip.memory  # the compiler does not say by how much it failed
    found = {f"rollout.max_tokens={sampler.max_tokens // 2}": temporary / 2}
    if fewer := figures["largest_microbatch"]:
        found[f"algorithm.microbatch={fewer}"] = temporary * (1 - fewer / case.microbatch)
    elif sampler.responses // case.algorithm.group_parts > 1:
        found[f"algorithm.group_parts={2 * case.algorithm.group_parts}"] = temporary / 2
    if case.config.model.arguments["remat"] in ("none", "products"):
        wide = 2 * (shape.heads + shape.kv_heads) * shape.channels + 2 * shape.width + 3 * shape.feedforward
        tokens = case.microbatch * (case.length + sampler.responses * sampler.max_tokens)
        kept = 2 * tokens * wide * shape.layers / case.mesh.size
        found["model.remat=full"] = min(kept, temporary)
    return found
