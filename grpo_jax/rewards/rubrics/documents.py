"""TOML, YAML and JSON files as trees in which every value knows its file and line.

YAML is read as text: `answers: [no, yes]` are two words and no truth values. Anchors, tags and keys that are given
twice are refused.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 1_000_000  # bytes
SUFFIXES = (".toml", ".yaml", ".yml", ".json")
WORDS = {"true": True, "false": False}
NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
TABLE = re.compile(r"\s*\[\[\s*([A-Za-z_]\w*)\s*\]\]")
KEY = re.compile(r"""\s*["']?([A-Za-z_]\w*)["']?\s*[=.]""")


@dataclass(frozen=True)
class Node:
    """A value and where it stands. `value` is a dict or a list of nodes, a string, a number or a truth value.

    `word` is the text of a scalar that YAML has without quotes, which may also be meant as a string.
    """

    value: Any
    place: str
    word: str | None = None


def read_document(path: Path) -> Node:
    """The tree of a file, by the end of its name."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a rubric is a file that ends in {', '.join(SUFFIXES)}; rename it, or write one.")
    try:
        text = path.read_bytes()[: LARGEST_FILE + 1].decode("utf-8-sig")
    except OSError as error:
        raise FileNotFoundError(f"{path}: there is no such file that can be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from error
    if len(text) > LARGEST_FILE:
        raise ValueError(f"{path}: a rubric has at most {LARGEST_FILE:,} bytes, and this file has more.")
    return _read_toml(text, str(path)) if path.suffix == ".toml" else _read_yaml(text, str(path))


def as_node(value: Any, place: str) -> Node:
    """A plain Python value as a tree, all of it at one place: a row of a data set."""
    if isinstance(value, str | bool | int | float):
        return Node(value, place)
    if isinstance(value, Mapping):
        return Node({str(key): as_node(item, place) for key, item in value.items()}, place)
    if isinstance(value, Sequence):
        return Node([as_node(item, place) for item in value], place)
    return Node(value, place)


def read_text(text: str, place: str) -> Node:
    """A tree that stands in a column of the data as JSON."""
    try:
        return as_node(json.loads(text), place)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place}: a rubric in a column is a list of criteria, or such a list as JSON: {error}"
        ) from error


def _read_yaml(text: str, name: str) -> Node:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = 1 if mark is None else mark.line + 1
        problem = "" if error.problem is None else error.problem
        signs = "mapping values" in problem or "but got" in problem
        hint = " Put a text with : or ? in quotes." if signs else " Look at how the lines are indented."
        raise ValueError(f"{name}:{line}: this is not YAML: {problem}.{hint}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{name}: this is not YAML: {' '.join(str(error).split())}") from error
    if root is None:
        return Node({}, f"{name}:1")
    _refuse_extras(text, name)
    return _of_yaml(root, name)


def _refuse_extras(text: str, name: str) -> None:
    """Refuses anchors, aliases and tags, with which a short file is a very large tree or another type."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            line = event.start_mark.line + 1
            raise ValueError(
                f"{name}:{line}: anchors, aliases and tags are not read in a rubric; write the value itself."
            )


def _of_yaml(node: yaml.Node, name: str) -> Node:
    place = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Node([_of_yaml(item, name) for item in node.value], place)
    if isinstance(node, yaml.ScalarNode):
        return Node(node.value, place) if node.style is not None else Node(_scalar(node.value), place, node.value)
    entries: dict[str, Node] = {}
    for key, value in node.value:
        line = f"{name}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{line}: expected a key, and got a list or a mapping.")
        if key.value in entries:
            raise ValueError(f"{line}: {key.value} is given twice; keep one of the two.")
        found = _of_yaml(value, name)
        entries[key.value] = Node(found.value, line, found.word)
    return Node(entries, place)


def _scalar(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    if NUMBER.fullmatch(text):
        return float(text) if re.search("[.eE]", text) else int(text)
    return text


def _read_toml(text: str, name: str) -> Node:
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"line (\d+)", str(error))
        line = found[1] if found else str(text.count("\n") + 1)
        raise ValueError(f"{name}:{line}: this is not TOML: {error}.") from error
    lines = _toml_lines(text)
    root = {key: _of_toml(key, value, name, lines) for key, value in tree.items()}
    return Node(root, f"{name}:1")


def _of_toml(key: str, value: Any, name: str, lines: Mapping[tuple[str, int, str], int]) -> Node:
    """The value of a key at the top of the file. Tables of an array know the lines of their keys."""
    place = f"{name}:{lines.get(('', 0, key), lines.get((key, 0, ''), 1))}"
    if not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
        return as_node(value, place)
    tables = []
    for index, item in enumerate(value):
        head = lines.get((key, index, ""))
        at = place if head is None else f"{name}:{head}"
        places = {inner: lines.get((key, index, inner), head) for inner in item}
        found = {
            inner: as_node(of, at if places[inner] is None else f"{name}:{places[inner]}") for inner, of in item.items()
        }
        tables.append(Node(found, at))
    return Node(tables, place)


def _toml_lines(text: str) -> dict[tuple[str, int, str], int]:
    """The line of each key, by its array of tables, the index of its table there and its name; of a table, by "".

    A line belongs to the file and not to a string of several lines if what stands before it is TOML by itself.
    """
    lines, found = text.splitlines(keepends=True), {}
    table, index, counts = "", 0, dict[str, int]()
    for number, line in enumerate(lines, 1):
        head, key = TABLE.match(line), KEY.match(line)
        if (head is None and key is None) or not _is_toml("".join(lines[: number - 1])):
            continue
        if head is not None:
            table, index = head[1], counts.get(head[1], 0)
            counts[table] = index + 1
            found[table, index, ""] = number
        elif key is not None:
            found.setdefault((table, index, key[1]), number)
    return found


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True
