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
        if not isinstance(value, Mapping) or value.get(part) is None:
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
        value = item if alone is None or alone[1] is None else column(alone[1], columns)
        if isinstance(value, str):
            found.append((filled(value, columns) if value is item else value,))
        elif isinstance(value, Sequence):
            found += [(each,) if isinstance(each, str) else tuple(map(str, each)) for each in value]
        else:
            found.append((str(value),))
    if not all(spelling.strip() for item in found for spelling in item) or not all(found):
        raise ValueError(f"a phrase of a rubric is empty, among {found!r}; leave it out.")
    return found
