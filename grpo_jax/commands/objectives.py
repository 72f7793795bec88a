"""`grpo-jax objectives`: the presets, what each is made of, and where it comes from."""

import argparse
import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
from types import FunctionType
from typing import Any

from grpo_jax.config import ConfigError, parameters
from grpo_jax.config.similar import suggestion
from grpo_jax.objectives import PRESETS, Objective
from grpo_jax.objectives.advantages import Advantage, unscaled

COLUMNS = ("preset", "source", "advantage", "ratio", "surrogate", "weighting", "other choices")
SHOWN = ("advantage", "ratio", "surrogate", "weighting", "anchor")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of presets, or one preset with its formula. Returns the exit code."""
    named = {preset.__name__: preset for preset in PRESETS}
    if arguments.name is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(markdown() if arguments.markdown else table(width))
    elif arguments.name in named:
        print(describe(arguments.name, named[arguments.name]))
    else:
        raise ConfigError(f"there is no objective {arguments.name}{suggestion(arguments.name, named)}")
    return 0


def table(width: int | None = None) -> str:
    """One line of text for each preset, in columns; where these do not fit in `width`, its choices in words."""
    lines = [COLUMNS, *map(cells, PRESETS)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        return "\n".join(_paragraph(line, widths[0], widths[1], width) for line in lines[1:])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _paragraph(line: tuple[str, ...], first: int, second: int, width: int) -> str:
    """The name and the source of a preset, and beside them its choices, broken into lines."""
    name, paper, *choices = line
    named = [f"{column} {cell}" for column, cell in zip(COLUMNS[2:6], choices, strict=False)] + choices[4:]
    start = f"{name.ljust(first)}  {paper.ljust(second)}  "
    room = max(width, len(start) + 20)  # a terminal that is too narrow for that breaks the lines itself
    return textwrap.fill("; ".join(filter(None, named)), room, initial_indent=start, subsequent_indent=" " * len(start))


def markdown() -> str:
    """The same table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, PRESETS)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def cells(preset: FunctionType) -> tuple[str, ...]:
    """The name, the source and the choices of a preset, in the order of `COLUMNS`."""
    objective = preset()
    ratio = "" if objective.anchor == "current" else shown(objective.ratio)
    ratio += " to the sampler" if objective.anchor == "sampler" else ""
    return (
        preset.__name__,
        source(preset),
        shown(objective.advantage),
        ratio or "none",
        shown(objective.surrogate),
        shown(objective.weighting),
        others(objective),
    )


def others(objective: Objective) -> str:
    """The choices that have no column of their own and are not the default."""
    fields = [field for field in dataclasses.fields(objective) if field.name not in SHOWN]
    given = [(field, getattr(objective, field.name)) for field in fields]
    return "; ".join(f"{field.name}: {shown(value)}" for field, value in given if value != field.default)


def shown(value: Any) -> str:
    """A choice, nearly as it is written in Python."""
    if isinstance(value, tuple):
        return ", ".join(shown(item) for item in value) or "none"
    if isinstance(value, Advantage):
        above = f"R - {shown(value.center)}"
        return above if value.scale is unscaled else f"({above}) / {shown(value.scale)}"
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        given = [shown(getattr(value, field.name)) for field in fields if getattr(value, field.name) is not None]
        return f"{type(value).__name__}({', '.join(given)})"
    return value.__name__ if inspect.isfunction(value) else "none" if value is None else str(value)


def source(preset: FunctionType) -> str:
    """The first paper that a preset's docstring names; an empty string if it names none."""
    found = re.search(r"arXiv:[\d.]+\d", inspect.getdoc(preset) or "")
    return found[0] if found else ""


def describe(name: str, preset: FunctionType) -> str:
    """A preset's source and formula, its knobs with their defaults, and all of its choices."""
    knobs = parameters(f"grpo_jax.objectives:{name}").values()
    lines = [inspect.getdoc(preset) or "", "", "settings, as `objective: {use: " + name + ", ...}`:"]
    lines += [f"  {knob.name}: {knob.default}{'  # ' + knob.comment if knob.comment else ''}" for knob in knobs] or [
        "  none"
    ]
    objective = preset()
    lines += ["", "choices:"]
    lines += [f"  {field.name}: {shown(getattr(objective, field.name))}" for field in dataclasses.fields(objective)]
    return "\n".join(lines)
