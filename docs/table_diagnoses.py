"""Makes ten runs that fail in ten ways, and some that learn: python docs/table_diagnoses.py [FOLDER] [ONLY]

Each is a real training of the tiny model, whose weights are random and whose tokens are bytes. The table says what
its report says of it. FOLDER keeps the runs; with ONLY, a regular expression, those alone are made whose names match.
"""

import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import yaml

from grpo_jax import Sampler
from grpo_jax.cli import main as command
from grpo_jax.report.diagnosis import diagnoses
from grpo_jax.report.headline import headline
from grpo_jax.report.reading import read_run
from grpo_jax.rewards import Example, Mix
from grpo_jax.rollout.engine import FunctionEngine
from grpo_jax.structs import Rollouts
from grpo_jax.tasks import Task
from grpo_jax.tasks.task import messages
from grpo_jax.training import Run

HERE = Path(__file__).stem
BASE: dict[str, Any] = {
    "model": {"name": "tiny", "remat": "none"},
    "task": {"use": "arithmetic", "train": 200, "held_out": 32, "largest": 20},
    "rewards": [{"use": f"{HERE}:letters"}],
    "rollout": {"responses": 8, "max_tokens": 12},
    "objective": {"use": "dapo"},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1},
    "train": {"steps": 24, "prompts": 8, "evaluate_every": 6, "save_every": 1000, "max_prompt_tokens": 96},
    "evaluation": {"responses": 4},
}
Change = Mapping[str, Any]  # settings by section; one with `use` replaces its section
FAILURES: Mapping[str, tuple[str, Change]] = {
    "constant reward": ("every answer earns 0.5", {"rewards": [{"use": f"{HERE}:half"}]}),
    "cut-off answers": (
        "no answer can end, and the objective gives those nothing",
        {"objective": {"use": "verifiable"}, "rollout": {"min_tokens": 12}},
    ),
    "rate too high": (
        "learning_rate 1",
        {"optimizer": {"learning_rate": 1.0}, "rewards": [{"use": f"{HERE}:variety"}]},
    ),
    "rate too low": ("learning_rate 1e-9", {"optimizer": {"learning_rate": 1e-9}}),
    "reward hacked by length": (
        "every token costs a part of the reward",
        {"rewards": [{"use": f"{HERE}:brevity"}], "train": {"steps": 40}},
    ),
    "all groups right": (
        "whatever is said is right",
        {"rewards": [{"use": "Matches", "pattern": ".*"}], "task": {"use": f"{HERE}:halves"}},
    ),
    "all groups wrong": ("nothing is right", {"rewards": [{"use": "Matches", "pattern": "never"}]}),
    "entropy gone": (
        "a term that takes entropy away, and a reward that nobody can learn",
        {
            "objective": {"terms": [{"coefficient": -1.0, "value": "entropy"}]},
            "rewards": [{"use": f"{HERE}:chance"}],
            "train": {"steps": 40},
        },
    ),
    "sampler mismatch": (
        "log-probs that are off by 0.5 nats",
        {"rollout": {"use": f"{HERE}:noisy"}, "evaluation": {"responses": 1}},
    ),
    "held-out falling": (
        "training asks for other letters than held-out prompts",
        {"rewards": [{"use": f"{HERE}:wanted"}], "task": {"use": f"{HERE}:halves"}},
    ),
}
HEALTHY: Mapping[str, tuple[str, Change]] = {
    name: (f"objective {name}", {"objective": {"use": name}})
    for name in ("dapo", "grpo", "dr_grpo", "gspo", "cispo", "rloo")
}


def letters(example: Example, response: str) -> float:
    """The part of the response's characters that are small letters."""
    return sum(character.isascii() and character.islower() for character in response) / max(len(response), 1)


def half(example: Example, response: str) -> float:
    """0.5, whatever was said."""
    return 0.5


def variety(example: Example, response: str) -> float:
    """The number of different characters in a response, of those of its longest length."""
    return len(set(response)) / 12


def chance(example: Example, response: str) -> float:
    """0 or 1, without a pattern."""
    return float(zlib.crc32(response.encode()) % 2)


def brevity(example: Example, response: str) -> float:
    """More for a shorter response."""
    return 1 - len(response) / 12


def wanted(example: Example, response: str) -> float:
    """The part of the response's characters that the example asks for."""
    return sum(character in example.columns["wanted"] for character in response) / max(len(response), 1)


def halves(train: int = 64, held_out: int = 32) -> Task:
    """Prompts without an answer. Those for training want the first half of the alphabet, held-out ones the second."""
    sides = ("abcdefghijklm", train), ("nopqrstuvwxyz", held_out)
    made = [tuple(asked(number, letters) for number in range(count)) for letters, count in sides]
    return Task(made[0], made[1], Mix(((wanted, 1.0),)))


def asked(number: int, characters: str) -> Example:
    """A prompt that asks for these characters."""
    return Example(messages(f"Text {number} of {characters[0]}", "", None), "", {"wanted": characters})


def noisy(ends: tuple[int, ...], decode: Callable[[Sequence[int]], str]) -> FunctionEngine:
    """An engine whose log-probs are not those that it sampled with."""
    sampler = Sampler(ends, responses=8, max_tokens=12)

    def answer(policy: Any, params: Any, prompts: Any, key: jax.Array) -> Rollouts:
        rollouts = sampler(policy, params, prompts, key)
        noise_PGT = 0.5 * jax.random.normal(key, rollouts.logprobs_PGT.shape)
        return replace(rollouts, logprobs_PGT=jnp.where(rollouts.action_PGT, rollouts.logprobs_PGT + noise_PGT, 0.0))

    return FunctionEngine(answer, 8)


def trained(name: str, change: Change, folder: Path) -> Path:
    """The directory of a training with these settings."""
    settings = dict(BASE)
    for section, given in change.items():
        keeps = isinstance(given, dict) and "use" not in given
        settings[section] = settings[section] | given if keeps else given
    directory = name.replace(" ", "_")
    settings["run"] = {"name": directory, "root": str(folder)}
    settings["train"] = settings["train"] | {"report_minutes": 0}
    file = folder / f"{directory}.yaml"
    file.write_text(yaml.safe_dump(settings))
    with redirect_stdout(StringIO()):
        status = command(["train", str(file)])
    if status:
        raise SystemExit(f"{name} ended with status {status}")
    return Run(directory, str(folder)).latest()


def line(name: str, setting: str, run: Path) -> str:
    """A line of the table: the run, what was set, the reward before and after, and what the report says."""
    found = read_run(run)
    head, titles = headline(found), [diagnosis.title for diagnosis in diagnoses(found)]
    reward = f"{head.first.value:.2f} → {head.last.value:.2f}" if head.first and head.last else ""
    return f"| {name} | {setting} | {reward} | {'; '.join(titles) or 'none'} |"


def main(folder: Path, only: str) -> None:
    """Prints the table."""
    print("| run | setting | held-out reward | diagnosis |\n|---|---|---|---|", flush=True)
    healthy = {f"healthy {name}": case for name, case in HEALTHY.items()}
    for name, (setting, change) in {**FAILURES, **healthy}.items():
        if re.search(only, name):
            print(line(name, setting, trained(name, change, folder)), flush=True)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary), sys.argv[2] if len(sys.argv) > 2 else "")
