"""Confidence intervals of means over prompts, and of differences between two evaluations of the same prompts.

Prompts are resampled and not answers, because the answers to one prompt are alike. The bootstrap is BCa (Efron 1987),
which covers better than the percentile bootstrap where most answers are right or most are wrong (docs/evaluation.md).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 4000
BATCH = 4_000_000  # numbers that are resampled at a time
EQUAL = 1e-9  # relative to the largest: values that differ by less are the same number


@dataclass(frozen=True)
class Interval:
    """The ends of a confidence interval."""

    low: float
    high: float


def interval(
    values_P: Float[np.ndarray, " P"], confidence: float, least: float | None = None, most: float | None = None
) -> Interval | None:
    """The interval of the mean; NaN is left out. None for fewer than two values, and for equal ones without a range.

    Resampling equal values says nothing. If it is known that none can be below `least` or above `most`, n equal ones
    still bound how often others occur: at most 1 - (alpha / 2)^(1/n), as with Clopper and Pearson.
    """
    known = np.asarray(values_P, float)[~np.isnan(values_P)]
    if len(known) < 2:
        return None
    if np.ptp(known) <= EQUAL * np.abs(known).max():
        if least is None or most is None:
            return None
        value, others = float(known[0]), 1 - ((1 - confidence) / 2) ** (1 / len(known))
        return Interval(value - others * (value - least), value + others * (most - value))
    from scipy import stats  # takes a second, which commands that evaluate nothing do not have to wait

    found = stats.bootstrap(
        (known,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(known)),
        confidence_level=confidence,
        method="BCa",
        random_state=np.random.default_rng(0),  # the same numbers give the same interval
    ).confidence_interval
    return Interval(float(found.low), float(found.high))
