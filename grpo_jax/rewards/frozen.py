"""Lists and dicts that cannot be changed, for what rewards see of the data.

A row that one reward changes would be another row for the next reward and the next step, but not after a resume. Copies
(`copy.deepcopy`, `dict(row)`, pickle) are plain lists and dicts again.
"""

import copy
from typing import Any, NoReturn


def frozen(value: Any) -> Any:
    """The value, in which every list and dict, however deep, refuses to be changed."""
    if type(value) is list:
        return FrozenList(map(frozen, value))
    if type(value) is dict:
        return FrozenDict((key, frozen(item)) for key, item in value.items())
    return value


class _Frozen:
    """Everything that would change a list or a dict, as an error."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("An example belongs to the data set and cannot be changed: change a copy (copy.deepcopy).")

    __setitem__ = __delitem__ = __ior__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = remove = reverse = sort = _refuse
    pop = clear = update = setdefault = popitem = _refuse


class FrozenList(_Frozen, list):
    """A list that cannot be changed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [copy.deepcopy(item, memo) for item in self]


class FrozenDict(_Frozen, dict):
    """A dict that cannot be changed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return {key: copy.deepcopy(item, memo) for key, item in self.items()}
