"""What objectives are made of: `grpo-jax objectives --table`, and the end of `grpo-jax objectives NAME`."""

import argparse
import dataclasses
import inspect
import re
from types import FunctionType
from typing import Any

from grpo_jax.commands import printing
from grpo_jax.objectives import PRESETS, Objective
from grpo_jax.objectives.advantages import Advantage, unscaled

COLUMNS = ("preset", "source", "advantage", "ratio", "surrogate", "weighting", "other choices")
SHOWN = ("advantage", "ratio", "surrogate", "weighting", "anchor")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of presets; the exit code."""
    print(markdown() if arguments.markdown else printing.table([COLUMNS, *map(cells, PRESETS)], printing.width()))
    return 0


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


def choices(name: str) -> str:
    """All choices of a preset, a line for each."""
    objective = next(preset for preset in PRESETS if preset.__name__ == name)()
    fields = dataclasses.fields(objective)
    return "\n".join(
        ["", "choices:", *(f"  {field.name}: {shown(getattr(objective, field.name))}" for field in fields)]
    )
