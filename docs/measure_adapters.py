"""Trains the quickstart with all weights and with adapters, three seeds each: how many steps each needs, and a picture.

python docs/measure_adapters.py                prints the table and draws docs/adapters.svg from docs/adapters.json
python docs/measure_adapters.py --train        first trains what is missing there, about three minutes a training
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib

from grpo_jax.cli import main as main_of_grpo_jax

ROOT = Path(__file__).parent.parent
FIGURES = Path(__file__).parent / "adapters.json"
STEPS, MORE = 24, 28  # of the quickstart, and at most 1.2 times as many
WHOLE = "all weights"
KINDS = {  # the overrides of each, and its colour
    WHOLE: ([f"train.steps={STEPS}"], "#888888"),
    "adapters, 10 x the rate": (["train.steps=29", "model.lora={}", "optimizer.learning_rate=1e-4"], "#9ecae1"),
    "adapters, 20 x the rate": (["train.steps=29", "model.lora={}", "optimizer.learning_rate=2e-4"], "#1f77b4"),
}
SEEDS = (0, 1, 2)
WINDOW = 3  # steps that a mean is taken over


def train(overrides: list[str]) -> dict[str, list[float]]:
    """The reward of each step, and the greedy rewards on held-out prompts."""
    with tempfile.TemporaryDirectory() as root:
        command = ["train", str(ROOT / "configs/quickstart.yaml"), f"run.root={root}", *overrides]
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # which forgets what it compiled
            status = pool.submit(main_of_grpo_jax, command).result()
        if status:
            raise SystemExit(f"grpo-jax {' '.join(command)} ended with status {status}.")
        lines = (Path(root) / "quickstart" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {name: [row[name] for row in rows if name in row] for name in ("reward", "eval/reward")}


def smoothed(rewards: list[float]) -> list[float]:
    """The mean of each step and those before it, `WINDOW` in all."""
    return [sum(rewards[n - WINDOW : n]) / WINDOW for n in range(WINDOW, len(rewards) + 1)]


def steps_to(goal: float, rewards: list[float]) -> str:
    """The first step at which the mean reaches the goal, of the steps that are allowed."""
    means = enumerate(smoothed(rewards)[: MORE - WINDOW + 1], WINDOW)
    return str(next((n for n, mean in means if mean >= goal), f"not in {MORE}"))


def table(known: dict[str, dict]) -> str:
    """A line for each seed and kind of adapters."""
    names = ["trained", "seed", f"all weights, last {WINDOW} of {STEPS} steps", "adapters reach it at step"]
    names += ["greedy, all weights", "greedy, adapters"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for kind in KINDS:
        for seed in SEEDS:
            whole, adapters = known.get(f"{WHOLE}, seed {seed}"), known.get(f"{kind}, seed {seed}")
            if kind == WHOLE or whole is None or adapters is None:
                continue
            goal = smoothed(whole["reward"])[-1]
            greedy = " | ".join(f"{each['eval/reward'][-1]:.3f}" for each in (whole, adapters))
            lines.append(f"| {kind} | {seed} | {goal:.3f} | {steps_to(goal, adapters['reward'])} | {greedy} |")
    return "\n".join(lines)


def draw(known: dict[str, dict], file: Path) -> None:
    """The mean reward of each step, a line for each training."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "grpo_jax"}
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for kind, (_, colour) in KINDS.items():
        for seed in SEEDS:
            rewards = smoothed(known[f"{kind}, seed {seed}"]["reward"])
            axes.plot(range(WINDOW, WINDOW + len(rewards)), rewards, color=colour, label=None if seed else kind)
    axes.set(xlabel="step", ylabel=f"reward, mean of {WINDOW} steps", ylim=(0, 1), title="The quickstart, three seeds")
    axes.legend(frameon=False)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Trains what is asked for, prints the table, and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if parser.parse_args().train:
        for seed in SEEDS:
            for kind, (overrides, _) in KINDS.items():
                if f"{kind}, seed {seed}" not in known:
                    known[f"{kind}, seed {seed}"] = train([*overrides, f"train.seed={seed}"])
                    FIGURES.write_text(json.dumps(known, indent=1) + "\n")
    print(table(known))
    if len(known) == len(KINDS) * len(SEEDS):
        draw(known, FIGURES.with_suffix(".svg"))


if __name__ == "__main__":
    main()
