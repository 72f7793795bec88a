"""From a YAML file, the files it is based on, and overrides on the command line to a `Config`."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_jax.config.names import public_names, suggestion
from grpo_jax.config.sections import OBJECTIVE, PARTS, SECTIONS, Call, Config, RewardPart, Section
from grpo_jax.config.signatures import Default, Parameter, Signature, parameters, signature
from grpo_jax.config.values import (
    COMMAND_LINE,
    ConfigError,
    compose,
    describe,
    entries,
    line,
    place,
    read_value,
    refusal,
)

PART = "grpo_jax.config.sections:RewardPart"
PLAIN = (int, float, str, bool, dict, types.NoneType, ...)


@dataclass(frozen=True)
class Written:
    """A section as it stands in the text: each key with its own node and its value's; a list has items instead."""

    place: str
    keys: Mapping[str, tuple[yaml.Node, yaml.Node]] = field(default_factory=dict)
    items: Sequence[yaml.Node] = ()


def read(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a file, with `section.key=value` overrides laid over it."""
    written = _overlay(_read_file(Path(path), ()), _read_overrides(overrides))
    absent = Written(f"{path}:1:1")
    calls = {
        name: _call(name, section, written.get(name, absent))
        for name, section in SECTIONS.items()
        if name != "rewards" and (name in written or not section.optional)
    }
    items = written.get("rewards", absent).items
    return Config(rewards=tuple(_reward(f"rewards[{index}]", item) for index, item in enumerate(items)), **calls)


def _read_file(path: Path, above: tuple[Path, ...]) -> dict[str, Written]:
    """The sections of a file laid over those of its base; `above` are the files that lead here through `base`."""
    node = compose(_text(path), str(path))
    if node is None:
        raise ConfigError(f"{path}:1:1: the file is empty; a config needs a task section at least")
    found = entries(node, "")
    base = found.pop("base", None)
    for name, (key, _) in found.items():
        if name not in SECTIONS:
            raise refusal(key, name, f"unknown section{suggestion(name, SECTIONS)}")
    written = {name: _written(name, place(key), value) for name, (key, value) in found.items()}
    if base is None:
        return written
    return _overlay(_read_base(path, base[1], (*above, path.resolve())), written)


def _read_base(path: Path, node: yaml.Node, above: tuple[Path, ...]) -> dict[str, Written]:
    base = path.parent / read_value(node, str, "base")
    if not base.is_file():
        raise refusal(node, "base", f"there is no file {base}{_similar_file(base)}")
    if base.resolve() in above:
        raise refusal(node, "base", f"{base} is in turn based on this file; a chain of bases has to end")
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


def _written(name: str, at: str, node: yaml.Node) -> Written:
    if name != "rewards":
        return Written(at, entries(node, name))
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise refusal(node, name, "expected a list of rewards; leave the section out to use the task's own")
    return Written(at, items=node.value)


def _read_overrides(overrides: Sequence[str]) -> dict[str, Written]:
    """Overrides as if they stood in a file; of two for the same key, the last one counts."""
    written = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        name, _, key = path.partition(".")
        if not equals or bool(key) == (name == "rewards"):
            raise ConfigError(f"{COMMAND_LINE}: {override}: expected section.key=value, or rewards=[...]")
        if name not in SECTIONS:
            raise ConfigError(f"{COMMAND_LINE}: {path}: unknown section{suggestion(name, SECTIONS)}")
        node = compose(text, COMMAND_LINE, path) or compose("null", COMMAND_LINE)
        if name == "rewards":
            written[name] = _written(name, COMMAND_LINE, node)
        else:
            before = written.get(name, Written(COMMAND_LINE)).keys
            written[name] = Written(COMMAND_LINE, {**before, key: (node, node)})
    return written


def _overlay(under: Mapping[str, Written], over: Mapping[str, Written]) -> dict[str, Written]:
    merged = {name: _overlay_section(name, under[name], over[name]) for name in over if name in under}
    return {**under, **over, **merged}


def _overlay_section(name: str, under: Written, over: Written) -> Written:
    """Keys are laid over keys. A list, or another owner with other keys, replaces what was there."""
    at = under.place if over.place == COMMAND_LINE else over.place
    if over.items or _changes_owner(name, under, over):
        return Written(at, over.keys, over.items)
    return Written(at, {**under.keys, **over.keys}, under.items)


def _changes_owner(name: str, under: Written, over: Written) -> bool:
    if "use" not in over.keys:
        return False
    before = under.keys["use"][1].value if "use" in under.keys else SECTIONS[name].default
    return over.keys["use"][1].value != before


def _call(name: str, section: Section, written: Written) -> Call:
    target, found = _owner(name, section, written)
    known = _settable(section, found)
    parts = _parts(written, known) if name == "objective" and target != OBJECTIVE else {}
    rest = replace(written, keys={key: pair for key, pair in written.keys.items() if key not in parts})
    arguments, sources = _arguments(name, rest, known)
    sources |= {key: line(written.keys[key][1]) for key in parts}
    return Call(target, arguments, sources, f"{written.place}: {name}", parts)


def _parts(written: Written, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Fields of the objective that are given beside the preset's own knobs, and replace what the preset chose."""
    fields = parameters(OBJECTIVE)
    return {
        key: _of_kind(value, fields[key], f"objective.{key}")
        for key, (_, value) in written.keys.items()
        if key in fields and (key not in known or isinstance(value, yaml.MappingNode))
    }


def _of_kind(node: yaml.Node, parameter: Parameter, key: str) -> Any:
    """A value of a parameter, which may be a choice with arguments of its own, or a list of such."""
    section = PARTS.get(parameter.name) if key.startswith("objective.") else None
    if section is None or _is_plain(parameter.kind) or _is_number_or_nothing(node, parameter.kind, key):
        return read_value(node, parameter.kind, key)
    several = typing.get_origin(parameter.kind) is tuple
    if several != isinstance(node, yaml.SequenceNode):
        raise refusal(
            node, key, f"expected {'a list of choices, such as [...]' if several else 'one choice, not a list'}"
        )
    if several:
        return tuple(_chosen(item, section, f"{key}[{index}]") for index, item in enumerate(node.value))
    return _chosen(node, section, key)


def _is_plain(kind: Any) -> bool:
    """Whether values of a kind are never choices: a user's own parameter may be called like a part of an objective."""
    if typing.get_origin(kind) is Literal:
        return True
    inner = typing.get_args(kind)
    return all(_is_plain(member) for member in inner) if inner else kind in PLAIN


def _is_number_or_nothing(node: yaml.Node, kind: Any, key: str) -> bool:
    """Whether a value that is no name is given where there may be one."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    value, kinds = read_value(node, Any, key), typing.get_args(kind)
    return types.NoneType in kinds if value is None else float in kinds and not isinstance(value, str)


def _chosen(node: yaml.Node, section: Section, key: str) -> Call:
    """A choice by its name alone, or with arguments."""
    if isinstance(node, yaml.ScalarNode) and not isinstance(read_value(node, Any, key), str):
        raise refusal(
            node, key, f"expected a choice by its name, or {{use: name, ...}} with what it needs; got {node.value}"
        )
    keys = {"use": (node, node)} if isinstance(node, yaml.ScalarNode) else entries(node, key)
    written = Written(place(node), keys)
    target, found = _owner(key, section, written)
    known = found.parameters
    if not found.is_class:  # a function is given the rest when it is called
        known = {name: replace(parameter, default=Default.COMPUTED) for name, parameter in known.items()}
    arguments, sources = _arguments(key, written, known)
    return Call(target, arguments, sources, f"{written.place}: {key}")


def _reward(name: str, node: yaml.Node) -> RewardPart:
    section, written = SECTIONS["rewards"], Written(place(node), entries(node, name))
    target, found = _owner(name, section, written)
    known = _settable(section, found)
    if not found.is_class:  # a function is given the rest, such as columns of the data, when it scores
        known = {key: replace(parameter, default=_later(parameter)) for key, parameter in known.items()}
    arguments, sources = _arguments(name, written, {**known, "weight": parameters(PART)["weight"]})
    weight = arguments.pop("weight")
    return RewardPart(Call(target, arguments, sources, f"{written.place}: {name}"), weight)


def _later(parameter: Parameter) -> Any:
    return Default.COMPUTED if parameter.default is Default.REQUIRED else parameter.default


def _owner(name: str, section: Section, written: Written) -> tuple[str, Signature]:
    """What is called in this section, and what it can be given."""
    node = written.keys["use"][1] if "use" in written.keys else None
    use = section.default if node is None else read_value(node, str, f"{name}.use")
    names = public_names(section.namespace)
    if use is None:
        raise ConfigError(f"{written.place}: {name}.use: missing{suggestion('', names)}")
    if node is not None and ":" not in use and use not in names:
        raise refusal(node, f"{name}.use", f"unknown name {use}{suggestion(use, names)}")
    target = use if ":" in use else f"{section.namespace}:{use}"
    try:
        return target, signature(target)
    except ValueError as error:
        at = written.place if node is None else place(node)
        raise ConfigError(f"{at}: {name}.use: {error}") from error


def _settable(section: Section, found: Signature) -> dict[str, Parameter]:
    return {key: parameter for key, parameter in found.parameters.items() if key not in section.supplied}


def _arguments(name: str, written: Written, known: Mapping[str, Parameter]) -> tuple[dict[str, Any], dict[str, str]]:
    """What is given, checked, with the defaults of what is not; and where each was written."""
    given, sources = {}, dict.fromkeys(["use", *known], "default")
    for key, (node, value) in written.keys.items():
        if key != "use" and key not in known:
            others = parameters(OBJECTIVE) if name == "objective" else {}
            raise refusal(node, f"{name}.{key}", f"unknown key{_similar_key(name, key, {**known, **others})}")
        place_of = f"{name}.{key}"
        given[key] = read_value(value, str, place_of) if key == "use" else _of_kind(value, known[key], place_of)
        sources[key] = line(value)
    for key, parameter in known.items():
        if key not in given and parameter.default is Default.REQUIRED:
            raise ConfigError(f"{written.place}: {name}.{key}: missing, expected {_expected(parameter)}")
    arguments = {key: given.get(key, parameter.default) for key, parameter in known.items()}
    return {key: value for key, value in arguments.items() if value is not Default.COMPUTED}, sources


def _similar_key(name: str, key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {name}.{close[0]}?" if close else suggestion(key, known)


def _expected(parameter: Parameter) -> str:
    comment = f" ({parameter.comment})" if parameter.comment else ""
    return describe(parameter.kind) + comment
