"""A run in a terminal: what was learned, what is wrong, and small curves, as wide as the terminal is."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from grpo_jax.report.curves import Curve, Line, curves
from grpo_jax.report.diagnosis import diagnoses
from grpo_jax.report.headline import headline
from grpo_jax.report.reading import Found, read_run
from grpo_jax.report.text import clean
from grpo_jax.saved.directory import METRICS

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"  # of a small curve, for terminals with and without Unicode
WIDE = 70  # columns from which on there is room for small curves
SHARE = 10  # times as long as it took to read a run, before it is read again


class Screen(Console):
    """A terminal or a pipe. Where nobody reads it any more, that is told by the error of Python."""

    def on_broken_pipe(self) -> None:
        """Raises the error, in place of ending the process."""
        raise BrokenPipeError


def show_once(run: Path) -> None:
    """Prints a run as it is now."""
    console = Screen()
    console.print(_shown(read_run(run), console))


def watch(run: Path, seconds: float) -> None:
    """Shows a run until Ctrl-C, and looks every so many seconds whether it has gone on."""
    console = Screen()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for found in _changes(run, seconds):
            live.update(_shown(found, console), refresh=True)


def _changes(run: Path, seconds: float) -> Iterator[Found]:
    """The run each time that its metrics have changed. A long one is read less often, so that this costs little."""
    known = None
    while True:
        begun, now = time.monotonic(), _changed_at(run)
        if known is None or now != known:
            known = now
            yield read_run(run)
        time.sleep(max(seconds, SHARE * (time.monotonic() - begun)))


def _changed_at(run: Path) -> tuple[float, int]:
    try:
        status = (run / METRICS).stat()
        return status.st_mtime, status.st_size
    except OSError:
        return 0.0, 0


def _shown(found: Found, console: Console) -> RenderableType:
    head, wrong = headline(found), diagnoses(found)
    parts: list[RenderableType] = [Text(f"{clean(found.name)}, {head.state}", style="bold")]
    if head.first is not None and head.last is not None:
        arrow = _either(console, "→", "->")
        parts.append(Text(f"{head.name} {head.first} {arrow} {head.last}: {head.verdict}", style="bold cyan"))
        parts += [Text(str(head.change), style="dim")] if head.change is not None else []
    parts += [Text(clean(note), style="dim") for note in head.notes]
    for diagnosis in wrong:
        box = Panel(Text(clean(diagnosis.text)), title=Text(diagnosis.title), title_align="left", border_style="red")
        parts.append(box)
    if not wrong and len(found.history):
        parts.append(Text("Nothing is wrong.", style="green"))
    parts.append(_curves(curves(found), console))
    parts += [Text(f"note: {clean(problem)}", style="yellow") for problem in found.problems]
    return Group(*parts)


def _curves(drawn: list[Curve], console: Console) -> Table:
    """A line for each metric: its name, a small curve, its first and last value. A narrow terminal has no curves."""
    wide, width = console.width >= WIDE, max(8, min(48, console.width - WIDE))
    table = Table(box=None, pad_edge=False, expand=False)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, console.width - (width + 40 if wide else 24)))
    for title in ("", "first", "last", "unit") if wide else ("first", "last"):
        side, least = ("right", 9) if title in ("first", "last") else ("left", None)
        table.add_column(title, justify=side, no_wrap=True, overflow="ellipsis", min_width=least)
    for curve in drawn:
        for line in curve.lines:
            name = Text(curve.title if len(curve.lines) == 1 else f"{curve.title}: {clean(line.label)}")
            ends = [f"{value:.4g}" for value in (line.values[0], line.values[-1])]
            unit = Text(curve.unit, style="dim")
            table.add_row(*([name, Text(_small(line, width, console)), *ends, unit] if wide else [name, *ends]))
    return table


def _small(line: Line, width: int, console: Console) -> str:
    """A curve on one line: the mean of equal parts of the steps, from the lowest block to the highest."""
    levels = _either(console, BLOCKS, PLAIN)
    parts = np.array_split(line.values, min(width, len(line.values)))
    means = np.array([part.mean() for part in parts])
    reach = float(np.ptp(means))
    places = np.zeros(len(means)) if reach == 0 else (means - means.min()) / reach * (len(levels) - 1)
    return "".join(levels[round(float(place))] for place in places)


def _either(console: Console, unicode: str, plain: str) -> str:
    return plain if console.options.ascii_only else unicode
