"""Reads the sections that stand in a file, in the files it is based on, and on the command line.

Keys are not compared with their owners yet: see reading.py.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from grpo_jax.config.names import suggestion
from grpo_jax.config.sections import SECTIONS
from grpo_jax.config.values import COMMAND_LINE, ConfigError, compose, entries, location, read_value, refusal


@dataclass(frozen=True)
class Written:
    """A section as it is written: each key with its own node and the node of its value. A list has items instead."""

    location: str
    keys: Mapping[str, tuple[yaml.Node, yaml.Node]] = field(default_factory=dict)
    items: Sequence[yaml.Node] = ()


def read_written(path: Path, overrides: Sequence[str]) -> dict[str, Written]:
    """The sections of a file and its bases, in which overrides of the command line replace values."""
    return _overlay(_read_file(path, ()), _read_overrides(overrides))


def _read_file(path: Path, above: tuple[Path, ...]) -> dict[str, Written]:
    """The sections of a file, and those of its base where the file has none. `above` are the files based on this."""
    node = compose(_text(path), str(path))
    if node is None:
        raise ConfigError(f"{path}:1:1: the file is empty; a config needs a task section at least")
    found = entries(node, "")
    base = found.pop("base", None)
    for name, (key, _) in found.items():
        if name not in SECTIONS:
            raise refusal(key, name, f"unknown section{suggestion(name, SECTIONS)}")
    written = {name: _written(name, location(key), value) for name, (key, value) in found.items()}
    if base is None:
        return written
    return _overlay(_read_base(path, base[1], (*above, path.resolve())), written)


def _read_base(path: Path, node: yaml.Node, above: tuple[Path, ...]) -> dict[str, Written]:
    base = path.parent / read_value(node, str, "base")
    if not base.is_file():
        raise refusal(node, "base", f"there is no file {base}{_similar_file(base)}")
    if base.resolve() in above:
        raise refusal(node, "base", f"{base} is itself based on this file; remove one of these `base` keys")
    return _read_file(base, above)


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no config file {path}{_similar_file(path)}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _similar_file(path: Path) -> str:
    names = [other.name for other in path.parent.glob("*.yaml")]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f", did you mean {path.parent / close[0]}?" if close else ""


def _written(name: str, where: str, node: yaml.Node) -> Written:
    if name != "rewards":
        return Written(where, entries(node, name))
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise refusal(node, name, "expected a list of rewards; leave the section out to use the task's own")
    return Written(where, items=node.value)


def _read_overrides(overrides: Sequence[str]) -> dict[str, Written]:
    """The sections of overrides, as if they stood in a file. The last override of a key counts."""
    written: dict[str, Written] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        name, _, key = path.partition(".")
        if not equals or bool(key) == (name == "rewards"):
            raise ConfigError(f"{COMMAND_LINE}: {override}: expected section.key=value, or rewards=[...]")
        if name not in SECTIONS:
            raise ConfigError(f"{COMMAND_LINE}: {path}: unknown section{suggestion(name, SECTIONS)}")
        node = compose(text, COMMAND_LINE, path) or _null()
        if name == "rewards":
            written[name] = _written(name, COMMAND_LINE, node)
        else:
            before = written.get(name, Written(COMMAND_LINE)).keys
            written[name] = Written(COMMAND_LINE, {**before, key: (node, node)})
    return written


def _null() -> yaml.Node:
    """The value of an override that ends with its `=`."""
    mark = yaml.Mark(COMMAND_LINE, 0, 0, 0, None, None)
    return yaml.ScalarNode("tag:yaml.org,2002:null", "null", mark, mark)


def _overlay(under: Mapping[str, Written], over: Mapping[str, Written]) -> dict[str, Written]:
    """The sections of both; where both have a section, the values of `over` count."""
    merged = {name: _overlay_section(name, under[name], over[name]) for name in over if name in under}
    return {**under, **over, **merged}


def _overlay_section(name: str, under: Written, over: Written) -> Written:
    """The keys of both, with the values of `over` where both have one. A list or another owner replaces all keys."""
    where = under.location if over.location == COMMAND_LINE else over.location
    if over.items or _changes_owner(name, under, over):
        return Written(where, over.keys, over.items)
    return Written(where, {**under.keys, **over.keys}, under.items)


def _changes_owner(name: str, under: Written, over: Written) -> bool:
    if "use" not in over.keys:
        return False
    before = under.keys["use"][1].value if "use" in under.keys else SECTIONS[name].default
    return over.keys["use"][1].value != before
