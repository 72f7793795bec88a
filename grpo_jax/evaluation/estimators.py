"""Numbers about several answers to each prompt: their mean, pass@k, and the majority of k.

Each function gives one number per prompt; the mean over prompts is the metric, so its interval is that of a mean.
NaN is an answer that could not be scored, and a prompt of which too few answers could be.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

VOTERS = 3  # from which on there is a majority


def average(values_PG: Float[np.ndarray, "P G"]) -> Float[np.ndarray, " P"]:
    """The mean of each prompt's known values (avg@k, where they are those of k answers)."""
    known_PG = ~np.isnan(values_PG)
    count_P = known_PG.sum(axis=1)
    total_P = values_PG.sum(axis=1, where=known_PG)
    return np.where(count_P > 0, total_P / np.maximum(count_P, 1).astype(values_PG.dtype), np.nan)


def pass_at(right_PG: Float[np.ndarray, "P G"], k: int) -> Float[np.ndarray, " P"]:
    """The probability that one of k answers is right: 1 - C(n - c, k) / C(n, k), of n answers with c right ones.

    Unbiased (Chen et al. 2021, arXiv:2107.03374, equation 1); the quotient is a product, so nothing overflows.
    """
    count_P = (~np.isnan(right_PG)).sum(axis=1)
    wrong_P = count_P - np.nansum(right_PG, axis=1)
    none_P = np.ones(len(right_PG))  # the probability that none of the k is right
    for i in range(k):
        none_P *= np.maximum(wrong_P - i, 0) / np.maximum(count_P - i, 1)
    return np.where(count_P >= k, 1 - none_P, np.nan)


def majority_at(
    right_PG: Float[np.ndarray, "P G"], said: Sequence[Sequence[Hashable | None]], k: int
) -> Float[np.ndarray, " P"]:
    """How often the answer that most of k responses give is right (maj@k; self-consistency, arXiv:2203.11171).

    `said` is the answer of each response; those with equal ones vote together, and None votes for nothing. Of G
    responses each k that follow one another are one vote; what is left of them is not used.
    """
    G = right_PG.shape[1]
    starts = range(0, G - k + 1, k)
    votes = [
        [majority(right_G[start : start + k], said_G[start : start + k]) for start in starts]
        for right_G, said_G in zip(right_PG, said, strict=True)
    ]
    return average(np.array(votes, float).reshape(len(votes), len(starts)))


def majority(right_G: Float[np.ndarray, " G"], said_G: Sequence[Hashable | None]) -> float:
    """Whether the most frequent answer is right; of several that are as frequent, the fraction that are.

    Equal answers of which some are right count as right in that proportion. 0 where no response has an answer.
    """
    votes = Counter(said for said in said_G if said is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [answer for answer, count in votes.items() if count == most]
    right = {answer: [r for r, said in zip(right_G, said_G, strict=True) if said == answer] for answer in leaders}
    return float(average(np.array([[average(np.array([each]))[0] for each in right.values()]]))[0])


def sizes(G: int) -> tuple[int, ...]:
    """The numbers k that pass@k and maj@k are given for: the powers of two up to G, and G itself."""
    powers = [2**n for n in range(G.bit_length()) if 2**n <= G]
    return tuple(dict.fromkeys([*powers, G]))
