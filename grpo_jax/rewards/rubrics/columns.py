"""Columns of the data in the texts of a rubric: `{city}` stands for the column `city` of the example."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

COLUMN = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.-]*)\}")


def filled(text: str, columns: Mapping[str, Any]) -> str:
    """A text in which `{name}` is replaced by the column of that name; `{{` and `}}` are braces."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = column(match[1], columns)
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return COLUMN.sub(replaced, text)


def column(name: str, columns: Mapping[str, Any]) -> Any:
    """The value of a column by its name, or, with dots, of a field inside it."""
    value: Any = columns
    for part in [name] if name in columns else name.split("."):
        if isinstance(value, Mapping) and part in value and value[part] is None:
            raise ValueError(f"the rubric speaks of {{{name}}}, which is null in this example; leave such rows out.")
        if not isinstance(value, Mapping) or part not in value:
            known = ", ".join(map(str, columns)) if columns else "no columns"
            raise ValueError(f"the rubric speaks of {{{name}}}, and the example has {known}; name one of its columns.")
        value = value[part]
    return value


def phrases(written: str | Sequence[Any], columns: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a rule looks for: for each item its spellings. An item that is `{name}` alone stands for the items of that
    column.
    """
    found: list[tuple[str, ...]] = []
    for item in [written] if isinstance(written, str) else written:
        if not isinstance(item, str):
            found.append(tuple(filled(str(spelling), columns) for spelling in item))
            continue
        alone = COLUMN.fullmatch(item)
        found += [(filled(item, columns),)] if alone is None or alone[1] is None else _items(alone[1], columns)
    if not all(spelling.strip() for item in found for spelling in item) or not all(found):
        raise ValueError(f"a phrase of a rubric is empty, among {found!r}; leave it out.")
    return found


def _items(name: str, columns: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The items of a column with their spellings: texts or numbers, one or a list, or a list of spellings for each."""
    value = column(name, columns)
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    found = [each if isinstance(each, Sequence) and not isinstance(each, str) else [each] for each in listed]
    wrong = [
        each
        for spellings in found
        for each in spellings
        if isinstance(each, bool) or not isinstance(each, str | int | float)
    ]
    if wrong:
        raise ValueError(
            f"the column {name} is a text or a list of texts where a rule looks for it; got {wrong[0]!r} in it."
        )
    return [tuple(map(str, spellings)) for spellings in found]
