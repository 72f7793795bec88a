"""Draws the rewards of a run: python docs/plot_run.py runs/quickstart docs/quickstart.svg (needs the extra `dev`)."""

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from grpo_jax import RunDirectory


def main(run: str, picture: str) -> None:
    """Writes an SVG of the mean reward of every step, and of the greedy reward on held-out prompts."""
    directory = RunDirectory(run)
    steps, rewards = directory.column("reward")
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axes.plot(steps, rewards)
    axes.plot(*directory.column("eval/reward"), "o--", clip_on=False)
    axes.legend(["training prompts, sampled", "held-out prompts, greedy"], frameon=False, loc="lower right")
    axes.set(xlabel="step", ylabel="mean reward", ylim=(0, 1), xlim=(0, steps[-1]))
    axes.grid(alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
