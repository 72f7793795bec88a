"""The tokens of some answers with their log-probs, which a report colours.

Only the groups of a step whose rewards differ most have them, so that files stay small and a step does not wait.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import prompts_of_host, values_of_host
from grpo_jax.metrics import total_rewards
from grpo_jax.rewards import Mix
from grpo_jax.scoring import Rewards
from grpo_jax.structs import Rollouts

MOST = 300  # tokens of an answer, so that rows stay short and steps fast
WAITED = 8  # tokens, at most, that make a character together
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
Decode = Callable[[Sequence[int]], str]


def with_tokens(
    rows: Sequence[dict[str, Any]], rewards: Rewards, rollouts: Rollouts, mix: Mix, decode: Decode, groups: int
) -> list[dict[str, Any]]:
    """The rows of answers; those of so many groups have the texts of their first `tokens`, and their `logprobs`.

    The log-probs are those that the sampler had, which are not known of every engine. An end token is an empty text.
    """
    chosen_p, row_p = _placed(rewards, rollouts, mix, groups)
    if not len(chosen_p):
        return list(rows)
    tokens_pGT, action_pGT, logprobs_pGT = (
        values_of_host(array)[row_p] for array in (rollouts.tokens_PGT, rollouts.action_PGT, rollouts.logprobs_PGT)
    )
    found, G = list(rows), rewards.parts_PGR.shape[1]
    one = functools.cache(lambda token: decode([token]))
    for place, p in enumerate(chosen_p.tolist()):
        for g, text in enumerate(rewards.texts[p]):
            chosen_T = action_pGT[place, g]
            ids = whole_characters(decode, tokens_pGT[place, g][chosen_T].tolist())
            texts = pieces(decode, one, ids)
            if text.startswith("".join(texts)):
                logprobs = [round(value, 3) for value in logprobs_pGT[place, g][chosen_T][: len(ids)].tolist()]
                found[p * G + g] = found[p * G + g] | {"tokens": texts, "logprobs": logprobs}
    return found


def _placed(rewards: Rewards, rollouts: Rollouts, mix: Mix, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The groups that have tokens: their positions in `rewards.texts`, and those in this host's part of the rollouts.

    With train.resample a host may have the texts of prompts whose tokens are on another's devices; these have none.
    """
    P = len(rewards.parts_PGR)
    own_p, index_p = prompts_of_host(mesh_of(rollouts), P), np.arange(P)[rewards.index_p]
    here_p = np.flatnonzero(np.isin(index_p, own_p))
    totals_pG = total_rewards(rewards.parts_PGR[index_p[here_p]], mix)
    chosen_p = here_p[most_different(totals_pG, groups)] if len(here_p) else here_p
    return chosen_p, np.searchsorted(own_p, index_p[chosen_p])


def most_different(totals_pG: np.ndarray, count: int) -> np.ndarray:
    """The indices of so many groups, those first whose rewards differ most."""
    known_pG = np.where(np.isnan(totals_pG), -np.inf, totals_pG), np.where(np.isnan(totals_pG), np.inf, totals_pG)
    highest_p, lowest_p = known_pG[0].max(axis=1), known_pG[1].min(axis=1)
    spread_p = np.where(np.isfinite(highest_p), highest_p - lowest_p, -1.0)
    return np.argsort(-spread_p, kind="stable")[:count]


def whole_characters(decode: Decode, ids: Sequence[int]) -> Sequence[int]:
    """The first tokens, without the last ones of them if these are a part of a character."""
    if len(ids) <= MOST:
        return ids
    ends = range(MOST, MOST - WAITED, -1)
    return ids[: next((end for end in ends if not decode(ids[:end]).endswith(UNREADABLE)), MOST)]


def pieces(decode: Decode, one: Callable[[int], str], ids: Sequence[int]) -> list[str]:
    """What each token adds to the text. `one` gives the text of a single token.

    A character that several tokens make together belongs to the last of them.
    """
    alone = [one(token) for token in ids]
    if "".join(alone) == decode(ids):
        return alone
    texts, begin, told = [], 0, 0  # what is not told yet is decoded with the tokens before it, on which it depends
    for end in range(1, len(ids) + 1):
        before, after = decode(ids[begin:told]), decode(ids[begin:end])
        if after.endswith(UNREADABLE) and end < len(ids) and end - told < WAITED:
            texts.append("")
        else:
            texts.append(after[len(before) :])
            begin, told = told, end
    return texts
