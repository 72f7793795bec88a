"""The page of the settings: every key of a config with its type, its default and its meaning."""

import re
from collections.abc import Iterable
from typing import Any

from grpo_jax.config import Default, Parameter
from grpo_jax.config.listing import Choice, Listed, settings
from grpo_jax.config.values import describe, write_value

START = """# Settings

Every section and key of a config. Where a section can be one of several things, `use` names which; with
`use: package.module:name` it is one of your own. `grpo-jax config CONFIG` shows a config with all of its values, and
`grpo-jax config --all` this list."""


def page() -> str:
    """All sections in their order, each followed by the choices that its keys can have."""
    return "\n\n".join(filter(None, [START, *(part for found in settings() for part in _listed(found))])) + "\n"


def _listed(found: Listed) -> list[str]:
    """The places where a choice can stand, and a table of keys for each name that `use` can have there."""
    first = next(iter(found.places))
    parts = [f"{'###' if '.' in first else '##'} {first}", *_places(found.places)]
    if [choice.name for choice in found.choices] == [found.default]:
        return parts + _choice(found.choices[0])
    parts.append(f"`use: {found.default}` is the default." if found.default else "")
    if "." in first:  # there are many, with few keys
        return [*parts, "\n".join(_item(choice) for choice in found.choices)]
    for choice in found.choices:
        parts += [f"### {first}: {choice.name}", *_choice(choice)]
    return parts + _shared(first, found.shared)


def _shared(place: str, keys: tuple[Parameter, ...]) -> list[str]:
    """The keys that stand beside those of any choice."""
    if place == "objective":
        table = "\n".join(f"- `{key.name}`: {_text(key.comment)}" for key in keys)
        return ["### objective: beside any preset", "These replace what the preset has.", table]
    return [f"### {place}: beside any of these", _table(keys)] if keys else []


def _places(places: dict[str, str]) -> list[str]:
    about, *_ = places.values()
    more = [f"`{place}`{f' ({_text(meaning)})' if meaning else ''}" for place, meaning in [*places.items()][1:]]
    return [_sentence(_text(about)), f"It also stands at {', '.join(more)}." if more else ""]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text and not text.endswith(".") else text


def _choice(choice: Choice) -> list[str]:
    """What a choice says of itself, and its keys."""
    return [_text(choice.text), _table(choice.keys)]


def _item(choice: Choice) -> str:
    """A choice in an item of a list, with its keys in a sentence."""
    keys = ", ".join(f"`{key.name}{f': {_default(key)}' if _default(key) else ''}`" for key in choice.keys)
    return f"- `{choice.name}`: {_text(choice.summary)}.{f' Keys: {keys}.' if keys else ''}"


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
    return {"": "has to be given", "...": "computed"}.get(value, f"`{value.replace('|', chr(92) + '|')}`")


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Plain text in Markdown: what is in single backticks is code there, too, and all else means itself."""
    return "\n\n".join(_paragraph(each) for each in text.split("\n\n"))


def _paragraph(text: str) -> str:
    if text.startswith("    "):  # shown as it is in Markdown, too
        return text
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<\[\]#])", r"\\\1", part) for part in parts)
