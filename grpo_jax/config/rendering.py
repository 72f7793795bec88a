"""Writes a `Config` as YAML with every default, and on each line a comment that says where the value was written.

Secrets are written as `***` (redaction.py).
"""

from collections.abc import Mapping
from typing import Any

from grpo_jax.config.sections import MAPPINGS, SECTIONS, Call, Config, RewardPart, limits_of_rewards
from grpo_jax.config.signatures import Parameter, parameters
from grpo_jax.config.values import write_value
from grpo_jax.redaction import hidden


def render(config: Config) -> str:
    """The text of a config, which `read` reads as the same config."""
    lines = []
    for name in SECTIONS:
        value = getattr(config, name)
        if isinstance(value, Call):
            lines += [f"{name}:  # {value.target}", *_indent(_body(name, value))]
        elif value:
            lines += [f"{name}:", *(line for reward in value for line in _item(name, reward))]
    return "\n".join(lines) + "\n"


def values(config: Config) -> dict[str, Any]:
    """The sections of a config with every default, as JSON has them."""
    found: dict[str, Any] = {}
    for name in SECTIONS:
        value = getattr(config, name)
        if isinstance(value, Call):
            found[name] = _values(name, value)
        elif value:
            found[name] = [_values(name, part.call) | {"weight": part.weight, **part.limits} for part in value]
    return found


def _values(name: str, call: Call) -> dict[str, Any]:
    known = {key: hidden(key, _without_calls(value)) for key, value in {**call.arguments, **call.choices}.items()}
    return {"use": _short(name, call.target), **known}


def _body(name: str, call: Call) -> list[str]:
    known = parameters(call.target)
    body = [_line("use", _short(name, call.target), call.sources)] if call.sources["use"] != "default" else []
    body += [_line(key, value, call.sources, known[key], call.target) for key, value in call.arguments.items()]
    return body + [_line(key, value, call.sources) for key, value in call.choices.items()]


def _item(name: str, reward: RewardPart) -> list[str]:
    sources, known = reward.call.sources, limits_of_rewards()
    limits = [_line(key, value, sources, known[key]) for key, value in reward.limits.items()]
    first, *rest = [*_body(name, reward.call), _line("weight", reward.weight, sources), *limits]
    return [f"  - {first}", *_indent(_indent(rest))]


def _line(
    key: str, value: object, sources: Mapping[str, str], parameter: Parameter | None = None, target: str = ""
) -> str:
    said = "" if parameter is None else parameter.comment
    notes = "; ".join(filter(None, [said, _completed(target, key, value)]))
    return f"{key}: {write_value(hidden(key, _without_calls(value)))}  # {sources[key]}{f' ({notes})' if notes else ''}"


def _completed(target: str, key: str, value: object) -> str:
    """What a mapping is with its defaults, if it has any."""
    section = MAPPINGS.get((target, key))
    if section is None or not isinstance(value, Mapping):
        return ""
    known = parameters(f"{section.namespace}:{section.default}")
    return f"here {write_value({name: value.get(name, each.default) for name, each in known.items()})}"


def _without_calls(value: object) -> object:
    """A value in which each call is written as a mapping."""
    if isinstance(value, tuple):
        return [_without_calls(item) for item in value]
    if isinstance(value, Call):
        return {"use": value.target} | {name: _without_calls(item) for name, item in value.arguments.items()}
    return value


def _short(name: str, target: str) -> str:
    return target.removeprefix(f"{SECTIONS[name].namespace}:")


def _indent(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
