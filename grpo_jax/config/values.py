"""Reads YAML strictly: a value has the type that its owner declares, or it is refused with its line and column.

This differs from YAML 1.1 in four ways: `1e-6` is a number and not a string; `yes`, `no`, `on` and `off` are text; the
same key twice is an error; there are no anchors, aliases or tags.
"""

import math
import re
import sys
import types
import typing
from typing import Any, Literal

import yaml
from yaml.reader import ReaderError

from grpo_jax.config.similar import closest
from grpo_jax.config.syntax import explain, without_blank
from grpo_jax.redaction import HIDDEN, is_secret

COMMAND_LINE = "command line"
NULL, TRUE, FALSE = ("", "~", "null", "Null", "NULL"), ("true", "True", "TRUE"), ("false", "False", "FALSE")
INTEGER = re.compile(r"[-+]?(0|[1-9](_?\d){0,999})")  # int() refuses more than a few thousand digits
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
PLAIN = re.compile(r"[A-Za-z][\w./-]*", re.ASCII)
SWITCHES = ("yes", "no", "on", "off", "y", "n")  # booleans to other readers of YAML, text to this one
SCALARS = (int, float, str, bool, types.NoneType)
LONGEST = 120  # characters of a value that a message repeats
DEEPEST = 50  # levels of lists and mappings
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # a NUL ends a path, and half of a surrogate pair cannot be encoded


class ConfigError(ValueError):
    """A config cannot be used. The message gives file, line and column, the key, what is wrong, and what to write."""


class StrictLoader(yaml.SafeLoader):
    """A loader that refuses anchors, aliases, tags, deep nesting and characters that no file can hold."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node of the document."""
        event = self.peek_event()
        problem = _refused(event) if self.depth < DEEPEST else f"more than {DEEPEST} levels deep; write fewer brackets"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refused(event: yaml.Event) -> str:
    """Why an event of a document is not read; empty if it is."""
    if getattr(event, "anchor", None) is not None:
        return "anchors and aliases are not read; share settings between configs with `base: other.yaml`"
    if getattr(event, "tag", None) is not None:
        return f"tags such as {getattr(event, 'tag', '')} are not read; write the plain value"
    odd = NO_TEXT.search(getattr(event, "value", ""))
    return "" if odd is None else f"the character U+{ord(odd[0]):04X} is not allowed in a config; leave it out"


