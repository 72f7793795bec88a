"""Draws the coefficient of each surrogate against the ratio: python docs/plot_objectives.py docs/objectives.svg
(needs `dev`).

The coefficient is the factor of the advantage times the gradient of the log-prob.
"""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

from grpo_jax.objectives.surrogates import (
    ClippedRatio,
    ClippedWeight,
    GammaWeight,
    GeometricClip,
    Interval,
    SoftGate,
    TrustRegionKL,
    TrustRegionTV,
    importance,
    reinforce,
    tapered,
)
from grpo_jax.structs import Tokens

SURROGATES = {
    "reinforce": reinforce,
    "importance": importance,
    "ClippedRatio(0.2, 0.28, 3)": ClippedRatio(0.2, 0.28, 3.0),
    "ClippedWeight(0, 2)": ClippedWeight(high=2.0),
    "Interval(0.5, 2)": Interval(high=2.0),
    "TrustRegionTV(0.15)": TrustRegionTV(),
    "TrustRegionKL(0.05)": TrustRegionKL(),
    "SoftGate": SoftGate(),
    "GammaWeight": GammaWeight(),
    "tapered": tapered,
    "GeometricClip(0.4)": GeometricClip(),
}
PROBABILITY = 0.25  # of the token when it was sampled


def coefficient(surrogate, ratio_N: np.ndarray, advantage: float) -> np.ndarray:
    """The coefficient of a token at each of these ratios."""
    x = jnp.log(jnp.asarray(ratio_N, jnp.float32))[:, None, None]
    anchor, nothing = jnp.full(x.shape, jnp.log(PROBABILITY)), jnp.zeros(x.shape)
    tokens = Tokens(
        jnp.ones(x.shape, bool), jnp.full(x.shape, advantage), anchor + x, nothing, x, anchor, anchor, anchor
    )

    def total(logprobs_PGT: jax.Array) -> jax.Array:
        return surrogate(replace(tokens, logprobs_PGT=logprobs_PGT, log_ratio_PGT=logprobs_PGT - anchor)).sum()

    return np.asarray(jax.grad(total)(tokens.logprobs_PGT)).ravel() / advantage


def main(picture: str) -> None:
    """Writes an SVG with one panel for each surrogate."""
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figure, panels = plt.subplots(3, 4, figsize=(10, 6.5), layout="constrained", sharex=True, sharey=True)
    ratio_N = np.linspace(0.02, 3.8, 600)
    for panel, (name, surrogate) in zip(panels.flat, SURROGATES.items(), strict=False):
        for advantage, style in ((1.0, "-"), (-1.0, "--")):
            panel.plot(ratio_N, coefficient(surrogate, ratio_N, advantage), style)
        panel.axvline(1, color="0.8", linewidth=0.8, zorder=0)
        panel.set(title=name, ylim=(0, 3.2), xlim=(0, 3.8))
    for panel in panels.flat[len(SURROGATES) :]:
        panel.set_axis_off()
    panels.flat[len(SURROGATES)].legend(
        *[panels.flat[0].get_lines()[:2], ["advantage above 0", "advantage below 0"]], loc="center", frameon=False
    )
    figure.supxlabel(f"ratio to the anchor, of a token whose probability was {PROBABILITY}")
    figure.supylabel("coefficient")
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
