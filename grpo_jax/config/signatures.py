"""Reads what a function or a dataclass can be given: its parameters, with their types and defaults."""

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

from grpo_jax.config.loading import load
from grpo_jax.config.names import Source, constant, find, literal, split
from grpo_jax.config.trust import check_origin

SCALARS = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "Mapping": dict}
LISTS = {"list": list, "tuple": tuple, "Sequence": tuple}
GENERICS = (*LISTS, "Optional", "Union", "dict", "Mapping")
LITERAL: Any = Literal  # type checkers want to see the members of a Literal, which are known only once text is read


class Default(enum.Enum):
    """Why a parameter has no default value that could be shown."""

    REQUIRED = "has to be given"
    COMPUTED = "an expression, left to the owner"


@dataclass(frozen=True)
class Parameter:
    """A parameter of an owner. Its type is a typing object; Any if a value in YAML cannot be checked against it."""

    name: str
    type: Any
    default: Any = Default.REQUIRED
    comment: str = ""


@dataclass(frozen=True)
class Signature:
    """The parameters that a function or a class can be given by keyword."""

    parameters: dict[str, Parameter]
    is_class: bool


def parameters(target: str) -> dict[str, Parameter]:
    """The parameters that `package.module:name` can be given by keyword."""
    return signature(target).parameters


def signature(target: str) -> Signature:
    """The signature of `package.module:name`, from source text; an object not defined by text is imported instead."""
    try:
        definition = find(*split(target))
        if definition is None:  # a partial, or an extension in another language
            return _imported_signature(target)
        check_origin(target, definition.source.module)
        if isinstance(definition.node, ast.ClassDef):
            return Signature(_class_parameters(definition.node, definition.source), is_class=True)
        return Signature(_function_parameters(definition.node, definition.source), is_class=False)
    except RecursionError as error:
        raise ValueError(f"{target} is defined by itself; give it a value or a function in its module") from error


def _class_parameters(node: ast.ClassDef, source: Source) -> dict[str, Parameter]:
    """The parameters of a class in their order: fields that are given by keyword only come last, as in dataclasses."""
    fields = sorted(_fields(node, source).values(), key=lambda field: field[1])
    return {parameter.name: parameter for parameter, _ in fields}


def _fields(node: ast.ClassDef, source: Source) -> dict[str, tuple[Parameter, bool]]:
    """The parameters of `__init__`, or else all fields, those of the bases first; each with "by keyword only"."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return {name: (found, False) for name, found in _function_parameters(statement, source, skip=1).items()}
    fields: dict[str, tuple[Parameter, bool]] = {}
    for base in reversed(node.bases):
        inherited = find(source.module, base.id) if isinstance(base, ast.Name) else None
        if inherited is not None and isinstance(inherited.node, ast.ClassDef):
            fields.update(_fields(inherited.node, inherited.source))
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and (found := _field(statement, source)) is not None:
            fields[found.name] = found, _takes_keywords_only(node)
    return fields


def _takes_keywords_only(node: ast.ClassDef) -> bool:
    """Whether a dataclass has the option `kw_only=True`."""
    options = [keyword for call in node.decorator_list if isinstance(call, ast.Call) for keyword in call.keywords]
    return any(option.arg == "kw_only" and literal(option.value) is True for option in options)


def _field(statement: ast.AnnAssign, source: Source) -> Parameter | None:
    """The parameter that a field of a dataclass becomes; None if it becomes none."""
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
    """The parameters of a function that can be given by keyword, without the first `skip`."""
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
    name: str,
    annotation: ast.expr | None,
    default: ast.expr | None,
    last: ast.expr | ast.arg | ast.AnnAssign,
    source: Source,
) -> Parameter:
    """A parameter, with the comment that follows its `last` node on the same line."""
    value = Default.REQUIRED if default is None else _default(default, source)
    return Parameter(name, _type(annotation, source), value, _comment_after(last, source))


def _default(node: ast.expr, source: Source) -> Any:
    match node:
        case ast.Name(id=name) if found := constant(source, name):
            node, source = found
        case ast.Attribute(value=ast.Name(id=name), attr=field):  # the default of another class's field
            owner = find(source.module, name)
            if owner is not None and isinstance(owner.node, ast.ClassDef):
                fields = _class_parameters(owner.node, owner.source)
                if field in fields:
                    return fields[field].default
    value = literal(node)
    return Default.COMPUTED if value is ... else value


def _comment_after(node: ast.expr | ast.arg | ast.AnnAssign, source: Source) -> str:
    if node.end_lineno is None:  # the node was not parsed from text
        return ""
    line = source.lines[node.end_lineno - 1].encode()  # ast counts columns in bytes
    match = re.fullmatch(r"\s*,?\s*#\s*(.*?)\s*", line[node.end_col_offset :].decode())
    return match[1] if match else ""


def _type(node: ast.expr | None, source: Source) -> Any:
    """The typing object that an annotation stands for; an alias is followed, also into the module it comes from."""
    match node:
        case ast.Constant(value=None):
            return types.NoneType
        case ast.Constant(value=str() as text):
            return _type(_expression(text), source)
        case ast.Name(id=name) if found := constant(source, name):
            return _type(*found)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return SCALARS.get(name, LISTS.get(name, Any))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left, source) | _type(right, source)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            return _generic(name, inner.elts if isinstance(inner, ast.Tuple) else [inner], source)
    return Any


def _expression(text: str) -> ast.expr | None:
    """The expression of an annotation in quotes; None if the text is no Python."""
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def _generic(name: str, inner: Sequence[ast.expr], source: Source) -> Any:
    """The typing object of `name[inner]`."""
    if name == "Literal":
        return LITERAL[tuple(literal(item) for item in inner)]
    if name not in GENERICS:  # Float[Array, "P G"]: what is inside the brackets is no annotation
        return Any
    members: tuple[Any, ...] = tuple(... if ast.unparse(item) == "..." else _type(item, source) for item in inner)
    match name:
        case "Optional":
            return members[0] | None
        case "Union":
            return functools.reduce(operator.or_, members)
        case "Sequence":
            return types.GenericAlias(tuple, (*members, ...))
        case "list" | "tuple":
            return types.GenericAlias(LISTS[name], members)
        case "dict" | "Mapping":
            return types.GenericAlias(dict, members)
    return Any


def _imported_signature(target: str) -> Signature:
    """The signature of an object that has to be imported for it."""
    owner = load(target)
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        described = inspect.signature(owner, eval_str=True)
    except (TypeError, ValueError, NameError, SyntaxError) as error:
        raise ValueError(f"{target} has no signature ({error}); call it in a function of your own") from error
    known = [p for p in described.parameters.values() if p.kind in by_keyword]
    return Signature({p.name: _inspected(p) for p in known}, inspect.isclass(owner))


def _inspected(parameter: inspect.Parameter) -> Parameter:
    annotation = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
    if parameter.default is inspect.Parameter.empty:
        return Parameter(parameter.name, annotation)
    is_plain = isinstance(parameter.default, int | float | str | list | tuple | dict | None)
    return Parameter(parameter.name, annotation, parameter.default if is_plain else Default.COMPUTED)
