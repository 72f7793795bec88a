"""What may have been meant by a name or a key that a section does not know."""

import ast
import functools
import re
from collections.abc import Iterable, Mapping

from grpo_jax.config.elsewhere import meaning
from grpo_jax.config.names import Definition, find, public_names
from grpo_jax.config.sections import OBJECTIVE, SECTIONS, Section
from grpo_jax.config.signatures import parameters
from grpo_jax.config.similar import closest, plain, suggestion
from grpo_jax.config.syntax import without_blank

WITH_KEYS_OF_OTHERS = ("teacher", "judge", "evaluation", "answers", "sft")
ALIKE = 0.8  # similarity from which a key of another section is suggested


@functools.lru_cache
def usable_names(section: Section) -> tuple[str, ...]:
    """The names that `use` can have in a section, without the helpers and types of its module."""
    if section.returns is None and not section.takes and section.default is not None:
        return (section.default,)
    found = {name: find(section.namespace, name) for name in public_names(section.namespace)}
    return tuple(name for name, definition in found.items() if definition and _is_usable(definition, section))


def _is_usable(definition: Definition, section: Section) -> bool:
    node = definition.node
    if section.returns is not None:
        return not isinstance(node, ast.ClassDef) and _text(node.returns) == section.returns
    if not section.takes:
        return isinstance(node, ast.ClassDef) and any("dataclass" in _text(each) for each in node.decorator_list)
    accepted = (section.takes, *section.also_takes)
    if isinstance(node, ast.ClassDef):
        calls = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__call__"]
        return any(tuple(arg.arg for arg in call.args.args[1:]) in accepted for call in calls)
    return tuple(arg.arg for arg in node.args.args) in accepted


def _text(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation)


def unknown_name(use: str, section: Section) -> str:
    """What is wrong with a name that a section cannot use, and which ones it can."""
    usable = usable_names(section)
    if use in public_names(section.namespace):
        return f"{use} cannot be used here; name one of {', '.join(sorted(usable))}"
    return f"unknown name {use}{suggestion(use, usable)}"


@functools.lru_cache
def keys_of(name: str) -> frozenset[str]:
    """The keys that a section can have, with any of the names that it can use."""
    section = SECTIONS[name]
    owners = [f"{section.namespace}:{use}" for use in usable_names(section)]
    owners += [OBJECTIVE] if name == "objective" else []
    keys = {key for owner in owners for key in parameters(owner)} - set(section.supplied)
    return frozenset(keys | ({"weight", "workers", "deadline", "on_error"} if name == "rewards" else set()))


def unknown_key(name: str, key: str, known: Iterable[str]) -> str:
    """The end of a message about a key that a section does not know: where it belongs, or what it may have meant."""
    known = sorted(known)
    same = [each for each in known if plain(each) == plain(key)]
    if same:
        return f", did you mean {name}.{same[0]}?"
    if key == "<<":
        return "; merge keys are not read: share settings between configs with `base: other.yaml`"
    said = without_blank(key) or meaning(f"{name}.{key}") or _elsewhere(key, name)
    if said:
        return said
    close = closest(key, known)
    if close is not None:
        return f", did you mean {name}.{close}?"
    return _alike_elsewhere(key, name) or suggestion(key, known)


def unknown_section(path: str, keys: Mapping[str, object]) -> str:
    """The end of a message about a section that there is not. `path` may go on below it; `keys` stand in it."""
    name = path.partition(".")[0]
    if name == "<<":
        return "; merge keys are not read: share settings between configs with `base: other.yaml`"
    if plain(name) in SECTIONS:
        return f", did you mean {plain(name)}?"
    said = without_blank(name) or meaning(path) or _first_meaning(name, keys) or _elsewhere(name, "")
    if said:
        return said
    close = closest(name, SECTIONS)
    return suggestion(name, SECTIONS) if close is not None else _alike_elsewhere(name, "") or suggestion(name, SECTIONS)


def _first_meaning(path: str, keys: Mapping[str, object]) -> str | None:
    """What the first known setting of another program is here that stands in a mapping."""
    for key, value in keys.items():
        inner = f"{path}.{key}"
        said = _first_meaning(inner, value) if isinstance(value, Mapping) and value else meaning(inner)
        if said:
            return said
    return None


def _elsewhere(key: str, name: str) -> str:
    """The sections, other than `name`, that have a key; a teacher and a judge have those of a model, and an evaluation
    those of a sampler.
    """
    others = [other for other in SECTIONS if other not in (*WITH_KEYS_OF_OTHERS, re.sub(r"\[.*|\..*", "", name))]
    same = [(other, each) for other in others for each in keys_of(other) if plain(each) == plain(key)]
    paths = [f"{'rewards[0]' if other == 'rewards' else other}.{each}" for other, each in same]
    return f"; it is {' or '.join(paths)}" if paths else ""


def _alike_elsewhere(key: str, name: str) -> str:
    """The key of another section that is very similar."""
    sections = [section for section in SECTIONS if section not in ("evaluation", "answers", "sft", name)]
    paths = {other: f"{section}.{other}" for section in sections for other in keys_of(section)}
    close = closest(key, paths, ALIKE)
    return "" if close is None else f", did you mean {paths[close]}?"
