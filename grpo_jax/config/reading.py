"""Reads a YAML file, the files it is based on, and overrides on the command line into a `Config`."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_jax.config.advice import unknown_key, unknown_name, usable_names
from grpo_jax.config.names import public_names, split
from grpo_jax.config.retired import is_ignored
from grpo_jax.config.sections import (
    OBJECTIVE,
    OF_SFT,
    PARTS,
    SECTIONS,
    TRACKERS,
    Call,
    Config,
    RewardPart,
    Section,
    limits_of_rewards,
)
from grpo_jax.config.signatures import Default, Parameter, Signature, parameters, signature
from grpo_jax.config.similar import suggestion
from grpo_jax.config.trust import check_section_name
from grpo_jax.config.values import ConfigError, describe, entries, line, location, read_value, refusal
from grpo_jax.config.written import Written, named_entries, read_written

REWARD_PART = "grpo_jax.config.sections:RewardPart"
NEVER_CHOICES = (int, float, str, bool, dict, types.NoneType, ...)


def read(path: str | Path, overrides: Sequence[str] = (), sft: bool = False) -> Config:
    """The config in a file, in which `section.key=value` overrides replace values.

    With `sft` it is that of `grpo-jax sft`, in which sections inside of the section `sft` replace what stands outside.
    """
    written, absent = read_written(Path(path), overrides, sft), Written(f"{path}:1:1")
    calls = {
        name: _call(name, section, written.get(name, absent))
        for name, section in SECTIONS.items()
        if name != "rewards" and (name in written or not section.optional or (sft and name == "sft"))
    }
    calls = calls if sft else {name: call for name, call in calls.items() if name not in OF_SFT}
    items = written.get("rewards", absent).items
    return Config(rewards=tuple(_reward(f"rewards[{index}]", item) for index, item in enumerate(items)), **calls)


def _call(name: str, section: Section, written: Written) -> Call:
    target, found = _owner(name, section, written)
    known = _settable(section, found)
    choices = _choices(written, known) if name == "objective" and target != OBJECTIVE else {}
    rest = replace(written, keys={key: pair for key, pair in written.keys.items() if key not in choices})
    arguments, sources = _arguments(name, rest, known)
    sources |= {key: line(written.keys[key][1]) for key in choices}
    return Call(target, arguments, sources, f"{written.location}: {name}", choices, _places(written))


def _choices(written: Written, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Fields of the objective that are written beside a preset's own parameters, and replace the preset's choices."""
    fields = parameters(OBJECTIVE)
    return {
        key: _value(value, fields[key], f"objective.{key}")
        for key, (_, value) in written.keys.items()
        if key in fields and (key not in known or isinstance(value, yaml.MappingNode))
    }


def _value(node: yaml.Node, parameter: Parameter, key: str) -> Any:
    """The value of a parameter, which may be a choice with arguments of its own, or a list of choices."""
    section = _section_of_choices(parameter.name, key)
    if section is None or is_never_a_choice(parameter.type) or _is_number_or_null(node, parameter.type, key):
        return read_value(node, parameter.type, key)
    several = typing.get_origin(parameter.type) is tuple
    if several != isinstance(node, yaml.SequenceNode):
        raise refusal(
            node, key, f"expected {'a list of choices, such as [...]' if several else 'one choice, not a list'}"
        )
    if isinstance(node, yaml.SequenceNode):
        return tuple(_choice(item, section, f"{key}[{index}]") for index, item in enumerate(node.value))
    return _choice(node, section, key)


def _section_of_choices(name: str, key: str) -> Section | None:
    """Where the choices of a parameter are looked up; None if its value is none."""
    if key == "train.trackers":
        return TRACKERS
    return PARTS.get(name) if key.startswith("objective.") else None


def is_never_a_choice(expected: Any) -> bool:
    """Whether no value of a type is a choice: a user's own parameter may have the name of an objective's field."""
    if typing.get_origin(expected) is Literal:
        return True
    inner = typing.get_args(expected)
    return all(is_never_a_choice(member) for member in inner) if inner else expected in NEVER_CHOICES


