"""The tokens of an answer as they are coloured: by how improbable each was, and by the sign of its advantage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.report.rows import number_of

PROBABILITIES = (0.9, 0.5, 0.1, 0.01)  # below the first a token is coloured, below the last most of all


@dataclass(frozen=True)
class Token:
    """The text of a token, the name of its colour (empty: none), and what is said of it."""

    text: str
    colour: str
    says: str


def tokens_of(row: Mapping[str, Any]) -> list[Token]:
    """The first tokens of an answer; empty where they were not written, or do not fit the answer."""
    texts, logprobs = row.get("tokens"), row.get("logprobs")
    if not isinstance(texts, list) or not isinstance(logprobs, list) or len(texts) != len(logprobs):
        return []
    if not all(isinstance(text, str) for text in texts) or not row["completion"].startswith("".join(texts)):
        return []
    advantages = _advantages(row.get("advantage"), len(texts))
    each = zip(texts, logprobs, advantages, strict=True)
    return [_token(text, number_of(logprob), advantage) for text, logprob, advantage in each]


def _token(text: str, logprob: float, advantage: float) -> Token:
    probability = math.exp(min(logprob, 0.0)) if math.isfinite(logprob) else 1.0
    strength = sum(probability < bound for bound in PROBABILITIES)
    sign = "up" if advantage > 0 else "down" if advantage < 0 else "still"
    known = f"log-prob {logprob:.2f} ({_percent(probability)})" if math.isfinite(logprob) else "log-prob not known"
    known += f", advantage {advantage:+.3f}" if math.isfinite(advantage) else ""
    return Token(text, f"{sign}-{strength}" if strength else "", known)


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f} %" if probability >= 0.1 else f"{100 * probability:.2g} %"


def _advantages(value: Any, count: int) -> Sequence[float]:
    """The advantage of each token: its own where it has one, else that of the answer."""
    if isinstance(value, list):
        return [*map(number_of, value[:count]), *[0.0] * max(count - len(value), 0)]
    return [number_of(value)] * count
