"""Draws runs side by side: python docs/plot_comparison.py docs/comparison.svg runs/grpo runs/dapo ... (needs `dev`)."""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

from grpo_jax import RunDirectory

WINDOW = 5  # steps that a point of a curve is the mean of


def main(picture: str, *runs: str) -> None:
    """Writes an SVG of training reward, held-out reward and entropy. Prints the last rewards of each run."""
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for number, run in enumerate(runs):
        directory = RunDirectory(run)
        style = {"color": f"C{number}", "label": Path(run).name}
        for panel, name in zip(panels[[0, 2]], ("reward", "entropy"), strict=True):
            steps, values = directory.column(name)
            smooth = np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid")
            panel.plot(steps[WINDOW - 1 :], smooth, **style)
        evaluated, held_out = directory.column("eval/reward")
        panels[1].plot(evaluated, held_out, "o-", **style)
        rewards = directory.column("reward")[1]
        last = np.mean(rewards[-WINDOW:])
        print(f"{style['label']:12} reward {last:.3f}  held out {held_out[-1]:.3f}  steps {len(rewards)}")
    titles = (
        f"reward, mean of {WINDOW} steps",
        "greedy reward, held-out prompts",
        "entropy, nats",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
