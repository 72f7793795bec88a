"""Which examples a step sees: a pure function of seed and step, so resuming needs no position to be saved."""

import numpy as np


def pick(seed: int, step: int, prompts: int, examples: int) -> list[int]:
    """Indices of the examples of a step: each pass over the data is one permutation, and no pass skips any."""
    places = np.arange(step * prompts, (step + 1) * prompts)
    epochs = {epoch: _shuffled(seed, epoch, examples) for epoch in set((places // examples).tolist())}
    return [int(epochs[place // examples][place % examples]) for place in places.tolist()]


def _shuffled(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)
