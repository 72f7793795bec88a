"""The settings of a run that are not the defaults, each beside the default of its owner."""

from collections.abc import Iterator
from dataclasses import dataclass

from grpo_jax.config import Default, parameters
from grpo_jax.report.reading import Found
from grpo_jax.report.text import clean


@dataclass(frozen=True)
class Setting:
    """A setting that was written: its value, where, and its default, which is empty where it is not known."""

    name: str
    value: str
    default: str
    source: str


def written(found: Found) -> list[Setting]:
    """The settings whose values were written somewhere, in the order of the config."""
    return list(_written(found))


def _written(found: Found) -> Iterator[Setting]:
    for name, (value, source) in found.settings.items():
        if source == "default":
            continue
        section, _, key = name.partition(".")
        yield Setting(clean(name), clean(value), _default(found.targets.get(section, ""), key), clean(source))


def _default(target: str, key: str) -> str:
    """The default of a setting as YAML would write it; empty where its owner has none, or is code of a user."""
    if not target.startswith("grpo_jax."):
        return ""
    try:
        known = parameters(target).get(key)
    except (ValueError, OSError, ImportError, SyntaxError):
        return ""
    if known is None or isinstance(known.default, Default):
        return ""
    value = known.default
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)
