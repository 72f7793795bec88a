"""Trains the quickstart with all weights and with adapters, three seeds each: how many steps each needs, and a picture.

python docs/measure_adapters.py                prints the table and draws docs/adapters.svg from docs/adapters.json
python docs/measure_adapters.py --train        first trains what is missing there, about four minutes a training
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
STEPS, MORE = 24, 29  # of the quickstart, and at most 1.2 times as many
KINDS = {
    "all weights": [f"train.steps={STEPS}"],
    "adapters": [f"train.steps={MORE}", "model.lora={}", "optimizer.learning_rate=1e-4"],
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


def steps_to(goal: float, rewards: list[float]) -> int | None:
    """The first step at which the mean reaches the goal; None if none does."""
    return next((n for n, mean in enumerate(smoothed(rewards), WINDOW) if mean >= goal), None)


def table(known: dict[str, dict]) -> str:
    """A line for each seed."""
    names = ["seed", f"all weights, last {WINDOW} of {STEPS} steps", "adapters reach it at step"]
    names += ["greedy, all weights", "greedy, adapters"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for seed in SEEDS:
        whole, adapters = (known.get(f"{kind}, seed {seed}") for kind in KINDS)
        if whole is None or adapters is None:
            continue
        goal = smoothed(whole["reward"])[-1]
        found = steps_to(goal, adapters["reward"])
        greedy = [each["eval/reward"][-1] for each in (whole, adapters)]
        lines.append(f"| {seed} | {goal:.3f} | {found or f'not in {MORE}'} | {greedy[0]:.3f} | {greedy[1]:.3f} |")
    return "\n".join(lines)


def draw(known: dict[str, dict], file: Path) -> None:
    """The mean reward of each step, a line for each training."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for kind, colour in zip(KINDS, ("#888888", "#1f77b4"), strict=True):
        for seed in SEEDS:
            rewards = smoothed(known[f"{kind}, seed {seed}"]["reward"])
            axes.plot(range(WINDOW, WINDOW + len(rewards)), rewards, color=colour, label=kind if seed == 0 else None)
    axes.set(xlabel="step", ylabel=f"reward, mean of {WINDOW} steps", ylim=(0, 1), title="The quickstart, three seeds")
    axes.legend(frameon=False)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if parser.parse_args().train:
        for seed in SEEDS:
            for kind, overrides in KINDS.items():
                if f"{kind}, seed {seed}" not in known:
                    known[f"{kind}, seed {seed}"] = train([*overrides, f"train.seed={seed}"])
                    FIGURES.write_text(json.dumps(known, indent=1) + "\n")
    print(table(known))
    if len(known) == len(KINDS) * len(SEEDS):
        draw(known, FIGURES.with_suffix(".svg"))


if __name__ == "__main__":
    main()
