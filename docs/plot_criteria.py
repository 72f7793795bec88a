"""Draws each criterion of a run: python docs/plot_criteria.py runs/travel docs/travel.svg (needs the extra `dev`)."""

import sys

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

from grpo_jax import RunDirectory

WINDOW, COLUMNS = 5, 4  # steps that a point of a curve is the mean of; panels in a row


def main(run: str, picture: str) -> None:
    """Writes an SVG of the reward and of each of its parts: sampled answers while training, held-out ones greedily."""
    directory = RunDirectory(run)
    names = dict.fromkeys(name for row in directory.metrics() for name in row if _is_part(name))
    parts = [name.removeprefix("rewards/").removesuffix("/mean") for name in names]
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    rows = -(-(len(parts) + 1) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(11, 1.9 * rows), layout="constrained", sharex=True)
    panels = list(grid.flat)
    for panel, name in zip(panels, ["reward", *(f"rewards/{part}/mean" for part in parts)], strict=False):
        steps, values = directory.column(name)
        smooth = np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid")
        panel.plot(steps[WINDOW - 1 :], smooth)
        panel.plot(*directory.column(f"eval/{name}"), "o--", clip_on=False)
        panel.set(title=name.removeprefix("rewards/").removesuffix("/mean"), ylim=(0, 1))
        panel.grid(alpha=0.3)
    for panel in panels[len(parts) + 1 :]:
        panel.axis("off")
    panels[0].legend(["training, sampled", "held out, greedy"], frameon=False, fontsize=8)
    figure.supxlabel("step")
    figure.savefig(picture, metadata={"Date": None})


def _is_part(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/mean")


if __name__ == "__main__":
    main(*sys.argv[1:])
