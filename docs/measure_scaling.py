"""Measures the memory, the time and the traffic of a chip as a slice grows, with the same work for each chip.

    python docs/measure_scaling.py               draws scaling.svg and prints the table from scaling.jsonl
    python docs/measure_scaling.py --compile     first compiles what is missing there; with names of slices, these again

Compiles the programs of one config for slices of 8 to 256 chips, as `grpo-jax plan` and `plan --time` do, with one
prompt for each chip and the inputs of layers kept (`model.remat=full`). This needs the TPU compiler (pip install -e
".[tpu]"), no TPU, and two to six minutes a slice on two cores.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import jax
import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from grpo_jax.commands.plan.bundles import kernels, options
from grpo_jax.commands.plan.case import Case, assemble
from grpo_jax.commands.plan.cost import Costs, costs
from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.commands.plan.instructions import parse
from grpo_jax.commands.plan.lengths import read_lengths
from grpo_jax.commands.plan.programs import decoding_inputs, device_peak
from grpo_jax.commands.plan.timing import Program, programs
from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.config import read
from grpo_jax.devices.memory import device_bytes
from grpo_jax.devices.process import silence_tpu_library

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "gsm8k_qwen3_0.6b.yaml"
SLICES = {"v5e-8": 8, "v5e-64": 64, "v5e-256": 256}
PHASES = ("sampling", "learning")
GIB = 2**30


def waiting_bytes(case: Case, program: Program) -> int:
    """The bytes that stay on each device beside a program."""
    state, weights = device_bytes(case.state), device_bytes(case.state.params)
    copy = device_bytes(
        decoding_inputs(case)[0]
    )  # one of several hosts reads prompts with it, one alone with the weights
    reading = state - weights + copy if case.slice.hosts == 1 else state
    kinds = {"serving": state - weights, "reading": reading, "decoding": state, "learning": state - weights}
    return kinds.get(program.kind, 0)


def measured(name: str, chips: int, folder: Path) -> dict:
    """The figures of one slice by phase: the highest peak, at least how long it takes, and what a chip receives."""
    work = (f"train.prompts={chips}", "algorithm.responses_at_once=8", "model.remat=full")
    case = assemble(read(CONFIG, work), find_slice(name))
    found = {phase: {"peak_bytes": 0, "received_bytes": 0, "costs": Costs()} for phase in PHASES}
    for program in programs(case, read_lengths(None)):
        compiled = program.lower().compile()
        text, phase = compiled.as_text() or "", found[program.phase]
        one = costs(parse(text), kernels(folder), case.slice.chip, program.iterations, program.live)
        phase["costs"] += one.times(program.runs)
        phase["received_bytes"] += program.runs * collective_bytes(text, program.iterations)
        peak = device_peak(compiled.memory_analysis()) + waiting_bytes(case, program)
        phase["peak_bytes"] = max(phase["peak_bytes"], peak)
        for path in folder.iterdir():
            path.unlink()
    for phase in found.values():
        all_costs: Costs = phase.pop("costs")
        phase["ms"] = 1e3 * all_costs.seconds(case.slice.chip)
        phase["parts_ms"] = {part: 1e3 * cost.seconds(case.slice.chip) for part, cost in all_costs.parts.items()}
    return {"slice": name, "chips": chips, "state_bytes": device_bytes(case.state)} | found


def compile_slices(store: Path, names: list[str]) -> None:
    """Measures these slices again, or those that are missing, and keeps all figures."""
    silence_tpu_library()
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = options(folder)
        for name in names or [name for name in SLICES if name not in stored(store)]:
            known = stored(store) | {name: measured(name, SLICES[name], Path(folder))}
            lines = [json.dumps(known[each]) + "\n" for each in SLICES if each in known]
            store.write_text("".join(lines))


def stored(store: Path) -> dict[str, dict]:
    """The figures that are kept, by slice."""
    rows = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    return {row["slice"]: row for row in rows}


def table(known: dict[str, dict]) -> str:
    """A row for each slice."""
    lines = [
        "| slice | chips | sampling, GiB | learning, GiB | sampling, ms | learning, ms | sampling receives, GiB"
        " | learning receives, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in known.items():
        sizes = [f"{row[phase]['peak_bytes'] / GIB:.2f}" for phase in PHASES]
        times = [f"{row[phase]['ms']:,.0f}" for phase in PHASES]
        received = [f"{row[phase]['received_bytes'] / GIB:.2f}" for phase in PHASES]
        lines.append(f"| {name} | {row['chips']} | " + " | ".join((*sizes, *times, *received)) + " |")
    return "\n".join(lines)


def draw(known: dict[str, dict]) -> None:
    """Memory, time and traffic of each chip by the number of chips."""
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    chips = [row["chips"] for row in known.values()]
    whats = (("peak_bytes", GIB, "GiB", "memory at its peak"), ("ms", 1e3, "s", "time of a step, at least"))
    whats += (("received_bytes", GIB, "GiB", "received in a step"),)
    for axes, (key, unit, label, title) in zip(panels, whats, strict=True):
        for phase in PHASES:
            axes.plot(chips, [row[phase][key] / unit for row in known.values()], "o-", label=phase)
        axes.set(xscale="log", xlabel="v5e chips", ylabel=f"{label} a chip", title=title, ylim=(0, None))
        axes.set_xticks(chips, chips)
        axes.minorticks_off()
        axes.legend()
    figure.savefig(HERE / "scaling.svg")


def main() -> None:
    """Measures if it is asked to, and draws everything."""
    store = HERE / "scaling.jsonl"
    if "--compile" in sys.argv:
        compile_slices(store, [name for name in sys.argv[1:] if name in SLICES])
    known = stored(store)
    print(table(known))
    draw(known)


if __name__ == "__main__":
    main()
