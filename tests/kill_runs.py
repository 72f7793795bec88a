"""Kills a training at random moments, resumes it each time, and compares it with one that was not killed.

    python tests/kill_runs.py                       20 kills of a run of 30 steps, about 10 minutes
    python tests/kill_runs.py --kills 3 --steps 8   fewer

Every kill is a SIGKILL. Half of them come while a checkpoint is being written, the others at any time of a step. The
run has what changes from step to step: a warm-up, an adaptive coefficient, a moving reference policy, retired prompts.
The last weights and optimiser, all metrics but times, and all answers must be the same bit by bit; the exit status is 1
if they are not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles twice as fast

import jax
import numpy as np
import orbax.checkpoint as ocp

from grpo_jax import RunDirectory

CONFIG = """
run: {name: killed}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 200, held_out: 8, largest: 40}
rewards: [{use: Matches, pattern: "(?s).*[a-p].*"}]
rollout: {responses: 4, max_tokens: 6}
objective:
  use: dapo
  kl: {use: KL, estimator: k2, coefficient: {use: Proportional, target: 1e-3}, reference: {every: 2, share: 0.5}}
optimizer: {learning_rate: 1e-3, warmup_steps: 4}
train: {prompts: 4, evaluate_every: 3, save_every: 2, max_prompt_tokens: 96, retire: 0.9, skip_spikes: 100.0}
"""
TIMES = ("time", "sampling/programs")  # of the clock, and of what a process has compiled so far
LONGEST = 600  # seconds for a training to come to its next kill


def main() -> int:
    """Trains twice, once with kills, and compares; the exit status."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("c.yaml").write_text(CONFIG)
        steps = f"train.steps={arguments.steps}"
        start(steps, "run.name=whole").communicate()
        chance = random.Random(arguments.seed)
        moments = sorted(chance.randrange(arguments.steps - 1) for _ in range(arguments.kills))
        saving = [kill(steps, moment, index, chance) for index, moment in enumerate(moments)]
        training = start(steps, *resume())
        said = training.communicate()[0]
        if training.returncode != 0:
            print(said)
            return 1
        different = compare(Path("runs/whole"), Path("runs/killed"), arguments.steps)
        print(f"{len(moments)} kills, {sum(saving)} of them while a checkpoint was being written: ", end="")
        print("; ".join(different) if different else "same weights, metrics and answers")
        last = rows(Path("runs/killed"))[-1]
        print(f"{last['retired_prompts']:.0f} prompts are retired, the coefficient is {last['coefficient/kl']:.6f}")
    return int(bool(different))


def parse() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description="Kills a training, resumes it, and compares.", allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start(*arguments: str) -> "subprocess.Popen[str]":
    """A training in a process of its own."""
    command = [sys.executable, "-m", "grpo_jax", "train", "c.yaml", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def resume() -> list[str]:
    """The option to resume, once there is a run."""
    return ["--resume"] if Path("runs/killed").exists() else []


def kill(steps: str, moment: int, index: int, chance: random.Random) -> bool:
    """Kills a training once it has done so many steps; whether a checkpoint was being written then."""
    saves, deadline = index % 2 == 1, time.monotonic() + LONGEST
    with start(steps, *resume()) as training:
        while training.poll() is None and time.monotonic() < deadline:
            if steps_done() >= moment and (not saves or unfinished()):
                break
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01 if saves else 1))
        training.kill()
        said = training.communicate()[0]
        if training.returncode not in (0, -signal.SIGKILL):
            sys.exit(f"kill {index} found a run that had ended with {training.returncode}:\n{said}")
    return bool(unfinished())


def steps_done() -> int:
    """The steps that the run has on disk."""
    file = Path("runs/killed/metrics.jsonl")
    return max(file.read_bytes().count(b"\n") - 1, 0) if file.exists() else 0


def unfinished() -> list[Path]:
    """The folders of checkpoints that have no manifest."""
    folder = Path("runs/killed/checkpoints")
    found = list(folder.iterdir()) if folder.exists() else []
    return [path for path in found if not (path / "manifest.json").exists()]


def compare(whole: Path, killed: Path, step: int) -> list[str]:
    """What differs between two runs."""
    different = []
    if any(not np.array_equal(a, b) for a, b in zip(arrays(whole, step), arrays(killed, step), strict=True)):
        different.append("the weights or the optimiser differ")
    if rows(whole) != rows(killed):
        different.append("the metrics differ")
    of_steps = [name for name in answers(whole) if name.startswith("step_")]  # the others are held-out answers
    if answers(whole) != answers(killed) or len(of_steps) != step:
        different.append("the answers differ")
    return different


def arrays(run: Path, step: int) -> list[np.ndarray]:
    """All arrays of a checkpoint."""
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore((run / "checkpoints" / str(step) / "default").absolute())
    return [np.asarray(array) for array in jax.tree.leaves(state)]


def rows(run: Path) -> list[dict[str, object]]:
    """The metrics of a run that do not depend on the clock."""
    found = RunDirectory(run).metrics()
    return [{name: value for name, value in row.items() if not any(word in name for word in TIMES)} for row in found]


def answers(run: Path) -> dict[str, bytes]:
    """The files with the answers of a run."""
    return {path.name: path.read_bytes() for path in (run / "completions").iterdir()}


if __name__ == "__main__":
    sys.exit(main())
