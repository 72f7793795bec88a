"""Overrides of the command line: `section.key=value`, `objective.kl.coefficient=0.1` or `rewards[0].weight=2`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from grpo_jax.config.advice import unknown_section
from grpo_jax.config.sections import SECTIONS
from grpo_jax.config.values import COMMAND_LINE, ConfigError, compose, untyped_value

PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")
MARK = yaml.Mark(COMMAND_LINE, 0, 0, 0, None, None)
MAPPING, SEQUENCE, TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str"))


@dataclass(frozen=True)
class Override:
    """A value, and where it goes: a section, then keys and positions in lists, as far as the path names them."""

    path: str
    parts: tuple[str | int, ...]
    node: yaml.Node


def read_override(text: str) -> Override:
    """An override as it is written on the command line. Whether its section has such a key is not known yet."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not PATH.fullmatch(path):
        raise ConfigError(f"{COMMAND_LINE}: {text}: expected section.key=value, or rewards=[...]")
    found = [part[1] if part[2] is None else part[2] for part in PART.finditer(path)]
    name, *keys = found
    if name not in SECTIONS:
        raise ConfigError(f"{COMMAND_LINE}: {path}: unknown section{unknown_section(path, {})}")
    node = compose(value, COMMAND_LINE, path)
    null = yaml.ScalarNode(TEXT, "null", MARK, MARK)  # the value of an override that ends with its `=`
    return Override(
        path, (name, *(int(key) if key.isdecimal() else key for key in keys)), null if node is None else node
    )


def with_value(node: yaml.Node | None, override: Override, depth: int = 2) -> yaml.Node:
    """A node in which the value at the parts of an override from `depth` on is replaced; None is nothing written."""
    if depth == len(override.parts):
        return override.node
    if isinstance(override.parts[depth], int):
        return _with_item(node, override, depth)
    pairs = _pairs(node, override, depth)
    key = override.parts[depth]
    old = next((value for name, value in pairs if name.value == key), None)
    new = with_value(old, override, depth + 1)
    if old is None:
        pairs = [*pairs, (yaml.ScalarNode(TEXT, str(key), MARK, MARK), new)]
    return yaml.MappingNode(MAPPING, [(name, new if value is old else value) for name, value in pairs], MARK, MARK)


def with_item(items: Sequence[yaml.Node], override: Override, depth: int) -> list[yaml.Node]:
    """The items of a list, in which the one that an override names is changed."""
    index, above = override.parts[depth], _shown(override, depth)
    if not isinstance(index, int):
        raise _refusal(override, f"{above} is a list; name an item of it, as in {above}[0].{index}")
    if index >= len(items):
        last = f"so the last is {above}[{len(items) - 1}]" if items else f"so write {above}=[...]"
        raise _refusal(override, f"there is no {above}[{index}]: the config has {len(items)} items there, {last}")
    return [with_value(item, override, depth + 1) if at == index else item for at, item in enumerate(items)]


def _with_item(node: yaml.Node | None, override: Override, depth: int) -> yaml.Node:
    if node is not None and not isinstance(node, yaml.SequenceNode):
        raise _refusal(override, f"{_shown(override, depth)} is not a list; name a key of it")
    items = [] if node is None else node.value
    return yaml.SequenceNode(SEQUENCE, with_item(items, override, depth), MARK, MARK)


def _pairs(node: yaml.Node | None, override: Override, depth: int) -> list[tuple[yaml.Node, yaml.Node]]:
    """The keys and values of a node. One that is a choice by its name alone has the key `use`."""
    above = _shown(override, depth)
    if isinstance(node, yaml.MappingNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        raise _refusal(override, f"{above} is a list; name an item of it, as in {above}[0].{override.parts[depth]}")
    if node is None or untyped_value(node, above) is None:
        return []
    if isinstance(untyped_value(node, above), str):
        return [(yaml.ScalarNode(TEXT, "use", MARK, MARK), node)]
    raise _refusal(override, f"{above} is {node.value}, which has no keys; replace it, as in {above}={{use: name}}")


def _shown(override: Override, depth: int) -> str:
    """The first `depth` parts of a path."""
    name, *parts = override.parts[:depth]
    return str(name) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _refusal(override: Override, problem: str) -> ConfigError:
    return ConfigError(f"{COMMAND_LINE}: {override.path}: {problem}")
