"""Draws the rewards of a run: python docs/plot_run.py runs/quickstart docs/quickstart.svg (needs the extra `dev`)."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main(run: str, picture: str) -> None:
    """Writes an SVG of the mean reward of every step, and of the greedy reward on held-out prompts."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    tested = [row for row in rows if "eval/reward" in row]
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axes.plot([row["step"] for row in rows if "reward" in row], [row["reward"] for row in rows if "reward" in row])
    axes.plot([row["step"] for row in tested], [row["eval/reward"] for row in tested], "o--", clip_on=False)
    axes.legend(["training prompts, sampled", "held-out prompts, greedy"], frameon=False, loc="lower right")
    axes.set(xlabel="step", ylabel="mean reward", ylim=(0, 1), xlim=(0, rows[-1]["step"]))
    axes.grid(alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
