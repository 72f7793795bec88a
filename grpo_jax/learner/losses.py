"""The loss of a microbatch as a function of the parameters."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.algorithm import Algorithm
from grpo_jax.learner.logprobs import balanced_logprobs
from grpo_jax.objectives import loss
from grpo_jax.structs import Batch, Metrics, Params, Policy, Rollouts

NONFINITE = "nonfinite_logprobs"  # tokens whose log-prob is not finite; as a metric, their fraction


def loss_and_sums(
    algorithm: Algorithm, policy: Policy, params: Params, chosen: Batch, slots_PBW: Array | np.ndarray
) -> tuple[Array, tuple[Metrics, Array]]:
    """The loss of a microbatch under a policy; its statistics, as sums over tokens; and its log-probs."""
    logprobs_PGT, entropy_PGT, balance = balanced_logprobs(policy, params, chosen.rollouts, slots_PBW)
    value, sums = loss(algorithm.objective, logprobs_PGT, entropy_PGT, chosen)
    if balance is not None:
        value = value if chosen.balance is None else value + chosen.balance * balance
        sums |= {"load_balancing_loss": balance * jnp.sum(chosen.rollouts.action_PGT)}
    return value, (sums | {NONFINITE: nonfinite_logprobs(logprobs_PGT, chosen.rollouts)}, logprobs_PGT)


def nonfinite_logprobs(logprobs_PGT: Array, rollouts: Rollouts) -> Array:
    """The number of tokens whose log-prob is not finite. From the sampler a NaN means that it is not known."""
    wrong_PGT = ~jnp.isfinite(logprobs_PGT) | jnp.isinf(rollouts.logprobs_PGT)
    return jnp.sum(wrong_PGT & rollouts.action_PGT, dtype=jnp.float32)
