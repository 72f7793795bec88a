"""Draws a curve as SVG whose colours are those of the page, light or dark. No text of a run is in it but numbers."""

import io
import math
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from grpo_jax.report.curves import Curve, Line, smooth

COLOURS = 8  # of lines, which the page defines as --line-0 to --line-7
# Colours that stand for those of the page: Matplotlib knows no variables, so they are replaced once it has drawn.
LINES = [f"#0a0b0{index}" for index in range(COLOURS)]
INK, FAINT = "#0a0b0e", "#0a0b0f"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "path.simplify": True,
    "font.size": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False,
}
WIDTH, HEIGHT = 5.2, 2.9  # inches
LARGEST = 1e100  # that is drawn; Matplotlib cannot divide an axis that goes further
MARKED = 60  # points, at most, that are drawn as such
NARROW = 2e-3  # of the values: a smaller range is not drawn larger


def draw(curve: Curve, name: str) -> str:
    """The SVG of a curve. `name` is one that no other picture of the page has."""
    style: Any = STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a file of the user says
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        if curve.stacked:
            _stack(axes, curve)
        else:
            for index, line in enumerate(curve.lines):
                _line(axes, line, LINES[index % COLOURS])
        axes.set(xlabel="step", ylabel=curve.unit, yscale="log" if curve.log else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
        axes.margins(x=0.02)
        _widen(axes, curve)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _for_page(text.getvalue())


def _widen(axes: Axes, curve: Curve) -> None:
    """Plain numbers beside a logarithmic axis; room about values that are all but equal, whose digits say nothing."""
    if curve.log:
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator() if _decades(axes) >= 1.5 else LogLocator(subs=(2.0, 5.0)))
        return
    low, high = axes.get_ylim()
    room = NARROW * max(abs(low), abs(high))
    if high - low < room:
        axes.set_ylim((low + high - room) / 2, (low + high + room) / 2)
    if curve.unit.startswith("part of") and all(not line.values.any() for line in curve.lines):
        axes.set_ylim(-0.02, 1.0)


def _decades(axes: Axes) -> float:
    low, high = axes.get_ylim()
    return math.log10(high / low)


def _line(axes: Axes, line: Line, colour: str) -> None:
    """A line; a noisy one is faint, with its moving mean upon it."""
    mean = None if line.points else smooth(line.values)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    few = line.points or len(line.values) == 1
    marker = "o" if few and len(line.values) <= MARKED else "None"
    alpha, width = (1.0, 1.6) if mean is None else (0.3, 0.8)
    axes.plot(
        line.steps,
        np.clip(line.values, -LARGEST, LARGEST),
        color=colour,
        alpha=alpha,
        linewidth=width,
        marker=marker,
        markersize=4,
    )
    if mean is not None:
        axes.plot(line.steps, mean, color=colour, linewidth=1.8)


def _stack(axes: Axes, curve: Curve) -> None:
    """Lines upon one another, as parts of a whole. A part that a step does not have is 0 there."""
    steps = np.unique(np.concatenate([line.steps for line in curve.lines]))
    bottom = np.zeros(len(steps))
    for index, line in enumerate(curve.lines):
        known = dict(zip(line.steps.tolist(), line.values.tolist(), strict=True))
        values = np.interp(steps, line.steps, line.values) if len(known) > len(steps) / 2 else _sparse(steps, known)
        colour = LINES[index % COLOURS]
        axes.fill_between(steps, bottom, bottom + values, color=colour, alpha=0.75, linewidth=0, step="mid")
        bottom = bottom + values
    if len(steps) == 1:
        axes.set_xlim(steps[0] - 0.5, steps[0] + 0.5)


def _sparse(steps: np.ndarray, known: dict[int, float]) -> np.ndarray:
    return np.array([known.get(int(step), 0.0) for step in steps])


def _for_page(svg: str) -> str:
    """The picture as a part of a page: no declarations, names of its parts or addresses, and the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg role="img" viewBox="\1">', svg, count=1)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for index, colour in enumerate(LINES):
        svg = svg.replace(colour, f"var(--line-{index})")
    return svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
