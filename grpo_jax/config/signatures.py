"""What a function or a dataclass can be given: the knobs it owns, with their types and defaults."""

import ast
import enum
import functools
import inspect
import operator
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_jax.config.names import Definition, Source, find, literal, load, split

SCALARS = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "Mapping": dict}
LISTS = {"list": list, "tuple": tuple, "Sequence": tuple}
GENERICS = (*LISTS, "Optional", "Union", "dict", "Mapping")


class Default(enum.Enum):
    """Why there is no default to show."""

    REQUIRED = "has to be given"
    COMPUTED = "an expression, left to the owner"


@dataclass(frozen=True)
class Parameter:
    """One knob. Its kind is a typing object, Any for what a YAML file could not be checked against."""

    name: str
    kind: Any
    default: Any = Default.REQUIRED
    comment: str = ""


@dataclass(frozen=True)
class Signature:
    parameters: dict[str, Parameter]
    is_class: bool


def parameters(target: str) -> dict[str, Parameter]:
    """What `package.module:name` can be given by keyword."""
    return signature(target).parameters


def signature(target: str) -> Signature:
    """Read from the source text; what the text does not tell (`partial`, another language) is imported and asked."""
    definition = find(*split(target))
    if definition is None:
        return _imported_signature(load(target))
    if isinstance(definition.node, ast.ClassDef):
        return Signature(_class_parameters(definition), is_class=True)
    return Signature(_function_parameters(definition.node, definition.source), is_class=False)


def _class_parameters(definition: Definition) -> dict[str, Parameter]:
    """Those of `__init__` where the class writes one, else its fields after those of its bases."""
    node, source = definition.node, definition.source
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _function_parameters(statement, source, skip=1)
    found, by_keyword = {}, {}
    for base in node.bases:
        inherited = find(source.module, base.id) if isinstance(base, ast.Name) else None
        if inherited is not None and isinstance(inherited.node, ast.ClassDef):
            (by_keyword if _is_keyword_only(inherited.node) else found).update(_class_parameters(inherited))
    fields = (_field(statement, source) for statement in node.body if isinstance(statement, ast.AnnAssign))
    return found | {field.name: field for field in fields if field is not None} | by_keyword


def _is_keyword_only(node: ast.ClassDef) -> bool:
    """Whether a dataclass takes its fields by keyword alone, so that they come after all others."""
    options = [keyword for call in node.decorator_list if isinstance(call, ast.Call) for keyword in call.keywords]
    return any(option.arg == "kw_only" and literal(option.value) is True for option in options)


def _field(statement: ast.AnnAssign, source: Source) -> Parameter | None:
    if not isinstance(statement.target, ast.Name) or "ClassVar" in ast.unparse(statement.annotation):
        return None
    default = statement.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) in ("field", "dataclasses.field"):
        options = {keyword.arg: keyword.value for keyword in default.keywords}
        if literal(options.get("init")) is False:
            return None
        default = options.get("default", options.get("default_factory"))
    return _parameter(statement.target.id, statement.annotation, default, statement, source)


def _function_parameters(
    node: ast.FunctionDef | ast.AsyncFunctionDef, source: Source, skip: int = 0
) -> dict[str, Parameter]:
    positional = [*node.args.posonlyargs, *node.args.args]
    without_default = len(positional) - len(node.args.defaults)
    pairs = list(zip(positional, [*[None] * without_default, *node.args.defaults], strict=True))
    by_keyword = pairs[max(skip, len(node.args.posonlyargs)) :]
    by_keyword += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {
        argument.arg: _parameter(argument.arg, argument.annotation, default, default or argument, source)
        for argument, default in by_keyword
    }


def _parameter(
    name: str, annotation: ast.expr | None, default: ast.expr | None, last: ast.AST, source: Source
) -> Parameter:
    value = Default.REQUIRED if default is None else _default(default, source)
    return Parameter(name, _kind(annotation, source), value, _comment_after(last, source))


def _default(node: ast.expr, source: Source) -> Any:
    match node:
        case ast.Name(id=name):
            node = source.constants.get(name, node)
        case ast.Attribute(value=ast.Name(id=name), attr=field):  # the default of another class's field
            owner = find(source.module, name)
            fields = _class_parameters(owner) if owner is not None and isinstance(owner.node, ast.ClassDef) else {}
            if field in fields:
                return fields[field].default
    value = literal(node)
    return Default.COMPUTED if value is ... else value


def _comment_after(node: ast.AST, source: Source) -> str:
    line = source.lines[node.end_lineno - 1].encode()  # ast counts columns in bytes
    match = re.fullmatch(r"\s*,?\s*#\s*(.*?)\s*", line[node.end_col_offset :].decode())
    return match[1] if match else ""


def _kind(node: ast.expr | None, source: Source) -> Any:
    """The typing object that an annotation stands for."""
    match node:
        case ast.Constant(value=None):
            return types.NoneType
        case ast.Constant(value=str() as text):
            return _kind(ast.parse(text, mode="eval").body, source)
        case ast.Name(id=name) if name in source.constants:
            return _kind(source.constants[name], source)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return SCALARS.get(name, LISTS.get(name, Any))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _kind(left, source) | _kind(right, source)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            return _generic(name, inner.elts if isinstance(inner, ast.Tuple) else [inner], source)
    return Any


def _generic(name: str, inner: Sequence[ast.expr], source: Source) -> Any:
    if name == "Literal":
        return Literal[tuple(literal(item) for item in inner)]
    if name not in GENERICS:  # Float[Array, "P G"]: what stands inside is no annotation
        return Any
    kinds = tuple(... if literal(item) is ... and ast.unparse(item) == "..." else _kind(item, source) for item in inner)
    match name:
        case "Optional":
            return kinds[0] | None
        case "Union":
            return functools.reduce(operator.or_, kinds)
        case "Sequence":
            return tuple[(*kinds, ...)]
        case "list" | "tuple":
            return LISTS[name][kinds]
        case "dict" | "Mapping":
            return dict[kinds]
    return Any


def _imported_signature(owner: Any) -> Signature:
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [p for p in inspect.signature(owner, eval_str=True).parameters.values() if p.kind in by_keyword]
    return Signature({p.name: _inspected(p) for p in known}, inspect.isclass(owner))


def _inspected(parameter: inspect.Parameter) -> Parameter:
    kind = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
    if parameter.default is inspect.Parameter.empty:
        return Parameter(parameter.name, kind)
    is_plain = isinstance(parameter.default, int | float | str | list | tuple | dict | None)
    return Parameter(parameter.name, kind, parameter.default if is_plain else Default.COMPUTED)