def compose(text: str, name: str, key: str = "") -> yaml.Node | None:
    """The root node of a document; None if the document is empty. Each node has its line and column."""
    subject = f"{key}: " if key else ""
    loader = None
    try:
        loader = StrictLoader(text)
        loader.name = name
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark, problem = explain(error, text)
        raise ConfigError(f"{_location(mark, name)}: {subject}{problem}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        character = f"U+{ord(text[error.position]):04X}"
        location = name if name == COMMAND_LINE else f"{name}:{line}:{column}"
        raise ConfigError(f"{location}: {subject}the character {character} is not allowed in YAML") from error
    except (ValueError, OverflowError) as error:  # an escape such as \UFFFFFFFF is no character
        mark = None if loader is None else loader.get_mark()
        problem = "this escape is not a character; write the character itself"
        raise ConfigError(f"{_location(mark, name)}: {subject}{problem}") from error


def _location(mark: yaml.Mark | None, name: str) -> str:
    return name if mark is None or name == COMMAND_LINE else f"{name}:{mark.line + 1}:{mark.column + 1}"


def location(node: yaml.Node) -> str:
    """`file:line:column` of a node, or "command line"."""
    return _location(node.start_mark, node.start_mark.name)


def line(node: yaml.Node) -> str:
    """`file:line` of a node, or "command line"."""
    where = location(node)
    return where if where == COMMAND_LINE else where.rpartition(":")[0]


def refusal(node: yaml.Node, key: str, problem: str) -> ConfigError:
    """An error that starts with the location of a node and its key. It does not repeat a secret."""
    last = re.sub(r"\[\d+\]$", "", key.rpartition(".")[2])
    if isinstance(node, yaml.ScalarNode) and node.value and last != "key" and is_secret(last):  # `key` alone: of a row
        problem = problem.replace(_shown(node), repr(HIDDEN)).replace(node.value, HIDDEN)  # a long one is shown cut off
    return ConfigError(f"{location(node)}: {key}: {problem}" if key else f"{location(node)}: {problem}")


def entries(node: yaml.Node, key: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The keys of a mapping in their order, each with the node of the key and the node of the value."""
    if _is_blank(node):
        return {}
    if not isinstance(node, yaml.MappingNode):
        hint = without_blank(node.value) if isinstance(node, yaml.ScalarNode) else ""
        raise refusal(node, key, f"expected keys and values, got {_shown(node)}{hint}")
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


def untyped_value(node: yaml.Node, key: str) -> Any:
    """The value of a node where its owner declares no type: the type follows from the text."""
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style is not None else _scalar_of_text(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [untyped_value(item, key) for item in node.value]
    return {name: untyped_value(value, f"{key}.{name}") for name, (_, value) in entries(node, key).items()}


def _scalar_of_text(text: str) -> int | float | bool | str | None:
    if text in NULL:
        return None
    if text in TRUE or text in FALSE:
        return text in TRUE
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def read_value(node: yaml.Node, expected: Any, key: str) -> Any:
    """The value of a node, which must have the expected type."""
    origin = typing.get_origin(expected) or expected
    if origin in (typing.Union, types.UnionType):
        return _union_value(node, expected, key)
    if origin is Literal:
        return _literal_value(node, expected, key)
    if origin in (list, tuple):
        return _list_value(node, expected, key)
    if origin is dict:
        _, inner = typing.get_args(expected) or (str, Any)
        if not isinstance(node, yaml.MappingNode):
            raise _mismatch(node, expected, key)
        return {name: read_value(value, inner, f"{key}.{name}") for name, (_, value) in entries(node, key).items()}
    if origin in SCALARS:
        return _scalar_value(node, origin, key)
    return untyped_value(node, key)


def _union_value(node: yaml.Node, union: Any, key: str) -> Any:
    members = typing.get_args(union)
    if types.NoneType in members and isinstance(node, yaml.ScalarNode) and untyped_value(node, key) is None:
        return None
    others = tuple(member for member in members if member is not types.NoneType)
    if len(others) == 1:
        return read_value(node, others[0], key)
    for member in others:
        try:
            return read_value(node, member, key)
        except ConfigError:
            continue
    raise _mismatch(node, union, key)


def _literal_value(node: yaml.Node, expected: Any, key: str) -> Any:
    found, allowed = untyped_value(node, key), typing.get_args(expected)
    for value in allowed:
        if type(value) is type(found) and value == found:
            return value
    close = closest(str(found), [str(value) for value in allowed])
    hint = f", did you mean {close}?" if close else ""
    raise refusal(node, key, f"expected {describe(expected)}, got {_shown(node)}{hint}")


def _list_value(node: yaml.Node, expected: Any, key: str) -> list | tuple:
    if not isinstance(node, yaml.SequenceNode):
        raise _mismatch(node, expected, key)
    inner = typing.get_args(expected) or (Any, ...)
    if (typing.get_origin(expected) or expected) is list:
        return [read_value(item, inner[0], f"{key}[{index}]") for index, item in enumerate(node.value)]
    members = [inner[0]] * len(node.value) if inner[1:] == (...,) else inner
    if len(members) != len(node.value):
        raise refusal(node, key, f"expected {len(members)} items, got {len(node.value)}")
    pairs = zip(node.value, members, strict=True)
    return tuple(read_value(item, member, f"{key}[{index}]") for index, (item, member) in enumerate(pairs))


def _scalar_value(node: yaml.Node, expected: type, key: str) -> Any:
    found = untyped_value(node, key) if isinstance(node, yaml.ScalarNode) else node
    if expected is float and type(found) is int and abs(found) <= sys.float_info.max:
        return float(found)
    if type(found) is not expected:
        raise _mismatch(node, expected, key)
    return found


def _mismatch(node: yaml.Node, expected: Any, key: str) -> ConfigError:
    return refusal(node, key, f"expected {describe(expected)}, got {_shown(node)}{_remedy(node, expected, key)}")


def describe(expected: Any) -> str:
    """A type in words, for messages."""
    inner = typing.get_args(expected)
    origin = typing.get_origin(expected) or expected
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in inner)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in inner)
    if origin in (list, tuple):
        return "a list" + (f" of {describe(inner[0])}" if inner and inner[0] is not Any else "")
    if expected is types.NoneType:
        return "null"
    return {dict: "a mapping", Any: "anything"}.get(origin, getattr(origin, "__name__", str(origin)))


def _shown(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    shown = repr(node.value)
    return "nothing" if _is_blank(node) else shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _remedy(node: yaml.Node, expected: Any, key: str) -> str:
    """The end of a message about a wrong type: what to write instead, where that is known."""
    if not isinstance(node, yaml.ScalarNode) or expected not in SCALARS:
        return ""
    if expected is bool and node.value.lower() in (*SWITCHES, "0", "1"):
        return "; write true or false"
    if expected is str:
        quoted = f"'{node.value}'"
        return "; put it in quotes: " + (f'"{key}={quoted}"' if location(node) == COMMAND_LINE else quoted)
    if node.style is not None and isinstance(_scalar_of_text(node.value), expected):
        return "; leave out the quotes"
    number = _scalar_of_text(node.value)
    if expected is int and isinstance(number, float) and number.is_integer() and abs(number) < 1e15:
        return f"; write {int(number)}"
    return ""


def write_value(value: Any) -> str:
    """A value as one line of YAML, which `read_value` reads as the same value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))  # other readers of YAML take 1e-06 for text
    if isinstance(value, list | tuple):
        return f"[{', '.join(write_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{write_value(key)}: {write_value(item)}' for key, item in value.items())}}}"
    if PLAIN.fullmatch(value) and isinstance(_scalar_of_text(value), str) and value.lower() not in SWITCHES:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf).strip()
