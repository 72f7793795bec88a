"""Draws what a warm start buys: python docs/plot_warm_start.py docs/warm_start.svg (needs the extra `dev`).

The runs are those of the commands at the head of configs/sft_then_grpo.yaml: runs/warm_start, runs/sft_then_grpo and
runs/cold_start.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from grpo_jax import RunDirectory

COLOURS = {"sft_then_grpo": "tab:blue", "cold_start": "tab:gray"}
NAMES = {"sft_then_grpo": "after given answers", "cold_start": "cold start"}


def main(picture: str, root: str = "runs") -> None:
    """Writes an SVG: the greedy reward while given answers are learned, then sampled and greedy rewards under GRPO."""
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    steps, rewards = RunDirectory(Path(root) / "warm_start").column("eval/reward")
    before = [step - steps[-1] for step in steps]
    axes.plot(before, rewards, "s--", color="tab:orange", label="given answers are learned: greedy", clip_on=False)
    for run, colour in COLOURS.items():
        directory = RunDirectory(Path(root) / run)
        axes.plot(*directory.column("reward"), color=colour, label=f"{NAMES[run]}: sampled")
        axes.plot(*directory.column("eval/reward"), "o--", color=colour, label=f"{NAMES[run]}: greedy", clip_on=False)
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set(xlabel="step of GRPO (left of 0: step on given answers)", ylabel="mean reward", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
