"""Measures how much of a chip's arithmetic learning uses at most, by the TPU compiler's own code: a row of a table.

    python docs/measure_learning.py gsm8k_qwen2.5_1.5b v5e-8 model.remat=attention algorithm.responses_at_once=8

Compiles the gradient of a microbatch of a model without experts whose parameters are all trained, with every response
at its longest. Useful arithmetic is 6 FLOP a weight and token (layers for all tokens, the head for those of responses)
and causal attention forward and twice that backward; nothing that is computed twice. This needs the TPU compiler (pip
install -e ".[tpu]"), no TPU, and about a minute on two cores.
"""

import os
import sys
import tempfile
from pathlib import Path

import jax

from grpo_jax.commands.plan.bundles import kernels, options
from grpo_jax.commands.plan.case import Case, assemble
from grpo_jax.commands.plan.cost import costs
from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.commands.plan.instructions import parse
from grpo_jax.commands.plan.programs import compile_learning, device_peak, microbatches
from grpo_jax.commands.plan.topology import GIB, find_slice
from grpo_jax.config import read
from grpo_jax.devices.memory import device_bytes
from grpo_jax.devices.process import silence_tpu_library

CONFIGS = Path(__file__).parent.parent / "configs"
HEADER = """| config | settings | parts | learning, ms | of the chip's arithmetic | needs, GiB | receives, GiB (ms) |
|---|---|---|---|---|---|---|"""


def useful_flops(case: Case) -> float:
    """What a device has to compute in a step."""
    shape, sampler, P, L = case.shape, case.sampler, case.settings.prompts, case.length
    G, T, D, C = sampler.responses, sampler.max_tokens, shape.width, shape.channels
    layer = 2 * D * C * (shape.heads + shape.kv_heads) + 3 * D * shape.feedforward
    pairs = P * (L * (L + 1) / 2 + G * (T * L + T * (T + 1) / 2))
    products = 6 * shape.layers * layer * P * (L + G * T) + 6 * shape.vocabulary * D * P * G * T
    return (products + 12 * shape.heads * C * shape.layers * pairs) / case.slice.chips


def main(name: str, slice_name: str, *settings: str) -> None:
    """Prints the row, and the milliseconds of each part."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = options(folder)  # read when the TPU's devices are first asked for
        silence_tpu_library()
        jax.config.update("jax_enable_compilation_cache", False)
        case = assemble(read(CONFIGS / f"{name}.yaml", settings), find_slice(slice_name))
        chip, how = case.slice.chip, case.cut(case.responses_at_once)
        learn, step = compile_learning(case, how)
        parts, text = microbatches(case, how), learn.as_text() or ""
        found = costs(parse(text), kernels(folder), chip)
    waiting = device_bytes((case.state.opt_state, case.state.reference))
    peak = max(device_peak(learn.memory_analysis()) + waiting, device_peak(step.memory_analysis()))
    received = parts * collective_bytes(text)
    computing, moving = parts * found.seconds(chip), received / chip.links if chip.links else 0.0
    share = useful_flops(case) / chip.flops / max(computing, moving)
    given = " ".join(f"`{setting}`" for setting in settings)
    print(f"{HEADER}\n| `{name}`, {slice_name} | {given} | {parts} | {1e3 * computing:,.0f} | {share:.2f}"
          f" | {peak / GIB:.2f} | {received / GIB:.1f} ({1e3 * moving:.0f}) |")  # fmt: skip
    for part, cost in sorted(found.parts.items(), key=lambda pair: -pair[1].seconds(chip)):
        print(f"{part:24s} {1e3 * parts * cost.seconds(chip):10,.0f} ms, MXU {1e3 * parts * cost.products:10,.0f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
