"""Measures what packing saves, with made-up lengths: python docs/measure_packing.py prints a table in Markdown."""

import numpy as np

from grpo_jax.learner.packing import divide, sizes

P, G, T, AT_ONCE, BATCHES = 64, 8, 1024, 4, 5
LENGTHS = {
    "exponential": lambda random: random.exponential(1.0, (P, G)),
    "log-normal 0.3": lambda random: random.lognormal(-0.045, 0.3, (P, G)),
    "log-normal 0.5": lambda random: random.lognormal(-0.125, 0.5, (P, G)),
    "log-normal 0.8": lambda random: random.lognormal(-0.32, 0.8, (P, G)),
}


def useful(name: str, mean: int) -> tuple[float, float]:
    """Fractions of computed positions that hold tokens: with a row for each response, as long as the longest of its
    microbatch, and with packed rows.
    """
    random = np.random.default_rng(0)
    tokens, apart, packed = 0, 0, 0
    for _ in range(BATCHES):
        length_PG = LENGTHS[name](random) * mean * np.exp(random.normal(0, 0.4, (P, 1)))
        length_PG = np.clip(length_PG.astype(int), 1, T)
        tokens += length_PG.sum()
        packed += sum(each.slots_PBW.size for each in divide(length_PG, T, AT_ONCE, splits=1, shards=1))
        slots = sorted({W for _, W in sizes(G, T)})
        longest = np.sort(length_PG.max(axis=1)).reshape(-1, AT_ONCE).max(axis=1)
        apart += sum(AT_ONCE * G * next(W for W in slots if W >= n) for n in longest)
    return tokens / apart, tokens / packed


print("| lengths | mean | rows of their own | packed rows |\n|---|---|---|---|")
for mean in (100, 300, 500):
    for name in LENGTHS:
        apart, packed = useful(name, mean)
        print(f"| {name} | {mean} | {apart:.2f} | {packed:.2f} |")
