"""Digests of the user's own code that a run depends on: of rewards and other functions, and of what these import."""

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

PACKAGE = Path(__file__).parent.parent


def user_code(values: Iterable[object]) -> dict[str, str]:
    """A digest for each module of the user's that these functions and objects come from, and that those import.

    Of a script or a notebook, whose cells change all the time, each function counts by itself.
    """
    found: dict[str, str] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        module = value if isinstance(value, ModuleType) else _module_of(value)
        if module is None or not _is_users(module):
            continue
        if module.__name__ != "__main__":
            name, inner, source = module.__name__, vars(module).values(), Path(str(module.__file__)).read_bytes()
        elif isinstance(value, FunctionType | type):
            name, inner, source = f"__main__.{value.__qualname__}", list(_used_by(value)), _source(value)
        else:
            name, inner, source = "", [] if isinstance(value, ModuleType) else [type(value)], b""
        if name not in found:
            found[name] = hashlib.sha256(source).hexdigest()
        elif name:
            continue
        waiting += [item for item in inner if isinstance(item, ModuleType) or hasattr(item, "__module__")]
    return {name: digest for name, digest in found.items() if name}


def _module_of(value: object) -> ModuleType | None:
    name = getattr(value, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


def _is_users(module: ModuleType) -> bool:
    """Whether a module is neither Python's, nor installed, nor of this package."""
    if module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)
    places = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return file is not None and file.endswith(".py") and not any(map(Path(file).is_relative_to, [*places, PACKAGE]))


def _source(code: FunctionType | type) -> bytes:
    try:
        return inspect.getsource(code).encode(errors="backslashreplace")
    except (OSError, TypeError):  # typed into an interpreter, which keeps no text
        return code.__code__.co_code if isinstance(code, FunctionType) else b""


def _used_by(code: FunctionType | type) -> Iterator[object]:
    """What a function, or the methods of a class, may find by name in its module."""
    functions = [code] if isinstance(code, FunctionType) else [f for f in vars(code).values() if inspect.isfunction(f)]
    for function in functions:
        for name in _names(function.__code__):
            if name in function.__globals__:
                yield function.__globals__[name]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
