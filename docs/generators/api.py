"""The pages of the API: which names each has, and docstrings, which are plain text, in reStructuredText."""

import importlib
import inspect
import re
from types import ModuleType
from typing import Any

import grpo_jax as gj
from grpo_jax.config import parameters

GROUPS = {  # of the names of the package itself: the folders or files of the package that define them
    "A run": ("training",),
    "One step": ("grpo", "algorithm", "scoring", "learner"),
    "Evaluation": ("evaluation",),
    "Models and devices": ("models", "devices"),
    "Tasks, rewards and objectives": ("tasks", "rewards", "objectives"),
    "Engines": ("rollout",),
    "Optimizers": ("optimizers",),
    "Values of a step": ("structs",),
}
PAGES = {  # modules whose other names have a page of their own
    "objectives": "Objectives",
    "rewards": "Rewards",
    "tasks": "Tasks",
    "judges": "Judges",
    "models": "Models",
    "scoring": "Scoring",
    "training.trackers": "Trackers",
}
OF_PACKAGE = {name: value for name in gj.__all__ if not isinstance(value := getattr(gj, name), ModuleType)}


def pages() -> dict[str, str]:
    """The text of each page by its name. `api` has the names of the package itself, and lists the other pages."""
    modules = {f"api_{name.rpartition('.')[2]}": (name, title) for name, title in PAGES.items()}
    return {"api": _first(list(modules))} | {page: _page(*module) for page, module in modules.items()}


def _first(others: list[str]) -> str:
    """The page of the package: its names in groups."""
    parts = [_heading("API", "="), "``import grpo_jax as gj``: these are the names of ``gj``."]
    groups: dict[str, list[str]] = {title: [] for title in [*GROUPS, "More"]}
    for name, value in OF_PACKAGE.items():
        groups[_group(value)].append(name)
    for title, names in groups.items():
        parts += (
            [_heading(title, "-"), *(_entry("grpo_jax", name, OF_PACKAGE[name]) for name in names)] if names else []
        )
    entries = "".join(f"\n   {page}" for page in others)
    return "\n\n".join([*parts, _heading("Modules", "-"), f".. toctree::\n   :maxdepth: 1\n{entries}"]) + "\n"


def _group(value: Any) -> str:
    unit = value.__module__.split(".")[1]
    return next((title for title, units in GROUPS.items() if unit in units), "More")


def _page(module_name: str, title: str) -> str:
    """The page of a module: what it says of itself, and its public names that are not names of the package."""
    module = importlib.import_module(f"grpo_jax.{module_name}")
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    values = {name: getattr(module, name) for name in names if _is_shown(getattr(module, name), module)}
    parts = [_heading(f"{title}: grpo_jax.{module_name}", "="), "\n".join(restructured(module.__doc__ or ""))]
    return "\n\n".join([*parts, *(_entry(module.__name__, name, value) for name, value in values.items())]) + "\n"


def _is_shown(value: Any, module: ModuleType) -> bool:
    """Whether a value is a function or a class that the page of the package does not have, defined below a module."""
    return f"{getattr(value, '__module__', '')}.".startswith(f"{module.__name__}.") and all(
        value is not other for other in OF_PACKAGE.values()
    )


def _heading(title: str, line: str) -> str:
    return f"{title}\n{line * len(title)}"


def _entry(module: str, name: str, value: Any) -> str:
    """The directive that shows a function or a class. A class that goes by another name is shown as what it is."""
    if not inspect.isclass(value):
        return f".. autofunction:: {module}.{name}"
    if value.__name__ == name:
        return f".. autoclass:: {module}.{name}\n   :members:"
    return (
        f"``{name}`` is a name of this class:\n\n.. autoclass:: {value.__module__}.{value.__qualname__}\n   :members:"
    )


def readable(app, what: str, name: str, value: Any, options, signature: str | None, returns: str | None):
    """A signature that Sphinx is about to show; None if it stays as it is. Types of other packages have short names."""
    if signature == "(*args, **kwargs)":  # of a protocol
        return "", returns
    return signature and (_shortened(signature), returns and _shortened(returns))


def _shortened(text: str) -> str:
    text = re.sub(r"<(?:function|class) '?(?:\w+\.)*(\w+)'?>", r"\1", text).replace("<factory>", "...")
    return re.sub(r"~?\b(?!grpo_jax\.)(?:\w+\.)+(?=[A-Z])(\w+)", r"\1", text)


def convert(app, what: str, name: str, value: Any, options, lines: list[str]) -> None:
    """A docstring that Sphinx is about to read, in reStructuredText, with the comments beside parameters."""
    lines[:] = [*restructured("\n".join(lines)), *_parameters(what, value), ""]


def _parameters(what: str, value: Any) -> list[str]:
    if what not in ("function", "class") or not value.__module__.startswith("grpo_jax."):
        return []
    known = parameters(f"{value.__module__}:{value.__qualname__}").values()
    return [f":param {each.name}: {_escaped(each.comment)}" for each in known if each.comment]


def restructured(text: str) -> list[str]:
    """The lines of plain text in reStructuredText. What is indented is shown as it is; single backticks are code."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        given = paragraph.splitlines()
        if all(line.startswith("    ") for line in given):
            lines += ["::", "", *given, ""]
        else:
            lines += [
                *(_escaped(line.strip()) if not _continues(line) else f"  {_escaped(line.strip())}" for line in given),
                "",
            ]
    return lines


def _continues(line: str) -> bool:
    """Whether a line goes on with an item of a list."""
    return line.startswith("  ") and not line.startswith("    ")


def _escaped(text: str) -> str:
    """Plain text in reStructuredText, in which all but what is in backticks means itself."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        re.sub(r"([\\*_|`])", r"\\\1", part) if index % 2 == 0 else _code(part) for index, part in enumerate(parts)
    )


def _code(text: str) -> str:
    return f"\\ ``{text}``\\ "
