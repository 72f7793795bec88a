"""Measures how often intervals hold the true mean: python docs/measure_intervals.py prints a table in Markdown.

Zeros and ones are drawn, and intervals at 95 % made of them: those of `grpo-jax eval` (BCa, and the exact bound where
all numbers are the same), of the percentile bootstrap, and of Student's t. Then pass@4 of prompts that nearly all pass:
eight answers each, right with a chance from a beta distribution. A quarter of a minute on one quiet core.
"""

import numpy as np
from scipy import stats

from grpo_jax.evaluation.estimators import pass_at
from grpo_jax.evaluation.intervals import RESAMPLES, Interval, interval

ROUNDS, LEVEL = 300, 0.95
CASES = [(16, 0.5), (32, 0.1), (32, 0.9), (64, 0.5), (64, 0.9), (64, 0.97), (256, 0.97)]
CHANCES = 2.0, 0.5  # of the beta distribution: a prompt's answers are right with a chance of 0.8 on average
ROUNDING = 1e-9


def percentile(values_P: np.ndarray) -> Interval:
    """The middle of the means of resampled zeros and ones: how many ones a resample has is binomial."""
    means = np.random.default_rng(0).binomial(len(values_P), values_P.mean(), RESAMPLES) / len(values_P)
    return Interval(*np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))


def student(values_P: np.ndarray) -> Interval:
    """The mean plus and minus the deviation of the mean, times the quantile of t."""
    reach = stats.t.ppf((1 + LEVEL) / 2, len(values_P) - 1) * values_P.std(ddof=1) / len(values_P) ** 0.5
    return Interval(values_P.mean() - reach, values_P.mean() + reach)


def held(found: Interval | None, mean: float) -> bool:
    """Whether the interval holds the true mean."""
    return found is not None and found.low - ROUNDING <= mean <= found.high + ROUNDING


def passed(rng: np.random.Generator, prompts: int) -> np.ndarray:
    """pass@4 of each prompt."""
    return pass_at((rng.random((prompts, 8)) < rng.beta(*CHANCES, (prompts, 1))).astype(float), 4)


print("| n | true mean | BCa | percentile | t |\n|---|---|---|---|---|")
for count, mean in CASES:
    rng = np.random.default_rng(0)
    drawn = [(rng.random(count) < mean).astype(float) for _ in range(ROUNDS)]
    made = [(interval(each_P, LEVEL, 0.0, 1.0), percentile(each_P), student(each_P)) for each_P in drawn]
    parts = np.mean([[held(each, mean) for each in row] for row in made], axis=0)
    print(f"| {count} | {mean} | {' | '.join(f'{part:.3f}' for part in parts)} |", flush=True)

truth = passed(np.random.default_rng(1), 500_000).mean()
for count in (16, 32, 64, 256):
    rng = np.random.default_rng(0)
    part = np.mean([held(interval(passed(rng, count), LEVEL, 0.0, 1.0), truth) for _ in range(ROUNDS)])
    print(f"pass@4, {count} prompts with a mean of {truth:.3f}: {part:.3f}", flush=True)
