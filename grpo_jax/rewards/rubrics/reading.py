"""Reads criteria from a file or from a column of the data, strictly: every mistake has its file and line.

    instructions = "You judge answers to travellers."      # for a judge; may be left out

    [[criteria]]
    name = "city"
    text = "Does the answer stay in {city}?"
    weight = 2.0
    gate = true
    rule = {only = "{places}", among = "{other_places}"}

In YAML the same stands under `criteria:`, in JSON under `"criteria"`. A list of criteria alone will do, too.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from grpo_jax.rewards.rubrics.criterion import Criterion
from grpo_jax.rewards.rubrics.documents import Node, as_node, read_document, read_text
from grpo_jax.rewards.rubrics.rules import FORMS, KINDS, Phrases, Rule

MOST_CRITERIA = 100
LARGEST_WEIGHT = 1e6
KEYS = tuple(field.name for field in dataclasses.fields(Criterion) if field.name != "place")


@dataclass(frozen=True)
class Criteria:
    """The criteria of a file, and what a judge is told before them."""

    items: tuple[Criterion, ...]
    instructions: str = ""


def read_criteria(path: Path) -> Criteria:
    """The criteria of a TOML, YAML or JSON file."""
    return criteria_of(read_document(path))


def read_column(value: Any, place: str) -> Criteria:
    """The criteria of one example: a list of them, or the same as JSON."""
    return criteria_of(read_text(value, place) if isinstance(value, str) else as_node(value, place))


def criteria_of(root: Node) -> Criteria:
    """The criteria of a tree."""
    if isinstance(root.value, list):
        root = Node({"criteria": root}, root.place)
    if not isinstance(root.value, dict):
        _refuse(root, f"a rubric is a list of criteria, each with a name and a text; got {_shown(root)}")
    _check_keys(root, ("criteria", "instructions"), "a rubric has")
    found = root.value.get("criteria")
    if found is None or not isinstance(found.value, list) or not found.value:
        _refuse(root if found is None else found, "a rubric needs at least one criterion, as a [[criteria]] of its own")
    if len(found.value) > MOST_CRITERIA:
        _refuse(found, f"a rubric has at most {MOST_CRITERIA} criteria; got {len(found.value)}")
    items = tuple(_criterion(node) for node in found.value)
    _check_names(items)
    told = root.value.get("instructions")
    return Criteria(items, "" if told is None else _string(told, "instructions"))


def _criterion(node: Node) -> Criterion:
    if not isinstance(node.value, dict):
        _refuse(node, f"a criterion is a table with a name and a text; got {_shown(node)}")
    given = node.value
    _check_keys(node, KEYS, "a criterion has")
    for key in ("name", "text"):
        if key not in given or not _string(given[key], key).strip():
            _refuse(given.get(key, node), f'a criterion needs a {key}; write {key} = "..."')
    name = _string(given["name"], "name")
    if not name.replace("_", "a").replace("-", "a").isalnum() or not name.isascii():
        _refuse(given["name"], f"a criterion's name is made of letters, digits, _ and -; got {name!r}")
    found = Criterion(
        name=name,
        text=_string(given["text"], "text"),
        weight=_weight(given["weight"]) if "weight" in given else Criterion.weight,
        answers=_answers(given["answers"]) if "answers" in given else Criterion.answers,
        gate=_switch(given["gate"], "gate") if "gate" in given else Criterion.gate,
        negative=_switch(given["negative"], "negative") if "negative" in given else Criterion.negative,
        rule=_rule(given["rule"]) if "rule" in given else None,
        place=node.place,
    )
    _check_together(found, node)
    return found


def _check_together(found: Criterion, node: Node) -> None:
    """Refuses keys that say nothing, or the opposite of each other, side by side."""
    if found.gate and found.negative:
        _refuse(
            node.value["negative"], f"{found.name} cannot be both a gate and negative; a gate asks for what is right"
        )
    if found.gate and "weight" in node.value:
        _refuse(node.value["weight"], f"{found.name} is a gate, which multiplies and has no weight; leave weight out")
    if found.rule is not None and "answers" in node.value:
        _refuse(
            node.value["answers"], f"{found.name} is judged by its rule, so no answers are asked for; leave them out"
        )


def _check_names(items: Sequence[Criterion]) -> None:
    seen: dict[str, Criterion] = {}
    for item in items:
        if item.name in seen:
            message = f"{item.name} is the name of the criterion at {seen[item.name].place}, too; give it another"
            raise ValueError(f"{item.place}: {message}.")
        seen[item.name] = item
    if all(item.gate for item in items):
        raise ValueError(
            f"{items[0].place}: all criteria are gates, which multiply what others give; make one of them none."
        )


def _rule(node: Node) -> Rule:
    kinds = {dataclasses.fields(kind)[0].name: kind for kind in KINDS}
    if not isinstance(node.value, dict):
        _refuse(
            node, f'a rule is a table such as {{any_of = ["a", "b"]}}, with one of {_listed(kinds)}; got {_shown(node)}'
        )
    named = [key for key in node.value if key in kinds]
    if len(named) != 1:
        found = (
            f"got {' and '.join(named)}"
            if named
            else f"got {_listed(node.value) or 'no key'}{_close(node.value, kinds)}"
        )
        _refuse(node, f"a rule has exactly one of {_listed(kinds)}; {found}")
    kind = kinds[named[0]]
    fields, types = {field.name: field for field in dataclasses.fields(kind)}, typing.get_type_hints(kind)
    _check_keys(node, tuple(fields), f"a rule with {named[0]} has")
    for name, field in fields.items():
        if name not in node.value and field.default is dataclasses.MISSING:
            _refuse(node, f"a rule with {named[0]} needs {name}, too")
    given = {name: _typed(value, types[name], name) for name, value in node.value.items()}
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{node.place}: {error}") from error


def _typed(node: Node, expected: Any, name: str) -> Any:
    """A value of a rule, which must have the type of its field."""
    if expected == Phrases:
        return _string(node, name) if not isinstance(node.value, list) else _phrases(node, name)
    if expected == tuple[int, int]:
        pair = node.value if isinstance(node.value, list) else []
        if len(pair) != 2 or not all(type(item.value) is int for item in pair):
            _refuse(node, f"{name} is a smallest and a largest whole number, such as [20, 80]; got {_shown(node)}")
        return tuple(item.value for item in pair)
    if expected == FORMS:
        known = typing.get_args(FORMS)
        if node.value not in known:
            _refuse(node, f"{name} is one of {_listed(known)}; got {_shown(node)}{_close([str(node.value)], known)}")
        return node.value
    if expected is str:
        return _string(node, name)
    if type(node.value) is not int:
        _refuse(node, f"{name} is a whole number; got {_shown(node)}")
    return node.value


def _phrases(node: Node, name: str) -> tuple[str | tuple[str, ...], ...]:
    if not node.value:
        _refuse(node, f"{name} is an empty list, which every answer would be judged the same by; name something in it")
    return tuple(
        tuple(_string(each, name) for each in item.value)
        if isinstance(item.value, list) and item.value
        else _string(item, name)
        for item in node.value
    )


def _string(node: Node, name: str) -> str:
    if node.word is not None:
        return node.word
    if not isinstance(node.value, str):
        _refuse(node, f"{name} is a text; got {_shown(node)}. Put it in quotes")
    return node.value


def _weight(node: Node) -> float:
    value = node.value
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value <= LARGEST_WEIGHT:
        hint = "; write negative = true for a fault" if type(value) in (int, float) and value < 0 else ""
        _refuse(node, f"weight is a number above 0 and at most {LARGEST_WEIGHT:g}; got {_shown(node)}{hint}")
    return float(value)


def _answers(node: Node) -> tuple[str, ...]:
    if not isinstance(node.value, list) or len(node.value) < 2:
        _refuse(node, f"answers are at least two, the worst first and the best last; got {_shown(node)}")
    found = tuple(_string(item, "answers").strip() for item in node.value)
    if not all(found) or len({answer.casefold() for answer in found}) != len(found):
        _refuse(node, f"answers are different from each other, and none is empty; got {', '.join(map(repr, found))}")
    return found


def _switch(node: Node, name: str) -> bool:
    if not isinstance(node.value, bool):
        _refuse(node, f"{name} is true or false; got {_shown(node)}")
    return node.value


def _check_keys(node: Node, known: Sequence[str], subject: str) -> None:
    for key, value in node.value.items():
        if key not in known:
            _refuse(value, f"{subject} no {key}{_close([key], known)}; it has {_listed(known)}")


def _close(found: Iterable[str], known: Iterable[str]) -> str:
    close = [match for each in found for match in difflib.get_close_matches(each, list(known), 1)]
    return f", did you mean {close[0]}?" if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(node: Node) -> str:
    if isinstance(node.value, list | dict):
        return f"a {'list' if isinstance(node.value, list) else 'table'} of {len(node.value)}"
    return repr(node.value)[:80]


def _refuse(node: Node, message: str) -> NoReturn:
    raise ValueError(f"{node.place}: {message}.")
