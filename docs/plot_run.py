"""Draws the rewards of a run, or those of its metrics that are named (needs the extra `dev`).

    python docs/plot_run.py runs/quickstart docs/quickstart.svg
    python docs/plot_run.py runs/calculator docs/calculator.svg environment/calls_parsed_frac \\
        rewards/reaches_target/mean
"""

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from grpo_jax import RunDirectory


def main(run: str, picture: str, *names: str) -> None:
    """Writes an SVG of the mean reward of every step and of the greedy reward on held-out prompts, or of `names`."""
    directory = RunDirectory(run)
    steps, rewards = directory.column("reward")
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    if names:
        for name in names:
            axes.plot(*directory.column(name), "o-", markersize=3, clip_on=False, label=name)
        axes.legend(frameon=False, loc="center left")
    else:
        axes.plot(steps, rewards)
        axes.plot(*directory.column("eval/reward"), "o--", clip_on=False)
        axes.legend(["training prompts, sampled", "held-out prompts, greedy"], frameon=False, loc="lower right")
    axes.set(xlabel="step", ylabel="" if names else "mean reward", ylim=(0, 1), xlim=(0, steps[-1]))
    axes.grid(alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
