"""Measures whether a process that trains for long keeps its memory bounded: prints tables in Markdown.

    python docs/measure_memory.py                  all objectives in turn, 3 steps each, then 2,000 steps of one
    python docs/measure_memory.py --steps 400      fewer steps of one

A tiny random model on one CPU device, with prompts and responses of random lengths: what is measured is what the
program keeps, and not the size of a model. It reads /proc, so it needs Linux.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles twice as fast

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from grpo_jax import Algorithm, Example, Sampler
from grpo_jax.devices.mesh import Layout
from grpo_jax.models import Model, tiny
from grpo_jax.objectives import PRESETS, Objective, dr_grpo, grpo_process
from grpo_jax.optimizers import adamw
from grpo_jax.rewards import as_mix
from grpo_jax.tasks import Task
from grpo_jax.training import Run, Settings, train

HEAD = "memory maps | threads | open files | resident MB |\n|---|---|---|---|---|"
DRAW = np.random.default_rng(0)
ONE_LENGTH = [Example("a" * 20, str(index)) for index in range(400)]
LENGTHS = [Example("a" * int(length), "") for length in DRAW.integers(1, 200, 400)]


@dataclass(frozen=True)
class Held:
    """What this process holds. Linux allows it 65,530 memory maps."""

    maps: int
    threads: int
    files: int
    megabytes: int

    def __str__(self) -> str:
        return " | ".join(f"{number:,}" for number in astuple(self))


def held() -> Held:
    """What this process holds now."""
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGESIZE") // 1_000_000
    return Held(maps, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), megabytes)


def trainable() -> list[Objective]:
    """Every preset that needs no teacher and no rewards of steps."""
    found = [preset() for preset in PRESETS if preset is not grpo_process]
    return [objective for objective in found if not objective.distillation]


def uneven(example: Example, response: str) -> float:
    """A reward that differs within a group."""
    return float(len(response) % 3)


def run(
    model: Model, objective: Objective, steps: int, examples: list[Example], reward: Callable[..., float] = uneven
) -> None:
    """Trains in silence, with responses of random lengths: one of eight tokens of the vocabulary ends a response."""
    sampler = Sampler(tuple(range(0, 256, 8)), responses=8, max_tokens=32)
    algorithm = Algorithm(model.policy, sampler, model.tokenizer.decode, reward, objective, adamw(learning_rate=1e-5))
    settings = Settings(steps=steps, prompts=2, evaluate_every=0, save_every=50, max_prompt_tokens=300)
    task = Task(examples, [], as_mix(reward))
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        train(model, task, algorithm, settings, Layout(data=1), run=Run(root=folder))


def objectives_in_turn(steps: int) -> list[Held]:
    """What is held after each objective has been trained with for some steps."""
    model, found = tiny(remat="none"), []
    print(f"| objectives trained with | {HEAD}")
    for count, objective in enumerate(trainable(), 1):
        run(model, objective, steps, ONE_LENGTH)
        found.append(held())
        if count == 1 or count % 5 == 0:
            print(f"| {count} | {found[-1]} |", flush=True)
    return found


def one_run(steps: int) -> list[Held]:
    """What is held in each step of one run."""
    found, calls = list[Held](), list[int]()
    print(f"\n| step | {HEAD}")

    def watched(example: Example, response: str) -> float:
        calls.append(1)
        if len(calls) % 16 == 0:  # the last response of a step
            found.append(held())
            if len(found) == 1 or len(found) % (steps // 8) == 0:
                print(f"| {len(found):,} | {found[-1]} |", flush=True, file=sys.__stdout__)
        return uneven(example, response)

    run(tiny(remat="none"), dr_grpo(), steps, LENGTHS, watched)
    return found


def main() -> None:
    """Prints a table for each of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000, help="of the one run; default: %(default)s")
    parser.add_argument("--each", type=int, default=3, help="steps with each objective; default: %(default)s")
    arguments = parser.parse_args()
    objectives_in_turn(arguments.each)
    one_run(arguments.steps)


if __name__ == "__main__":
    main()
