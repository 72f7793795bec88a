"""Log-ratios: from differences of log-probs, which are zero where there is no action, to the log-ratio of each token.

Some choices give every token of a response the same log-ratio, that of the response.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from grpo_jax.ranges import check_range

LARGEST_LOG = 80.0  # float32 ends at e^88


def token(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """Each token's own log-ratio (PPO, GRPO)."""
    return difference_PGT


def sequence(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The mean log-ratio of the response: the length-normalised sequence ratio (GSPO, arXiv:2507.18071).

    Its gradient goes to every token of the response, also to those that a mask leaves out.
    """
    return jnp.broadcast_to(mean_of(difference_PGT, action_PGT), difference_PGT.shape)


def sequence_token(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The value of `sequence` with each token's own gradient (GSPO-token, arXiv:2507.18071, equation 14), so that a
    token that a mask leaves out does not move.
    """
    mean_PG1 = jax.lax.stop_gradient(mean_of(difference_PGT, action_PGT))
    return mean_PG1 + difference_PGT - jax.lax.stop_gradient(difference_PGT)


def sequence_product(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The sum of the response's log-ratios: the exact importance ratio of the whole sequence."""
    return jnp.broadcast_to(jnp.sum(difference_PGT, axis=2, keepdims=True), difference_PGT.shape)


@dataclass(frozen=True)
class BoundedProduct:
    """The sum of the response's log-ratios, each clipped to [-bound, bound] (VESPO, arXiv:2602.10693, as in its
    authors' code).
    """

    bound: float = 20.0

    def __post_init__(self) -> None:
        check_range("bound", self.bound, above=0)

    def __call__(
        self, difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]
    ) -> Float[Array, "P G T"]:
        return sequence_product(jnp.clip(difference_PGT, -self.bound, self.bound), action_PGT)


def mean_of(values_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G 1"]:
    """The mean over each response's tokens; zero for a response without tokens."""
    number_PG1 = jnp.maximum(jnp.sum(action_PGT, axis=2, keepdims=True), 1)
    return jnp.sum(jnp.where(action_PGT, values_PGT, 0.0), axis=2, keepdims=True) / number_PG1


def bounded_exp(log_ratio_PGT: Array) -> Array:
    """The ratio, constant beyond e^80: infinity times a gradient of zero would be NaN."""
    return jnp.exp(jnp.minimum(log_ratio_PGT, LARGEST_LOG))
