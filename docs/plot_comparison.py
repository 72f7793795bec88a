"""Draws runs side by side: python docs/plot_comparison.py docs/comparison.svg runs/grpo runs/dapo ... (needs `dev`)."""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

WINDOW = 5  # steps that a point of a curve is the mean of


def main(picture: str, *runs: str) -> None:
    """Writes an SVG: rewards of training prompts, rewards of held-out prompts, entropy; prints the last of each."""
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for number, run in enumerate(runs):
        rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "reward" in row]
        exams = [row for row in rows if "eval/reward" in row]
        style = {"color": f"C{number}", "label": Path(run).name}
        for panel, name in zip(panels[[0, 2]], ("reward", "entropy"), strict=True):
            smooth = np.convolve([row[name] for row in steps], np.full(WINDOW, 1 / WINDOW), "valid")
            panel.plot([row["step"] for row in steps][WINDOW - 1 :], smooth, **style)
        panels[1].plot([row["step"] for row in exams], [row["eval/reward"] for row in exams], "o-", **style)
        last = np.mean([row["reward"] for row in steps[-WINDOW:]])
        print(f"{style['label']:12} reward {last:.3f}  held out {exams[-1]['eval/reward']:.3f}  steps {len(steps)}")
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
