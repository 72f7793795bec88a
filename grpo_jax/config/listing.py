"""Every setting of a config, as its owner has it: the names that `use` can have, and keys with defaults and meanings.

It is read from source text, so nothing is imported for it.
"""

import ast
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from grpo_jax.config.advice import usable_names
from grpo_jax.config.names import find
from grpo_jax.config.reading import REWARD_PART, is_never_a_choice
from grpo_jax.config.sections import MAPPINGS, OBJECTIVE, PARTS, SECTIONS, TRACKERS, Section, limits_of_rewards
from grpo_jax.config.signatures import Parameter, signature


@dataclass(frozen=True)
class Choice:
    """A name that `use` can have, all that is written about it, and its keys."""

    name: str
    text: str
    keys: tuple[Parameter, ...]

    @property
    def summary(self) -> str:
        """What it is, in a sentence without its full stop."""
        first = " ".join(self.text.partition("\n\n")[0].split())
        return re.split(r"(?<!\bDr)(?<! al)\. ", first, maxsplit=1)[0].removesuffix(".")


@dataclass(frozen=True)
class Listed:
    """A section, or a choice inside one: each place where it can stand with what it is about there, and the names that
    it can have.

    Without `use` it is the `default`, if there is one. Every choice has the `shared` keys, too.
    """

    places: Mapping[str, str]
    choices: tuple[Choice, ...]
    default: str | None = None
    shared: tuple[Parameter, ...] = ()


@functools.lru_cache
def settings() -> tuple[Listed, ...]:
    """All sections of a config in their order, each followed by the choices that its keys can have.

    Places that take the same choices are listed together, where the first of them stands.
    """
    found: dict[tuple[str, ...], Listed] = {}
    for place, section in _places():
        kind, new = _kind(section), Listed({}, _choices(section), section.default, _shared(place))
        first = found.get(kind, new)
        found[kind] = replace(first, places={**first.places, place: section.about})
    return tuple(found.values())


def listed(place: str) -> Listed:
    """What can stand in a place, such as `task` or `objective.kl`."""
    return next(each for each in settings() if place in each.places)


def _kind(section: Section) -> tuple[str, ...]:
    """What is the same for sections that take the same choices."""
    return (section.namespace, *(section.takes or (section.default or "",)))


def _places() -> Iterator[tuple[str, Section]]:
    """The sections, and the keys whose values are choices or mappings, each with what these are looked up by."""
    for name, section in SECTIONS.items():
        yield name, section
        owners = {f"{section.namespace}:{choice.name}" for choice in _choices(section)}
        yield from ((f"{name}.{key}", inner) for (owner, key), inner in MAPPINGS.items() if owner in owners)
        if name == "objective":
            yield from _parts(name, signature(OBJECTIVE).parameters, ())
        if name == "train":
            yield "train.trackers", TRACKERS


def _parts(
    above: str, keys: Mapping[str, Parameter], kinds: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[str, Section]]:
    """The keys whose values are choices, and those of these choices, as far as they are of other kinds than above."""
    for name in [key for key in keys if key in PARTS and not is_never_a_choice(keys[key].type)]:
        place, section = f"{above}.{name}", PARTS[name]
        yield place, section
        if _kind(section) not in kinds:
            inner = {key.name: key for choice in _choices(section) for key in choice.keys}
            yield from _parts(place, inner, (*kinds, _kind(section)))


@functools.lru_cache
def _choices(section: Section) -> tuple[Choice, ...]:
    names = sorted(usable_names(section), key=str.lower)
    return tuple(_choice(section, name) for name in names)


def _choice(section: Section, name: str) -> Choice:
    found = signature(f"{section.namespace}:{name}")
    supplied = section.supplied if found.is_class else (*section.supplied, *section.takes)  # by the program's call
    keys = tuple(key for key in found.parameters.values() if key.name not in supplied)
    definition = find(section.namespace, name)
    text = None if definition is None else ast.get_docstring(definition.node)
    return Choice(name, "" if text is None else inspect.cleandoc(text), keys)


def _shared(place: str) -> tuple[Parameter, ...]:
    """Keys beside those of a choice: of every reward, and fields of an objective that replace those of its preset."""
    if place == "rewards":
        return (signature(REWARD_PART).parameters["weight"], *limits_of_rewards().values())
    fields = signature(OBJECTIVE).parameters.values() if place == "objective" else ()
    return tuple(replace(field, comment=field.comment or PARTS[field.name].about) for field in fields)
