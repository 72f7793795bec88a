"""Which examples a step sees, and its random key: functions of the seed, the step and the retired examples."""

from collections.abc import Collection

import jax
import numpy as np
from jax import Array


def step_key(seed: int, step: int, round: int = 0) -> Array:
    """The random key of a step, and of each further round of sampling in it."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(key, round) if round else key


def pick(seed: int, step: int, prompts: int, examples: int, without: Collection[int] = (), round: int = 0) -> list[int]:
    """Indices of the examples of a step: each pass over the data is one permutation, and as long as `without` stays the
    same, no pass skips any.

    `without` are examples that are not asked any more. Later rounds of a step draw from what its earlier ones left.
    """
    left = np.setdiff1d(np.arange(examples), np.fromiter(without, int, len(without)))
    if len(left) < prompts and len(without):
        raise ValueError(f"{prompts} prompts are asked in a step, and only {len(left)} of {examples} are left to ask.")
    if round:
        return left[np.random.default_rng([seed, step, round]).permutation(len(left))[:prompts]].tolist()
    positions = np.arange(step * prompts, (step + 1) * prompts)
    epochs = {epoch: _shuffled(seed, epoch, len(left)) for epoch in set((positions // len(left)).tolist())}
    return [int(left[epochs[index // len(left)][index % len(left)]]) for index in positions.tolist()]


def _shuffled(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)
