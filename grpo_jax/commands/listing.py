"""Lists what a section of a config can name, with keys and defaults, from source text: nothing is imported for it."""

import ast
import inspect
import json

from grpo_jax.config import SECTIONS, ConfigError, Default, Parameter, parameters
from grpo_jax.config.advice import usable_names
from grpo_jax.config.names import find
from grpo_jax.config.sections import limits_of_rewards
from grpo_jax.config.similar import suggestion


def table(name: str) -> str:
    """Each name that `use` can have in a section, with what it is in a line, and its keys."""
    section = SECTIONS[name]
    lines = [line for use in sorted(usable_names(section), key=str.lower) for line in _entry(name, use)]
    return "\n".join([*lines, *_shared(name)])


def describe(name: str, use: str) -> str:
    """All that is written about one name of a section, and its keys."""
    usable = usable_names(SECTIONS[name])
    if use not in usable:
        kind = "reward" if name == "rewards" else name
        raise ConfigError(f"there is no {kind} {use}{suggestion(use, usable)}")
    keys = [f"  {_shown(key)}" for key in _keys(name, use)]
    written = f"rewards: [{{use: {use}, weight: 1.0, ...}}]" if name == "rewards" else f"task: {{use: {use}, ...}}"
    settings = [f"settings, as `{written}`:", *(keys if keys else ["  none"])]
    shared = _shared(name)
    return "\n".join([_docstring(name, use), "", *settings, *(["", *shared] if shared else [])])


def _entry(name: str, use: str) -> list[str]:
    summary = " ".join(_docstring(name, use).partition("\n\n")[0].split())
    return [f"{use}: {summary}", *(f"    {_shown(key)}" for key in _keys(name, use)), ""]


def _shared(name: str) -> list[str]:
    """The keys that every item of `rewards` has."""
    if name != "rewards":
        return []
    weight = "    weight: 1.0  # of the reward in the sum; 0 records it alone"
    limits = [f"    {_shown(key)}" for key in limits_of_rewards().values()]
    return ["Every item of rewards has these keys, too:", weight, *limits]


def _keys(name: str, use: str) -> list[Parameter]:
    section = SECTIONS[name]
    known = parameters(f"{section.namespace}:{use}")
    return [parameter for parameter in known.values() if parameter.name not in section.supplied]


def _shown(key: Parameter) -> str:
    """A key as a config writes it, with its default and what its owner says of it."""
    match key.default:
        case Default.REQUIRED:
            value = "(has to be given)"
        case Default.COMPUTED:
            value = "(computed)"
        case default:
            value = json.dumps(default, ensure_ascii=False, default=repr)
    return f"{key.name}: {value}{f'  # {key.comment}' if key.comment else ''}"


def _docstring(name: str, use: str) -> str:
    definition = find(SECTIONS[name].namespace, use)
    text = None if definition is None else ast.get_docstring(definition.node)
    return "" if text is None else inspect.cleandoc(text)
