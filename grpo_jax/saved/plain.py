"""Values as JSON has them."""

import math
from collections.abc import Mapping
from typing import Any


def without_nan(value: Any) -> Any:
    """A value of JSON with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value