def _is_number_or_null(node: yaml.Node, expected: Any, key: str) -> bool:
    """Whether a node is a number or null, and its type allows that beside a choice."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    value, members = read_value(node, Any, key), typing.get_args(expected)
    return types.NoneType in members if value is None else float in members and not isinstance(value, str)


def _choice(node: yaml.Node, section: Section, key: str) -> Call:
    """A choice that is written as its name alone, or as a mapping with arguments."""
    if isinstance(node, yaml.ScalarNode) and not isinstance(read_value(node, Any, key), str):
        raise refusal(
            node, key, f"expected a choice by its name, or {{use: name, ...}} with its arguments; got {node.value}"
        )
    keys = {"use": (node, node)} if isinstance(node, yaml.ScalarNode) else entries(node, key)
    written = Written(location(node), keys)
    target, found = _owner(key, section, written)
    known = found.parameters
    if not found.is_class:  # the program gives a function the rest when it calls it
        known = {name: replace(parameter, default=Default.COMPUTED) for name, parameter in known.items()}
    arguments, sources = _arguments(key, written, known)
    return Call(target, arguments, sources, f"{written.location}: {key}", places=_places(written))


def _reward(name: str, node: yaml.Node) -> RewardPart:
    section, written = SECTIONS["rewards"], Written(location(node), named_entries(node, "rewards", name))
    target, found = _owner(name, section, written)
    known = _settable(section, found)
    if not found.is_class:  # the program gives a function the rest, such as columns of the data, when it calls it
        known = {key: replace(parameter, default=_given_later(parameter)) for key, parameter in known.items()}
    limits = {key: each for key, each in limits_of_rewards().items() if key not in known}
    others = {**limits, "weight": parameters(REWARD_PART)["weight"]}
    arguments, sources = _arguments(name, written, {**known, **others})
    weight, given = arguments.pop("weight"), {key: arguments.pop(key) for key in limits}
    call = Call(target, arguments, sources, f"{written.location}: {name}", places=_places(written))
    return RewardPart(call, weight, given)


def _given_later(parameter: Parameter) -> Any:
    return Default.COMPUTED if parameter.default is Default.REQUIRED else parameter.default


def _places(written: Written) -> dict[str, str]:
    """File, line and column of each key."""
    return {key: location(node) for key, (node, _) in written.keys.items()}


def _owner(name: str, section: Section, written: Written) -> tuple[str, Signature]:
    """The target that a section calls, and its signature."""
    node = written.keys["use"][1] if "use" in written.keys else None
    use = section.default if node is None else read_value(node, str, f"{name}.use")
    if use is None:
        raise ConfigError(f"{written.location}: {name}.use: missing{suggestion('', usable_names(section))}")
    if node is not None and ":" not in use and not _is_known(use, name, section):
        raise refusal(node, f"{name}.use", unknown_name(use, section))
    target = use if ":" in use else f"{section.namespace}:{use}"
    try:
        check_section_name(target, split(target)[0])
        return target, signature(target)
    except ValueError as error:
        where = written.location if node is None else location(node)
        raise ConfigError(f"{where}: {name}.use: {error}") from error


def _is_known(use: str, name: str, section: Section) -> bool:
    """Whether a section can use a plain name. A choice of an objective may be any public name of its module."""
    if name in SECTIONS or name.startswith("rewards["):
        return use in usable_names(section) or f"{section.namespace}:{use}" == OBJECTIVE
    return use in public_names(section.namespace)


def _settable(section: Section, found: Signature) -> dict[str, Parameter]:
    return {key: parameter for key, parameter in found.parameters.items() if key not in section.supplied}


def _arguments(name: str, written: Written, known: Mapping[str, Parameter]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of a section, with defaults for those that are not written; and where each was written."""
    given, sources = {}, dict.fromkeys(["use", *known], "default")
    for key, (node, value) in written.keys.items():
        full_key = f"{name}.{key}"
        if key == "use":
            given[key] = read_value(value, str, full_key)
        elif key in known:
            given[key] = _value(value, known[key], full_key)
        elif is_ignored(node, value, full_key):
            continue
        else:
            others = parameters(OBJECTIVE) if name == "objective" else {}
            raise refusal(node, full_key, f"unknown key{unknown_key(name, key, {**known, **others})}")
        sources[key] = line(value)
    for key, parameter in known.items():
        if key not in given and parameter.default is Default.REQUIRED:
            raise ConfigError(f"{written.location}: {name}.{key}: missing{_expected(name, parameter)}")
    arguments = {key: given.get(key, parameter.default) for key, parameter in known.items()}
    return {key: value for key, value in arguments.items() if value is not Default.COMPUTED}, sources


def _expected(name: str, parameter: Parameter) -> str:
    comment = f" ({parameter.comment})" if parameter.comment else ""
    part = PARTS.get(parameter.name) if name.startswith("objective.") else None
    if part is not None and part.takes:
        return suggestion("", usable_names(part)) + comment
    return f", expected {describe(parameter.type)}{comment}"
