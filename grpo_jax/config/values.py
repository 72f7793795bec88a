"""YAML read strictly: a value is what its owner's type says it is, or it is refused with its line and column.

Four habits of YAML 1.1 are left out: `1e-6` is a number and not a string, `yes`, `no`, `on` and `off` are plain text,
of two equal keys neither wins, and there are no anchors, aliases or tags.
"""

import difflib
import math
import re
import types
import typing
from typing import Any, Literal

import yaml

COMMAND_LINE = "command line"
NULL, TRUE, FALSE = ("", "~", "null", "Null", "NULL"), ("true", "True", "TRUE"), ("false", "False", "FALSE")
INTEGER = re.compile(r"[-+]?(0|[1-9](_?\d){0,999})")  # int() refuses more than a few thousand digits
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
PLAIN = re.compile(r"[A-Za-z][\w./-]*", re.ASCII)
SWITCHES = ("yes", "no", "on", "off", "y", "n")  # booleans to other readers of YAML, text to this one
SCALARS = (int, float, str, bool, types.NoneType)


class ConfigError(ValueError):
    """A config that cannot be used: where, which key, what is wrong, and what might have been meant."""


class StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if event.anchor is not None:
            problem = "anchors and aliases are not read; share settings between configs with `base: other.yaml`"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if getattr(event, "tag", None) is not None:
            problem = f"tags such as {event.tag} are not read; write the plain value"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def compose(text: str, name: str, key: str = "") -> yaml.Node | None:
    """The nodes of a document, each of which knows its line and column; None if there are none."""
    subject = f"{key}: " if key else ""
    try:
        loader = StrictLoader(text)
        loader.name = name
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        hint = "; indent with spaces" if "'\\t'" in problem else ""
        raise ConfigError(f"{_at(error.problem_mark, name)}: {subject}{problem}{hint}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        character = f"U+{ord(text[error.position]):04X}"
        at = name if name == COMMAND_LINE else f"{name}:{line}:{column}"
        raise ConfigError(f"{at}: {subject}the character {character} is not allowed in YAML") from error


def _at(mark: yaml.Mark | None, name: str) -> str:
    return name if mark is None or name == COMMAND_LINE else f"{name}:{mark.line + 1}:{mark.column + 1}"


def place(node: yaml.Node) -> str:
    """`file:line:column`, or the command line."""
    return _at(node.start_mark, node.start_mark.name)


def line(node: yaml.Node) -> str:
    """`file:line`, or the command line."""
    at = place(node)
    return at if at == COMMAND_LINE else at.rpartition(":")[0]


def refusal(node: yaml.Node, key: str, what: str) -> ConfigError:
    return ConfigError(f"{place(node)}: {key}: {what}" if key else f"{place(node)}: {what}")


def entries(node: yaml.Node, key: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The keys of a mapping in their order, each with its own node and its value's."""
    if _is_blank(node):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise refusal(node, key, f"expected keys and values, got {_shown(node)}")
    found = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise refusal(name, key, f"expected a key, got {_shown(name)}")
        if name.value in found:
            raise refusal(name, f"{key}.{name.value}" if key else name.value, "given twice; keep one of the two")
        found[name.value] = (name, value)
    return found


def _is_blank(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == ""


def _natural(node: yaml.Node, key: str) -> Any:
    """What a node is by itself, where no type says what it should be."""
    if isinstance(node, yaml.SequenceNode):
        return [_natural(item, key) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {name: _natural(value, f"{key}.{name}") for name, (_, value) in entries(node, key).items()}
    return node.value if node.style is not None else _plain(node.value)


def _plain(text: str) -> int | float | bool | str | None:
    if text in NULL:
        return None
    if text in TRUE or text in FALSE:
        return text in TRUE
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def read_value(node: yaml.Node, kind: Any, key: str) -> Any:
    """The node as a value of this type; refused if it is of another."""
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return _one_of(node, kind, key)
    if origin is Literal:
        return _choice(node, typing.get_args(kind), key)
    if origin in (list, tuple):
        return _items(node, kind, key)
    if origin is dict:
        _, inner = typing.get_args(kind) or (str, Any)
        if not isinstance(node, yaml.MappingNode):
            raise _mismatch(node, kind, key)
        return {name: read_value(value, inner, f"{key}.{name}") for name, (_, value) in entries(node, key).items()}
    if origin in SCALARS:
        return _scalar(node, origin, key)
    return _natural(node, key)


def _one_of(node: yaml.Node, union: Any, key: str) -> Any:
    kinds = typing.get_args(union)
    if types.NoneType in kinds and isinstance(node, yaml.ScalarNode) and _natural(node, key) is None:
        return None
    others = tuple(kind for kind in kinds if kind is not types.NoneType)
    if len(others) == 1:
        return read_value(node, others[0], key)
    for kind in others:
        try:
            return read_value(node, kind, key)
        except ConfigError:
            continue
    raise _mismatch(node, union, key)


def _choice(node: yaml.Node, choices: tuple[Any, ...], key: str) -> Any:
    found = _natural(node, key)
    for choice in choices:
        if type(choice) is type(found) and choice == found:
            return choice
    close = difflib.get_close_matches(str(found), [str(choice) for choice in choices], n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    raise refusal(node, key, f"expected {describe(Literal[choices])}, got {_shown(node)}{hint}")


def _items(node: yaml.Node, kind: Any, key: str) -> list | tuple:
    if not isinstance(node, yaml.SequenceNode):
        raise _mismatch(node, kind, key)
    inner = typing.get_args(kind) or (Any, ...)
    if (typing.get_origin(kind) or kind) is list:
        return [read_value(item, inner[0], f"{key}[{index}]") for index, item in enumerate(node.value)]
    kinds = [inner[0]] * len(node.value) if inner[1:] == (...,) else inner
    if len(kinds) != len(node.value):
        raise refusal(node, key, f"expected {len(kinds)} items, got {len(node.value)}")
    pairs = zip(node.value, kinds, strict=True)
    return tuple(read_value(item, inner, f"{key}[{index}]") for index, (item, inner) in enumerate(pairs))


def _scalar(node: yaml.Node, kind: type, key: str) -> Any:
    found = _natural(node, key) if isinstance(node, yaml.ScalarNode) else node
    if kind is float and type(found) is int:
        return float(found)
    if type(found) is not kind:
        raise _mismatch(node, kind, key)
    return found


def _mismatch(node: yaml.Node, kind: Any, key: str) -> ConfigError:
    return refusal(node, key, f"expected {describe(kind)}, got {_shown(node)}{_remedy(node, kind, key)}")


def describe(kind: Any) -> str:
    """A type in the words of an error."""
    inner = typing.get_args(kind)
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in inner)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in inner)
    if origin in (list, tuple):
        return "a list" + (f" of {describe(inner[0])}" if inner and inner[0] is not Any else "")
    if kind is types.NoneType:
        return "null"
    return {dict: "a mapping", Any: "anything"}.get(origin, getattr(origin, "__name__", str(origin)))


def _shown(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return "nothing" if _is_blank(node) else repr(node.value)


def _remedy(node: yaml.Node, kind: Any, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or kind not in SCALARS:
        return ""
    if kind is bool and node.value.lower() in (*SWITCHES, "0", "1"):
        return "; write true or false"
    if kind is str:
        quoted = f"'{node.value}'"
        return "; put it in quotes: " + (f'"{key}={quoted}"' if place(node) == COMMAND_LINE else quoted)
    if node.style is not None and isinstance(_plain(node.value), kind):
        return "; leave out the quotes"
    if kind is int and isinstance(_plain(node.value), float) and float(node.value).is_integer():
        return f"; write {int(float(node.value))}"
    return ""


def write_value(value: Any) -> str:
    """A value as YAML on one line, which `read_value` reads back as the same value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))  # other readers of YAML take 1e-06 for text
    if isinstance(value, list | tuple):
        return f"[{', '.join(write_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{write_value(key)}: {write_value(item)}' for key, item in value.items())}}}"
    if PLAIN.fullmatch(value) and isinstance(_plain(value), str) and value.lower() not in SWITCHES:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf).strip()
