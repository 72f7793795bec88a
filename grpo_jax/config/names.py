"""Finds the definition of a name that a config gives, in the source text and without importing its module.

Importing JAX takes about a second, and a misspelt key in a config should be reported at once. So a name is followed
through module files, `from x import name` and aliases.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from grpo_jax.config.trust import check_name


@dataclass(frozen=True)
class Source:
    """The text of a module, its top-level statements, and the expressions that it assigns to plain names."""

    module: str
    package: str
    lines: list[str]
    statements: list[ast.stmt]
    constants: dict[str, ast.expr]


@dataclass(frozen=True)
class Definition:
    """A function or a class, and the module that defines it."""

    source: Source
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


# Modules that have moved since a config may have been written; run directories hold such configs. Where a module was
# divided, the names are looked up in each of the new ones.
SHAPING = ("grpo_jax.objectives.shaping", "grpo_jax.objectives.selection")
MOVED = {
    "grpo_jax.advantages": ("grpo_jax.objectives.advantages",),
    "grpo_jax.shaping": SHAPING,
    "grpo_jax.objectives.shaping": SHAPING,
    "grpo_jax.objectives.penalties": (
        "grpo_jax.objectives.kl",
        "grpo_jax.objectives.coefficients",
        "grpo_jax.objectives.terms",
    ),
    "grpo_jax.runtime.optimizer": ("grpo_jax.optimizers",),
}


def split(target: str) -> tuple[str, str]:
    """Module and name of `package.module:name`, where they are today. Refuses what no config may name."""
    module, _, name = target.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ValueError(f"expected a public name or package.module:name, got {target!r}")
    check_name(target, module, name)
    modules = MOVED.get(module, (module,))
    return next((each for each in modules if len(modules) > 1 and find(each, name)), modules[0]), name


def public_names(module: str) -> list[str]:
    """The public names of a module: its `__all__`, or else the names that it defines and re-exports."""
    source = read_source(module)
    if source is None:
        return []
    listed = literal(source.constants.get("__all__"))
    if isinstance(listed, list | tuple):
        return [str(name) for name in listed]
    names = [name for statement in source.statements for name in _bound_names(statement)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _bound_names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.ImportFrom(level=level, names=names) if level > 0:
            return [alias.asname or alias.name for alias in names]
    return []


def find(module: str, name: str) -> Definition | None:
    """The function or class that a name of a module refers to; None if the text does not tell."""
    source = read_source(module)
    if source is None:
        return None
    for statement in source.statements:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if statement.name == name:
                return Definition(source, statement)
        origin = _origin(statement, name, source)
        if origin is not None and origin != (module, name):
            return find(*origin)
    return None


def constant(source: Source, name: str) -> tuple[ast.expr, Source] | None:
    """The expression that a name is assigned, and the module that assigns it.

    The name is followed through imports, within the package of `source` only.
    """
    if name in source.constants:
        return source.constants[name], source
    for statement in source.statements:
        origin = _origin(statement, name, source)
        if origin is not None and origin[0].split(".")[0] == source.module.split(".")[0] and origin[0] != source.module:
            other = read_source(origin[0])
            return None if other is None else constant(other, origin[1])
    return None


def _origin(statement: ast.stmt, name: str, source: Source) -> tuple[str, str] | None:
    """The module and the name that a statement imports or copies as `name`; None if it does neither."""
    match statement:
        case ast.ImportFrom(module=module, names=names, level=level):
            for alias in names:
                if name == (alias.asname or alias.name):
                    return _absolute("." * level + (module or ""), source), alias.name
        case ast.Assign(targets=[ast.Name(id=alias)], value=ast.Name(id=original)) if alias == name:
            return source.module, original
    return None


def _absolute(module: str, source: Source) -> str:
    return importlib.util.resolve_name(module, source.package)


def read_source(module: str) -> Source | None:
    """The source of a module; None if it has no Python file."""
    path = _path(module)
    if path is None or path.suffix != ".py":
        return None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    text, statements = _parse(path.read_bytes(), str(path), module)
    constants = {name: value for statement in statements for name, value in _assignments(statement)}
    return Source(module, package, text.splitlines(), statements, constants)


def _path(module: str) -> Path | None:
    """The file of a module. Unlike importlib.util.find_spec, this imports none of the packages that contain it."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return None  # the __main__ of a notebook has no file
    for depth in range(len(inner)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *inner[: depth + 1]]), list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@functools.lru_cache
def _parse(content: bytes, path: str, module: str) -> tuple[str, list[ast.stmt]]:
    """The text of a file of Python, and its top-level statements."""
    try:
        text = importlib.util.decode_source(content)
        return text, list(_flatten(ast.parse(text, path).body))
    except SyntaxError as error:
        raise syntax_error(error, module, path) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, NUL bytes, or an expression that is nested too deep
        raise ValueError(f"{path}:1: {module} cannot be read as Python: {error}; correct it there") from error


def syntax_error(error: SyntaxError, module: str, path: str = "") -> ValueError:
    """A syntax error in a module of the user, as a sentence with the place in that module."""
    file = path if error.filename is None else error.filename
    place = "" if error.lineno is None else f":{error.lineno}" + ("" if error.offset is None else f":{error.offset}")
    return ValueError(f"{module} has a syntax error at {file}{place}: {error.msg}; correct it there")


def _flatten(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The top-level statements and those under `if TYPE_CHECKING:` and `try:`."""
    for statement in statements:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _flatten([*statement.body, *statement.orelse])


def _assignments(statement: ast.stmt) -> list[tuple[str, ast.expr]]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [(name, value)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [(name, value)]
    return []


def literal(node: ast.expr | None) -> Any:
    """The value of a literal; `...` if the expression is not a literal, or None."""
    try:
        return ast.literal_eval(node) if node is not None else ...
    except (ValueError, TypeError):
        return ...
