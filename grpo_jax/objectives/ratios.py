"""Log-ratios: differences of log-probs, zero where there is no action, at the level that an objective compares on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def token(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """Each token's own log-ratio (PPO, GRPO)."""
    return difference_PGT


def sequence(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The mean log-ratio of the response: the length-normalised sequence ratio (GSPO, arXiv:2507.18071)."""
    return jnp.broadcast_to(mean_of(difference_PGT, action_PGT), difference_PGT.shape)


def sequence_token(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The sequence ratio in value, with each token's own gradient (GSPO-token, arXiv:2507.18071, equation 14)."""
    mean_PG1 = jax.lax.stop_gradient(mean_of(difference_PGT, action_PGT))
    return mean_PG1 + difference_PGT - jax.lax.stop_gradient(difference_PGT)


def sequence_product(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The summed log-ratio of the response: the exact importance ratio of the whole sequence."""
    return jnp.broadcast_to(jnp.sum(difference_PGT, axis=2, keepdims=True), difference_PGT.shape)


@dataclass(frozen=True)
class BoundedProduct:
    """The summed log-ratio of the response (VESPO, arXiv:2602.10693), of which no token gives more than `bound`, as in
    its authors' code.
    """

    bound: float = 20.0

    def __call__(
        self, difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]
    ) -> Float[Array, "P G T"]:
        return sequence_product(jnp.clip(difference_PGT, -self.bound, self.bound), action_PGT)


def prefix(difference_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """The log-ratio of the response up to each token: exact for what the token was chosen after, itself included."""
    return jnp.cumsum(difference_PGT, axis=2)


def mean_of(values_PGT: Float[Array, "P G T"], action_PGT: Bool[Array, "P G T"]) -> Float[Array, "P G 1"]:
    """The mean over each response's tokens; zero for one without any."""
    number_PG1 = jnp.maximum(jnp.sum(action_PGT, axis=2, keepdims=True), 1)
    return jnp.sum(jnp.where(action_PGT, values_PGT, 0.0), axis=2, keepdims=True) / number_PG1


def bounded_exp(log_ratio_PGT: Array) -> Array:
    """The ratio, flat beyond e^80: float32 ends at e^88, and infinity times a gradient of zero is not a number."""
    return jnp.exp(jnp.minimum(log_ratio_PGT, 80.0))
