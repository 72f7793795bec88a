"""Imports what a config names. An error in the user's module is one sentence with the module's own file and line."""

import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_jax.config.names import public_names, split, syntax_error
from grpo_jax.config.similar import suggestion
from grpo_jax.config.trust import check_object


def find_modules_in(folder: str | Path) -> None:
    """Lets `use: my_module:my_reward` find a module in a folder, after installed packages and earlier folders."""
    path = str(Path(folder).absolute())
    if path not in sys.path:
        sys.path.append(path)


def load(target: str) -> Any:
    """Imports the object that `package.module:name` stands for; nothing else imports what a config names."""
    module, name = split(target)
    owner = _imported(target, module)
    if not hasattr(owner, name):
        raise ValueError(f"{module} has no {name}{suggestion(name, public_names(module))}")
    found = getattr(owner, name)
    check_object(target, found)
    return found


def is_ours(module: str) -> bool:
    """Whether a module belongs to this package, so that an error in it is not the user's."""
    return module.partition(".")[0] == "grpo_jax"


def _imported(target: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name}; {target} should be in an installed package or in the current folder"
            ) from error
        if is_ours(module):
            raise
        raise ValueError(
            f"{failed(error)}; {module} needs it: install it, or take the import out of the module"
        ) from error
    except SyntaxError as error:
        raise syntax_error(error, module) from error
    except (Exception, SystemExit) as error:
        if is_ours(module):
            raise
        raise ValueError(f"{module} cannot be imported: {failed(error)}; correct it there") from error


def failed(error: BaseException) -> str:
    """An exception of the user's code as a part of a sentence: file and line, its type and its message."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_the_user(frame.filename)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}".rstrip(": ")


def _is_of_the_user(filename: str) -> bool:
    """Whether a file is neither a part of this package nor of Python or an installed package."""
    paths = sysconfig.get_paths()
    folders = [Path(paths[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    others = any(Path(filename).is_relative_to(folder) for folder in [*folders, Path(__file__).parents[1]])
    return not filename.startswith("<") and not others
