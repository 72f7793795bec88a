"""Further terms of a loss: a coefficient times the weighted sum of a value of each token, which is maximised too."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from grpo_jax.objectives.coefficients import Adaptive
from grpo_jax.ranges import check_range
from grpo_jax.structs import Tokens

BLUNT = 1e-3  # nats


@dataclass(frozen=True)
class Term:
    """One more thing to maximise: `coefficient` times the weighted sum of a value of each token.

    The weights are those of the loss, or come from `weighting`; `mask` leaves tokens out of this term.
    """

    coefficient: float | Adaptive
    value: Callable[[Tokens], Array]
    weighting: Callable[[Array, Array], Array] | None = None
    mask: Callable[[Tokens, Array], Array] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.coefficient, int | float):
            check_range("coefficient", self.coefficient)


# Values of terms.


def entropy(tokens: Tokens) -> Array:
    """The entropy of the distribution that each token came from, in nats."""
    return tokens.entropy_PGT


def squared_log_ratio(tokens: Tokens) -> Array:
    """Half the squared log-ratio of each token to the anchor."""
    return jnp.square(tokens.logprobs_PGT - tokens.anchor_PGT) / 2


def squared_sequence_log_ratio(tokens: Tokens) -> Array:
    """Half the squared log-ratio of the whole response, divided evenly among its tokens."""
    difference_PGT = jnp.where(tokens.action_PGT, tokens.logprobs_PGT - tokens.anchor_PGT, 0.0)
    total_PG1 = jnp.sum(difference_PGT, axis=2, keepdims=True)
    number_PG1 = jnp.maximum(jnp.sum(tokens.action_PGT, axis=2, keepdims=True), 1)
    return jnp.where(tokens.action_PGT, jnp.square(total_PG1) / 2 / number_PG1, 0.0)


def absolute_log_ratio(tokens: Tokens) -> Array:
    """The absolute log-ratio of each token to the anchor, smooth below `BLUNT`: rounding errors get no gradient."""
    return jnp.sqrt(jnp.square(tokens.logprobs_PGT - tokens.anchor_PGT) + BLUNT**2) - BLUNT
