"""Reads the sections that stand in a file, in the files it is based on, and on the command line.

Keys are not compared with their owners yet: see reading.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from grpo_jax.config.advice import keys_of, unknown_section, usable_names
from grpo_jax.config.finding import find_base, instead_of
from grpo_jax.config.overrides import Override, read_override, with_item, with_value
from grpo_jax.config.sections import SECTIONS
from grpo_jax.config.values import (
    COMMAND_LINE,
    ConfigError,
    compose,
    entries,
    location,
    read_value,
    refusal,
    untyped_value,
)

MOST_BYTES = 2**18  # of a config file
NAME = re.compile(r"[A-Za-z_][\w./-]*(:[A-Za-z_]\w*)?")


@dataclass(frozen=True)
class Written:
    """A section as it is written: each key with its own node and the node of its value. A list has items instead."""

    location: str
    keys: Mapping[str, tuple[yaml.Node, yaml.Node]] = field(default_factory=dict)
    items: Sequence[yaml.Node] = ()


def read_written(path: Path, overrides: Sequence[str], sft: bool) -> dict[str, Written]:
    """The sections of a file and its bases, in which overrides of the command line replace values.

    Sections inside of the section `sft` replace values if `sft`; else they are left out.
    """
    found = [read_override(override) for override in overrides]
    for override in found:
        if override.parts[0] == "sft" and len(override.parts) > 1 and override.parts[1] in SECTIONS:
            meant = override.path.removeprefix("sft.")
            raise ConfigError(f"{COMMAND_LINE}: {override.path}: write {meant}=..., which grpo-jax sft follows, too")
    nested = [override for override in found if _is_nested(override)]
    of_file, first = _divided(_read_file(path, ()))
    of_file = _overlay(of_file, first) if sft else of_file
    written = _overlay(of_file, _whole([override for override in found if not _is_nested(override)]))
    for override in nested:
        later = found[found.index(override) + 1 :]
        if not any(other.parts == override.parts[: len(other.parts)] for other in later):
            written = _with_nested(written, override)
    return written


def _divided(written: dict[str, Written]) -> tuple[dict[str, Written], dict[str, Written]]:
    """The sections of a file without those that stand inside of its section `sft`, and these."""
    if "sft" not in written:
        return written, {}
    keys = written["sft"].keys
    own = {key: pair for key, pair in keys.items() if key not in SECTIONS}
    inner = {key: _written(key, location(name), value) for key, (name, value) in keys.items() if key in SECTIONS}
    return {**written, "sft": Written(written["sft"].location, own)}, inner


def _read_file(path: Path, above: tuple[Path, ...]) -> dict[str, Written]:
    """The sections of a file, and those of its base where the file has none. `above` are the files based on this."""
    node = compose(_text(path), str(path))
    if node is None:
        raise ConfigError(f"{path}:1:1: the file is empty; a config needs a task section at least")
    found = entries(node, "")
    base = found.pop("base", None)
    for name, (key, _) in found.items():
        if name not in SECTIONS:
            raise refusal(key, name, f"unknown section{unknown_section(name, _names(found[name][1]))}")
    written = {name: _written(name, location(key), value) for name, (key, value) in found.items()}
    if base is None:
        return written
    return _overlay(_read_base(path, base[1], (*above, path.resolve())), written)


def _names(node: yaml.Node) -> dict[str, object]:
    """The keys of a mapping, of those in it, and so on."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {name.value: _names(value) for name, value in pairs if isinstance(name, yaml.ScalarNode)}


def _read_base(path: Path, node: yaml.Node, above: tuple[Path, ...]) -> dict[str, Written]:
    name = read_value(node, str, "base")
    try:
        base = find_base(name, path)
        is_file = base.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, or `~` without a home folder
        raise refusal(node, "base", f"{name} cannot be read ({error}); write the path of a file") from error
    if not is_file:
        variable = "; variables such as $HOME are not replaced, write the path" if "$" in name else ""
        raise refusal(node, "base", f"there is no file {base}{variable or instead_of(base)}")
    if base.resolve() in above:
        raise refusal(node, "base", f"{base} is itself based on this file; remove one of these `base` keys")
    return _read_file(base, above)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            inside = f"; did you mean {path / 'config.yaml'}?" if (path / "config.yaml").is_file() else ""
            raise FileNotFoundError(f"there is no config file {path}{inside or instead_of(path)}")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a file that you may read") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path}: a config has at most {MOST_BYTES} bytes; data are named by task.path")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _written(name: str, where: str, node: yaml.Node) -> Written:
    if name != "rewards":
        return Written(where, named_entries(node, name, name))
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        hint = "a list of rewards, such as [exact]; leave the section out to use the task's own"
        raise refusal(node, name, f"expected {hint}")
    return Written(where, items=node.value)


def named_entries(node: yaml.Node, name: str, key: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The keys of a section. A name alone, as in `objective: grpo`, is `objective: {use: grpo}`."""
    if not isinstance(node, yaml.ScalarNode) or not isinstance(untyped_value(node, key), str):
        return entries(node, key)
    if "name" in keys_of(name) and NAME.fullmatch(node.value):  # of a model or a run, and not of what makes it
        raise refusal(node, key, f"expected keys and values; write {name}: {{name: {node.value}}}")
    if len(usable_names(SECTIONS[name])) > 1 and NAME.fullmatch(node.value):
        return {"use": (node, node)}
    return entries(node, key)


def _is_nested(override: Override) -> bool:
    """Whether an override changes a part of what a key or a list has, and so needs to know the rest."""
    return len(override.parts) > (1 if override.parts[0] == "rewards" else 2)


def _whole(overrides: Sequence[Override]) -> dict[str, Written]:
    """The sections of overrides, as if they stood in a file. The last override of a key counts."""
    written: dict[str, Written] = {}
    for override in overrides:
        name, *keys = override.parts
        over = Written(COMMAND_LINE, {str(keys[0]): (override.node, override.node)}) if keys else None
        over = _written(str(name), COMMAND_LINE, override.node) if over is None else over
        under = written.get(str(name), Written(COMMAND_LINE))
        written[str(name)] = Written(COMMAND_LINE, {**under.keys, **over.keys}, over.items)
    return written


def _with_nested(written: Mapping[str, Written], override: Override) -> dict[str, Written]:
    """The sections, in which one value is replaced by that of an override."""
    name, key = str(override.parts[0]), override.parts[1]
    before = written.get(name, Written(COMMAND_LINE))
    if name == "rewards":
        return {**written, name: Written(before.location, items=with_item(before.items, override, 1))}
    old = before.keys.get(str(key))
    new = with_value(None if old is None else old[1], override)
    return {**written, name: Written(before.location, {**before.keys, str(key): (new if old is None else old[0], new)})}


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
