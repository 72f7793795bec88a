"""How many responses to a prompt an objective needs: one that compares them with each other learns nothing from one."""

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Choice = TypeVar("Choice", bound=Callable[..., Any])


def compares(choice: Choice) -> Choice:
    """Marks a function that compares the responses of a group, and so needs two of them. A class has an attribute
    `least_group`.
    """
    choice.__dict__["least_group"] = 2
    return choice


def least_group(choice: object) -> int:
    """How many responses to a prompt a choice needs: its own `least_group`, or the largest of the choices inside it."""
    if isinstance(choice, functools.partial):
        return least_group(choice.func)
    inner = [each for each in parts_of(choice).values() if callable(each)]
    return max([getattr(choice, "least_group", 1), *map(least_group, inner)])


def parts_of(choice: object) -> dict[str, Any]:
    """The fields of a choice that is an instance of a dataclass, which may be choices themselves; else none."""
    if not is_dataclass(choice) or isinstance(choice, type):
        return {}
    return {each.name: getattr(choice, each.name) for each in fields(choice)}
