"""`grpo-jax objectives`: the presets, what each is made of, and where it comes from."""

import argparse
import dataclasses
import inspect
import re
from typing import Any

from grpo_jax import objectives
from grpo_jax.config import ConfigError, parameters
from grpo_jax.config.names import suggestion
from grpo_jax.objectives import Objective
from grpo_jax.objectives.advantages import Advantage, unscaled

RECIPES = ("verifiable", "rubric")
PRESETS = [*RECIPES, *(name for name in objectives.__all__ if name not in ("Objective", "scored_of", *RECIPES))]
COLUMNS = ("preset", "source", "advantage", "ratio", "surrogate", "weighting", "other choices")
SHOWN = ("advantage", "ratio", "surrogate", "weighting", "anchor")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of presets, or one of them with its formula; the exit code."""
    if arguments.name is None:
        print(markdown() if arguments.markdown else table())
    elif arguments.name in PRESETS:
        print(describe(arguments.name))
    else:
        raise ConfigError(f"there is no objective {arguments.name}{suggestion(arguments.name, PRESETS)}")
    return 0


def table() -> str:
    """One line for each preset, in columns."""
    rows = [COLUMNS, *(row(name) for name in PRESETS)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows
    )


def markdown() -> str:
    """The same for a page."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(name) for name in PRESETS)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def row(name: str) -> tuple[str, ...]:
    """What a preset is made of."""
    objective = getattr(objectives, name)()
    ratio = "" if objective.anchor == "current" else shown(objective.ratio)
    ratio += " to the sampler" if objective.anchor == "sampler" else ""
    return (
        name,
        source(name),
        shown(objective.advantage),
        ratio or "none",
        shown(objective.surrogate),
        shown(objective.weighting),
        others(objective),
    )


def others(objective: Objective) -> str:
    """Choices beyond the usual ones."""
    fields = [field for field in dataclasses.fields(objective) if field.name not in SHOWN]
    given = [
        (field.name, getattr(objective, field.name))
        for field in fields
        if getattr(objective, field.name) != field.default
    ]
    return "; ".join(f"{name}: {shown(value)}" for name, value in given)


def shown(value: Any) -> str:
    """A choice, nearly as it would be written."""
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


def source(name: str) -> str:
    """The paper that a preset's docstring names first."""
    found = re.search(r"arXiv:[\d.]+\d", inspect.getdoc(getattr(objectives, name)))
    return found[0] if found else ""


def describe(name: str) -> str:
    """A preset's source and formula, its knobs with their defaults, and all of its choices."""
    preset = getattr(objectives, name)
    knobs = parameters(f"grpo_jax.objectives:{name}").values()
    lines = [inspect.getdoc(preset), "", "knobs, as `objective: {use: " + name + ", ...}`:"]
    lines += [f"  {knob.name}: {knob.default}{'  # ' + knob.comment if knob.comment else ''}" for knob in knobs] or [
        "  none"
    ]
    objective = preset()
    lines += ["", "choices:"]
    lines += [f"  {field.name}: {shown(getattr(objective, field.name))}" for field in dataclasses.fields(objective)]
    return "\n".join(lines)
