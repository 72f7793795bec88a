"""Prints what a section of a config can name, with keys, defaults and meanings. Nothing is imported for it."""

import json
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

from grpo_jax.commands.printing import print_json, show
from grpo_jax.config import ConfigError, Default, Parameter
from grpo_jax.config.listing import Choice, Listed, listed
from grpo_jax.config.similar import suggestion
from grpo_jax.config.values import describe

WRITTEN = {
    "task": "task: {use: NAME, ...}",
    "rewards": "rewards: [{use: NAME, weight: 1.0, ...}]",
    "objective": "objective: {use: NAME, ...}",
}


def run(place: str, arguments: Namespace, more: Callable[[str], str] = lambda name: "") -> int:
    """Prints each name with a line about it, or one with all that is written about it and `more`; the exit code."""
    found = listed(place)
    choice = None if arguments.name is None else _named(place, arguments.name, found)
    if arguments.json:
        print_json(arguments, plain(found) if choice is None else plain_choice(choice) | _plain_shared(found))
    elif choice is None:
        show("\n".join(f"{each.name}: {each.summary}" for each in found.choices))
    else:
        show("\n".join([*described(place, choice, found), more(choice.name)]).rstrip())
    return 0


def _named(place: str, name: str, found: Listed) -> Choice:
    choices = {each.name: each for each in found.choices}
    if name not in choices:
        kind = "reward" if place == "rewards" else place
        raise ConfigError(f"there is no {kind} {name}{suggestion(name, choices)}")
    return choices[name]


def described(place: str, choice: Choice, found: Listed) -> list[str]:
    """All that is written about a name of a section, and its keys."""
    keys = [f"  {shown(key)}" for key in choice.keys]
    lines = [choice.text, "", f"settings, as `{WRITTEN[place].replace('NAME', choice.name)}`:", *(keys or ["  none"])]
    if place == "rewards":
        lines += ["", "every item of rewards has these keys, too:", *(f"  {shown(key)}" for key in found.shared)]
    return lines


def shown(key: Parameter) -> str:
    """A key as a config writes it, with its default and what its owner says of it."""
    match key.default:
        case Default.REQUIRED:
            value = "(has to be given)"
        case Default.COMPUTED:
            value = "(computed)"
        case default:
            value = json.dumps(default, ensure_ascii=False, default=repr)
    return f"{key.name}: {value}{f'  # {key.comment}' if key.comment else ''}"


def all_settings(found: Iterable[Listed]) -> str:
    """Every section, the names that it can have, and the keys of each, as text that is nearly YAML."""
    return "\n\n".join("\n".join(_section(each)) for each in found)


def _section(found: Listed) -> list[str]:
    lines = [f"{place}:  # {about}" for place, about in found.places.items()]
    if [choice.name for choice in found.choices] == [found.default]:
        return lines + [f"  {shown(key)}" for key in found.choices[0].keys]
    for choice in found.choices:
        default = "(default) " if choice.name == found.default else ""
        lines += [f"  use: {choice.name}  # {default}{choice.summary}", *(f"    {shown(key)}" for key in choice.keys)]
    shared = [f"    {shown(key)}" for key in found.shared]
    return lines + (["  whatever is used:", *shared] if shared else [])


def plain(found: Listed) -> dict[str, Any]:
    """A section as JSON has it."""
    choices = [plain_choice(choice) for choice in found.choices]
    return {"places": dict(found.places), "default": found.default, "choices": choices} | _plain_shared(found)


def plain_choice(choice: Choice) -> dict[str, Any]:
    """A name, what is written about it, and its keys as JSON has them."""
    keys = [_plain_key(key) for key in choice.keys]
    return {"name": choice.name, "summary": choice.summary, "text": choice.text, "keys": keys}


def _plain_shared(found: Listed) -> dict[str, Any]:
    return {"shared": [_plain_key(key) for key in found.shared]}


def _plain_key(key: Parameter) -> dict[str, Any]:
    """A key; one without `default` has to be given if it is `required`, and else its owner computes it."""
    known = {} if isinstance(key.default, Default) else {"default": key.default}
    required = key.default is Default.REQUIRED
    return {"name": key.name, "type": describe(key.type), "required": required, **known, "comment": key.comment}
