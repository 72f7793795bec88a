"""What a config may name in `use:`.

A config is code: it names functions, and gives them arguments. It may name those of this package that a section is made
of, of packages that are installed for it, and of modules in the current folder. The standard library is refused, as
nothing there is a task, a reward or a setting, and much of it deletes files or starts programs.
"""

import functools
import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

INTERNAL = ("grpo_jax.cli", "grpo_jax.commands", "grpo_jax.config", "grpo_jax.hosts", "grpo_jax.__main__")
WAY_OUT = "write a function of your own that calls it, in a module in the current folder, and name that one"


def check_name(target: str, module: str, name: str) -> None:
    """Refuses a name of the standard library, and a private one, before anything is imported."""
    if name.startswith("_"):
        raise ValueError(f"{target} is private, as its name starts with '_'; name a public function or class")
    if is_standard(module):
        raise ValueError(f"{target} is part of Python's standard library, which a config cannot name; {WAY_OUT}")


def check_section_name(target: str, module: str) -> None:
    """Refuses the modules of this package that read configs and run commands: no section is made of them."""
    if any(f"{module}.".startswith(f"{internal}.") for internal in INTERNAL):
        raise ValueError(f"{target} is what runs a config, and cannot be named by one; {WAY_OUT}")


def check_object(target: str, found: Any) -> None:
    """Refuses an object that is no function or class, and one that a module has imported from the standard library."""
    if not callable(found):
        raise ValueError(f"{target} is of type {type(found).__name__}; name a function or a class")
    while isinstance(found, functools.partial):
        found = found.func
    check_origin(target, getattr(found, "__module__", None))


def check_origin(target: str, module: str | None) -> None:
    """Refuses a name whose definition stands in the standard library, wherever it was imported to."""
    if module is not None and is_standard(module):
        raise ValueError(f"{target} comes from {module} of Python's standard library; {WAY_OUT}")


@functools.lru_cache
def is_standard(module: str) -> bool:
    """Whether a module belongs to Python itself; some of its packages, such as `test`, are in no list."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return False  # the __main__ of a notebook has no file
    if spec is None or spec.origin is None:
        return False
    folders = Path(spec.origin).parent
    inside = folders.is_relative_to(sysconfig.get_paths()["stdlib"])
    return inside and not {"site-packages", "dist-packages"} & set(folders.parts)
