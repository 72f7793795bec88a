"""Counts what decoding reads on one TPU chip: python docs/measure_decoding.py prints a table.

The sampler's own decisions are made for responses of random lengths (log-normal, and a mean of 300 of at most 1,024
tokens), without a model. Counted are the bytes of weights and of responses' caches that Qwen3-0.6B reads in bfloat16.
"""

import numpy as np

from grpo_jax.rollout import sizes

WEIGHTS, POSITION = 1.19e9, 28 * 8 * 128 * 2 * 2  # bytes of all weights, and of a position in all layers' caches
T, G, TILE = 1024, 8, 16


def draw(P: int, seed: int) -> np.ndarray:
    """The lengths of responses: those to one prompt are alike."""
    random = np.random.default_rng(seed)
    spread_PG = np.exp(random.normal(0, 0.25, (P, 1)) + random.normal(0, 0.5, (P, G)))
    return np.clip(np.ceil(spread_PG / spread_PG.mean() * 300), 1, T).astype(int)


def positions(length_PG: np.ndarray) -> np.ndarray:
    """Positions in use, read by the kernel, and read from ring buffers of four lengths, over all tokens."""
    rings, shapes = sizes.ring_lengths(T), sizes.row_shapes(*length_PG.shape, 1)
    S, shape, left_PG, read = rings[0], shapes[0], length_PG, np.zeros(3)
    for t in range(1, length_PG.max() + 1):
        S = sizes.next_ring(rings, S, t - 1)
        while (smaller := sizes.next_shape(shapes, shape, left_PG >= t, 1)) != shape:
            moved, shape = sizes.compact(left_PG >= t, smaller, 1), smaller
            left_PG = np.where(moved.active_pg, np.take_along_axis(left_PG[moved.source_p], moved.row_pg, axis=1), 0)
        active = np.sum(length_PG >= t)
        read += [active * t, active * (-(-t // TILE) * TILE), shape[0] * shape[1] * S]
    return read


print("| rows | ring buffers of four lengths | kernel |\n|---|---|---|")
for P in (8, 64):
    steps = [draw(P, seed) for seed in range(3)]
    weights = WEIGHTS * sum(length_PG.max() for length_PG in steps)
    used, kernel, rings = weights + POSITION * sum(positions(length_PG) for length_PG in steps)
    print(f"| {P * G} | {rings / used:.2f} | {kernel / used:.2f} |")
