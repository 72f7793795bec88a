"""How many responses a device can learn from at once."""

from grpo_jax.algorithm import Algorithm
from grpo_jax.structs import Params, Rollouts


def responses_at_once(algorithm: Algorithm, params: Params, rollouts: Rollouts) -> int | None:
    """What the user set."""
    return algorithm.responses_at_once
