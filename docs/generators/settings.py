"""The page of the settings: every key of a config with its type, its default and the comment beside it."""

import ast
import re
from collections.abc import Iterable
from typing import Any

from grpo_jax.config import SECTIONS, Default, Parameter, Section, parameters
from grpo_jax.config.advice import usable_names
from grpo_jax.config.names import find
from grpo_jax.config.sections import PARTS, TRACKERS, limits_of_rewards
from grpo_jax.config.values import describe, write_value

START = """# Settings

Every section and key of a config. Where a section can be one of several things, `use` names which; with
`use: package.module:name` it is one of your own. `grpo-jax config CONFIG` shows a config with all of its values.
"""


def page() -> str:
    """The settings of all sections, and the choices that an objective is made of."""
    parts = [START, *(part for name, section in SECTIONS.items() for part in _section(name, section))]
    parts += ["## train.trackers", "Any of these, by name or with keys of its own.", *_owners(TRACKERS)]
    parts += ["## Choices of an objective", "Keys of `objective` that replace a choice of its preset."]
    for name, section in PARTS.items():
        parts += [f"### objective: {name}", *(_choice(section, use) for use in _names(section))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(name: str, section: Section) -> list[str]:
    """The heading of a section, and a table of keys for each name that `use` can have."""
    names = _names(section)
    optional = "This section may be left out." if section.optional else ""
    if len(names) == 1:
        return [f"## {name}", optional, *_owner(section, names[0])]
    default = f"`use: {section.default}` is the default." if section.default else "`use` has to be given."
    every = ["Every item of `rewards` has these keys, too:", _table(_limits())] if name == "rewards" else []
    return [f"## {name}", optional, "" if name == "rewards" else default, *every, *_owners(section, f"{name}: ")]


def _limits() -> list[Parameter]:
    return [parameters("grpo_jax.config.sections:RewardPart")["weight"], *limits_of_rewards().values()]


def _owners(section: Section, prefix: str = "") -> list[str]:
    return [part for use in _names(section) for part in (f"### {prefix}{use}", *_owner(section, use))]


def _names(section: Section) -> list[str]:
    names = sorted(usable_names(section), key=str.lower)
    return sorted(names, key=lambda name: name != section.default)  # the default first


def _owner(section: Section, use: str) -> list[str]:
    """What an owner says of itself, and its keys."""
    return [_text(_docstring(section, use)), _table(_keys(section, use))]


def _choice(section: Section, use: str) -> str:
    """A choice of an objective in an item of a list, with its keys in a sentence."""
    keys = ", ".join(f"`{key.name}: {_default(key)}`" for key in _keys(section, use))
    summary = " ".join(_docstring(section, use).partition("\n\n")[0].split())
    return f"- `{use}`: {_text(summary)}" + (f" Keys: {keys}." if keys else "")


def _keys(section: Section, use: str) -> list[Parameter]:
    known = parameters(f"{section.namespace}:{use}").values()
    return [key for key in known if key.name not in (*section.supplied, *section.takes)]


def _docstring(section: Section, use: str) -> str:
    definition = find(section.namespace, use)
    return ast.get_docstring(definition.node) or ""


def _table(keys: Iterable[Parameter]) -> str:
    rows = [f"| `{key.name}` | {_type(key.type)} | {_code(_default(key))} | {_cell(key.comment)} |" for key in keys]
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]) if rows else "It has no keys."


def _type(type_: Any) -> str:
    return "" if type_ is Any else _cell(describe(type_))


def _default(key: Parameter) -> str:
    match key.default:
        case Default.REQUIRED:
            return ""
        case Default.COMPUTED:
            return "..."
        case value:
            return write_value(value)


def _code(value: str) -> str:
    return {"": "has to be given", "...": "computed"}.get(value, f"`{_cell(value, escaped=False)}`")


def _cell(text: str, escaped: bool = True) -> str:
    return (_text(text) if escaped else text).replace("|", "\\|")


def _text(text: str) -> str:
    """Plain text in Markdown: what is in single backticks is code there, too, and all else means itself."""
    return "\n\n".join(_paragraph(each) for each in text.split("\n\n"))


def _paragraph(text: str) -> str:
    if text.startswith("    "):  # shown as it is in Markdown, too
        return text
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<\[\]#])", r"\\\1", part) for part in parts)
