"""Numbers about a step that need no gradient, under the names TRL gives them where they mean the same."""

import numpy as np

from grpo_jax.rewards import Mix
from grpo_jax.structs import Rollouts


def describe(rollouts: Rollouts, rewards_PGR: np.ndarray, mix: Mix) -> dict[str, float]:
    """Lengths, endings and rewards of a batch of rollouts; lengths are in tokens."""
    return describe_lengths(rollouts) | describe_rewards(rewards_PGR, mix)


def describe_lengths(rollouts: Rollouts) -> dict[str, float]:
    """How long responses are, and how many were cut off at the limit."""
    lengths_PG = np.asarray(rollouts.action_PGT).sum(axis=2)
    ended_PG = np.asarray(rollouts.ended_PG)
    terminated = lengths_PG[ended_PG] if ended_PG.any() else np.zeros(1)
    return {
        "completions/mean_length": float(lengths_PG.mean()),
        "completions/min_length": float(lengths_PG.min()),
        "completions/max_length": float(lengths_PG.max()),
        "completions/mean_terminated_length": float(terminated.mean()),
        "completions/clipped_ratio": float(1 - ended_PG.mean()),
    }


def describe_rewards(rewards_PGR: np.ndarray, mix: Mix) -> dict[str, float]:
    """The total reward, its spread within groups, and each part; responses without a score are left out."""
    scored_PG = ~np.isnan(rewards_PGR).all(axis=2)
    rewards_PG = np.where(scored_PG, np.nansum(rewards_PGR * mix.weights_R, axis=2), np.nan)
    spread_P = np.array([_deviation(rewards_G) for rewards_G in rewards_PG])
    metrics = {
        "reward": _mean(rewards_PG),
        "reward_std": float(spread_P.mean()),
        "frac_reward_zero_std": float(np.isclose(spread_P, 0).mean()),
    }
    for name, rewards in zip(mix.names, np.moveaxis(rewards_PGR, 2, 0), strict=True):
        metrics |= {f"rewards/{name}/mean": _mean(rewards), f"rewards/{name}/std": _deviation(rewards)}
    return metrics


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _deviation(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if known.size > 1 else 0.0
