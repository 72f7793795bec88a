"""Rewards for responses that are data: JSON, and nothing else."""

import json
import math
from typing import Any, NoReturn

from grpo_jax.rewards.example import Example
from grpo_jax.rewards.needs import needs

MAX_JSON = 20_000  # characters; a longer response earns 0


def read_json(text: str) -> Any:
    """The value of a JSON text; a ValueError for anything else, among it NaN, a key that occurs twice, or 1e400."""
    if len(text) > MAX_JSON:
        raise ValueError(f"longer than {MAX_JSON} characters")
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _gold(example: Example) -> Any:
    try:
        return read_json(example.answer)
    except ValueError as error:
        raise ValueError(
            f"the answer of {example.label} must be JSON; {example.answer[:80]!r} is not: {error}."
        ) from error


@needs(_gold)
def same_json(example: Example, response: str) -> float:
    """1 if the whole response is JSON with the same value as the answer; the order of keys does not matter."""
    gold = _gold(example)
    try:
        return float(_equal(read_json(response), gold))
    except (ValueError, RecursionError):
        return 0.0


@needs(_gold)
def follows_schema(example: Example, response: str) -> float:
    """1 if the whole response is JSON with the keys and types of the answer, whatever its values."""
    gold = _gold(example)
    try:
        return float(_shape(read_json(response)) == _shape(gold))
    except (ValueError, RecursionError):
        return 0.0


def _equal(value: Any, gold: Any) -> bool:
    """Equality in which true is not 1, as Python would have it."""
    if isinstance(gold, dict):
        return isinstance(value, dict) and value.keys() == gold.keys() and all(_equal(value[k], gold[k]) for k in gold)
    if isinstance(gold, list):
        return isinstance(value, list) and len(value) == len(gold) and all(map(_equal, value, gold))
    return isinstance(value, bool) == isinstance(gold, bool) and value == gold


def _shape(value: Any) -> Any:
    """The keys and types of a value; of a list the types that occur in it, whatever its length."""
    if isinstance(value, dict):
        return "object", frozenset((key, _shape(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", frozenset(map(_shape, value))
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
