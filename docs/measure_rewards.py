"""Measures how long reading answers takes: python docs/measure_rewards.py prints seconds for 4,096 responses."""

import time

from grpo_jax.rewards import Example, exact, last_number

RESPONSES = 4096
WORKING = "Natalia sold 48/2 = 24 clips in May, and 48 in April.\n" * 8
CASES = {
    "exact, a number": (exact, "72"),
    "exact, words": (exact, "seventy-two clips"),
    "last_number, ####": (last_number, WORKING + "#### 72"),
    "last_number, boxed": (last_number, WORKING + r"So it is \boxed{72 \text{ clips}}."),
    "last_number, prose": (last_number, WORKING + "Altogether she sold 72 clips."),
}

for name, (reward, response) in CASES.items():
    begun = time.perf_counter()
    for _ in range(RESPONSES):
        reward(Example("How many clips?", "72"), response)
    print(f"{name}: {time.perf_counter() - begun:.2f} s")
