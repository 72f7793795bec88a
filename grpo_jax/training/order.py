"""Which examples a step sees: a pure function of seed, step and what is left out, so no position has to be saved."""

from collections.abc import Collection

import numpy as np


def pick(seed: int, step: int, prompts: int, examples: int, without: Collection[int] = (), turn: int = 0) -> list[int]:
    """Indices of the examples of a step: each pass over the data is one permutation, and as long as `without` stays the
    same, no pass skips any.

    `without` are examples that are not asked any more. Later turns of a step draw from what its earlier ones left.
    """
    left = np.setdiff1d(np.arange(examples), np.fromiter(without, int, len(without)))
    if len(left) < prompts and len(without):
        raise ValueError(f"{prompts} prompts are asked in a step, and only {len(left)} of {examples} are left to ask.")
    if turn:
        return left[np.random.default_rng([seed, step, turn]).permutation(len(left))[:prompts]].tolist()
    places = np.arange(step * prompts, (step + 1) * prompts)
    epochs = {epoch: _shuffled(seed, epoch, len(left)) for epoch in set((places // len(left)).tolist())}
    return [int(left[epochs[place // len(left)][place % len(left)]]) for place in places.tolist()]


def _shuffled(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)
