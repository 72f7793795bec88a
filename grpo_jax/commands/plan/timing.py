"""`grpo-jax plan --time`: at least how long each part of a step takes on a slice, by what the TPU compiler wrote.

The programs are compiled in a process of its own, because libtpu reads the options that make it write bundles only when
it is loaded. What it writes is read after each program, and deleted.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from grpo_jax.commands.plan.bundles import kernels, options
from grpo_jax.commands.plan.case import Case, assemble
from grpo_jax.commands.plan.child import child
from grpo_jax.commands.plan.cost import Costs, Live, costs
from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.commands.plan.instructions import parse
from grpo_jax.commands.plan.lengths import Decoded, Lengths, Size, turns
from grpo_jax.commands.plan.programs import (
    lower_by_layer,
    lower_decoding,
    lower_learning,
    lower_logprobs,
    lower_reading,
    lower_serving,
    microbatches,
    rings,
)
from grpo_jax.commands.plan.progress import Progress
from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.config import Config
from grpo_jax.devices.mesh import prompt_shards
from grpo_jax.hosts.signals import left_by_signals
from grpo_jax.models.attention import AT_ONCE, LANES, block_size
from grpo_jax.rollout.sizes import FEWEST_ROWS

SAMPLING, LEARNING = "sampling", "learning"


class Program(NamedTuple):
    """A program of a step: its phase, what it does, how often it runs, and how often an open loop in it does."""

    phase: str
    kind: str
    name: str
    runs: int
    iterations: int
    lower: Callable[[], jax.stages.Lowered]
    live: Live | None = None


@dataclass(frozen=True)
class Timed:
    """What all runs of a program in a step cost on each device, and what collectives bring to it, in bytes."""

    phase: str
    kind: str
    name: str
    runs: int
    costs: Costs = field(default_factory=Costs)
    received: int = 0
    error: str = ""


def programs(case: Case, lengths: Lengths) -> Iterator[Program]:
    """All programs of a step, those of sampling first, as far as they take time worth counting."""
    if case.config.sft is None:
        yield Program(SAMPLING, "serving", "the copy for sampling", 1, 1, partial(lower_serving, case))
        yield Program(SAMPLING, "reading", "reading prompts", case.sampled[2], 1, partial(lower_reading, case))
        for size, found in decoded(case, lengths).items():
            name = f"decoding {size.prompts} x {size.responses} rows, {size.positions} positions"
            live = live_of(case, size, found)
            yield Program(SAMPLING, "decoding", name, 1, found.tokens, partial(lower_decoding, case, size), live)
    how = case.cut(case.responses_at_once)
    if case.algorithm.gradients == "by_layer":
        yield Program(
            LEARNING, "learning", "learning", case.algorithm.minibatches, 1, partial(lower_by_layer, case, how)
        )
        return
    for name in case.algorithm.compared_with(case.state):
        lower = partial(lower_logprobs, case, how, name)
        yield Program(LEARNING, "reading", name.removesuffix("_PGT"), microbatches(case, how), 1, lower)
    yield Program(LEARNING, "learning", "gradients", microbatches(case, how), 1, lambda: lower_learning(case, how)[0])
    yield Program(
        LEARNING, "optimiser", "optimiser", case.algorithm.minibatches, 1, lambda: lower_learning(case, how)[1]
    )


def decoded(case: Case, lengths: Lengths) -> dict[Size, Decoded]:
    """What a host decodes with rows of each size."""
    held, G, rounds = case.sampled
    length_PG = lengths.draw(held * rounds, G, case.sampler.max_tokens)
    fewest = 1 if case.sampler.live_block(case.algorithm.policy) is None else FEWEST_ROWS
    return turns(length_PG, held, rings(case), prompt_shards(case.host_mesh), fewest, _block(case))


def _block(case: Case) -> int:
    """Positions of a block of the decoding kernel."""
    lanes, tensor = max(case.shape.channels, LANES), case.host_mesh.shape["tensor"]
    K = case.shape.kv_heads * case.shape.channels // lanes
    return block_size(K // tensor if K % tensor == 0 else K, rings(case)[-1], lanes)


def live_of(case: Case, size: Size, found: Decoded) -> Live | None:
    """What decoding reads of its caches on a device, in the mean; None if it reads them whole."""
    if case.sampler.live_block(case.algorithm.policy) is None:
        return None
    shards, rows = prompt_shards(case.host_mesh), size.prompts * size.responses
    used = found.used / found.tokens / (rows * size.positions)
    return Live(used, found.blocks / found.tokens / shards / AT_ONCE)


def timed(case: Case, lengths: Lengths) -> list[Timed]:
    """What each program of a step costs. Tells how far it has come."""
    progress = Progress(case.shape.layers, case.slice.chips)
    with left_by_signals(), tempfile.TemporaryDirectory(prefix="grpo_jax_bundles_") as folder:
        with child(_time_and_send, case.config, case.slice.name, lengths, folder) as receiver:
            return [_received(receiver, progress, each) for each in programs(case, lengths)]


def _received(receiver: Connection, progress: Progress, program: Program) -> Timed:
    with progress.during(program.kind, program.name):
        try:
            return receiver.recv()
        except EOFError:
            raise ValueError(
                f"The process that compiles {program.name} ended without a result; this machine's memory may be too"
                " small for the compiler."
            ) from None


def _time_and_send(sender: Connection, config: Config, name: str, lengths: Lengths, folder: str) -> None:
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {options(folder)}".strip()
    jax.config.update("jax_enable_compilation_cache", False)
    case = assemble(config, find_slice(name))
    for each in programs(case, lengths):
        try:
            sender.send(_cost(each, case, folder))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sender.send(Timed(each.phase, each.kind, each.name, each.runs, error=str(error).split("\n")[0]))
        for path in Path(folder).iterdir():
            path.unlink()


def _cost(program: Program, case: Case, folder: str) -> Timed:
    text = program.lower().compile().as_text() or ""
    found = costs(parse(text), kernels(folder), case.slice.chip, program.iterations, program.live).times(program.runs)
    received = program.runs * collective_bytes(text, program.iterations)
    return Timed(program.phase, program.kind, program.name, program.runs, found, received)


def figures(case: Case, found: list[Timed], lengths: Lengths) -> dict[str, Any]:
    """All figures, as JSON has them: milliseconds and bytes of each part on each device, by phase and by program."""
    chip, phases = case.slice.chip, {}
    for phase in dict.fromkeys(each.phase for each in found):
        of_phase = [each for each in found if each.phase == phase]
        total = sum((each.costs for each in of_phase), Costs())
        received = sum(each.received for each in of_phase)
        computed = 1e3 * total.seconds(chip)
        moving = 1e3 * received / chip.links if chip.links else 0.0
        phases[phase] = {
            "ms": max(computed, moving),
            "parts": {
                name: {
                    "ms": 1e3 * cost.seconds(chip),
                    "core_ms": 1e3 * cost.core,
                    "mxu_ms": 1e3 * cost.products,
                    "memory_ms": 1e3 * cost.bytes / chip.bandwidth,
                    "memory_bytes": cost.bytes,
                    "kernels": cost.count,
                    "kernels_without_bundles": cost.unknown,
                }
                for name, cost in sorted(total.parts.items(), key=lambda pair: -pair[1].seconds(chip))
                if cost.seconds(chip) > 0
            },
            "collectives": {"ms": moving, "received_bytes": received},
            "programs": {each.name: 1e3 * each.costs.seconds(chip) for each in of_phase},
            "errors": {each.name: each.error for each in of_phase if each.error},
        }
    return {
        "slice": case.slice.name,
        "lengths": str(lengths),
        "ms": sum(phase["ms"] for phase in phases.values()),
        "phases": phases,
    }


def table(found: dict[str, Any]) -> str:
    """The figures as a table for people."""
    lines = [f"{'ms, at least':24s} {'longest':>10s} {'cores':>10s} {'MXU':>10s} {'memory':>10s} {'GB':>9s}"]
    for name, phase in found["phases"].items():
        about = f" ({found['lengths']})" if name == SAMPLING else ""
        lines.append(f"{name}{about}")
        for part, cost in phase["parts"].items():
            numbers = " ".join(f"{cost[key]:10,.1f}" for key in ("ms", "core_ms", "mxu_ms", "memory_ms"))
            lines.append(f"  {part:22s} {numbers} {cost['memory_bytes'] / 1e9:9,.1f}")
        moved = phase["collectives"]
        if moved["received_bytes"]:
            lines.append(
                f"  {'collectives, beside it':22s} {moved['ms']:10,.1f} {moved['received_bytes'] / 1e9:42,.1f}"
            )
        lines.append(f"  {'sum':22s} {phase['ms']:10,.1f}")
        lines += [f"  {program}: {ms:,.1f}" for program, ms in phase["programs"].items()]
        lines += [f"  {program} does not fit: {error}" for program, error in phase["errors"].items()]
    lines.append(f"{'a step':24s} {found['ms']:10,.1f}")
    lines.append("Lower bounds of the compiler's own code: nothing waits, nothing is launched, hosts take no time.")
    return "\n".join(lines)
