"""Numbers about a step that need no gradient, under the names TRL gives them where they mean the same."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.devices.programs import program
from grpo_jax.rewards import Mix
from grpo_jax.structs import Rollouts


def describe(rollouts: Rollouts, rewards_PGR: np.ndarray, mix: Mix) -> dict[str, Array | float]:
    """Lengths in tokens, endings, entropy in nats, and rewards of all rollouts, also of those that teach nothing."""
    return describe_lengths(rollouts) | describe_rewards(rewards_PGR, mix)


@program
def describe_lengths(rollouts: Rollouts) -> dict[str, Array]:
    """The lengths of responses, the fraction cut off at the limit, and the mean entropy of tokens where it is known."""
    length_PG, ended_PG = jnp.sum(rollouts.action_PGT, axis=2), rollouts.ended_PG
    known_PGT = rollouts.action_PGT & ~jnp.isnan(rollouts.entropy_PGT)
    entropy, known = jnp.sum(jnp.where(known_PGT, rollouts.entropy_PGT, 0.0)), jnp.sum(known_PGT)
    return {
        "completions/mean_length": jnp.mean(length_PG),
        "completions/min_length": jnp.min(length_PG),
        "completions/max_length": jnp.max(length_PG),
        "completions/mean_terminated_length": jnp.sum(length_PG * ended_PG) / jnp.maximum(jnp.sum(ended_PG), 1),
        "completions/clipped_ratio": 1 - jnp.mean(ended_PG),
        "entropy": jnp.where(known > 0, entropy / known, jnp.nan),
    }


@program
def describe_given(rollouts: Rollouts) -> dict[str, Array]:
    """The lengths of given answers in tokens, and the tokens that a step learns from."""
    return describe_lengths(rollouts) | {"tokens": jnp.sum(rollouts.action_PGT)}


def describe_rewards(rewards_PGR: np.ndarray, mix: Mix) -> dict[str, float]:
    """The total reward, its spread within groups, and each part; responses without a score are left out."""
    rewards_PG = total_rewards(rewards_PGR, mix)
    spread_P = np.array([_deviation(rewards_G) for rewards_G in rewards_PG])
    metrics = {
        "reward": _mean(rewards_PG),
        "reward_std": float(spread_P.mean()),
        "frac_reward_zero_std": float(np.isclose(spread_P, 0).mean()),
    }
    for name, rewards in zip(mix.names, np.moveaxis(rewards_PGR, 2, 0), strict=True):
        metrics |= {f"rewards/{name}/mean": _mean(rewards), f"rewards/{name}/std": _deviation(rewards)}
    return metrics


def with_logged(metrics: Mapping[str, Array | float], logged: Mapping[str, float]) -> dict[str, Array | float]:
    """The metrics of a step with what rewards have logged of it, which must not replace one of them."""
    taken = sorted(metrics.keys() & logged.keys())
    if taken:
        raise ValueError(f"A reward logs {taken[0]}, which is a metric of every step: give log_metric another name.")
    return {**metrics, **logged}


def total_rewards(rewards_PGR: np.ndarray, mix: Mix) -> np.ndarray:
    """The weighted sum of each response's rewards; NaN for one without a score."""
    gated_PGR = mix.gated(rewards_PGR)
    scored_PG = ~np.isnan(gated_PGR).all(axis=2)
    return np.where(scored_PG, np.nansum(gated_PGR * mix.weights_R, axis=2), np.nan)


@program
def describe_mismatch(trainer_PGT: Array, rollouts: Rollouts) -> dict[str, Array]:
    """How far the trainer's log-probs are from the sampler's, over tokens whose log-prob both know.

    The ratio is trainer to sampler; k3 estimates the divergence of the trainer from the sampler, in nats; the
    effective sample size is a fraction of the tokens: 1 where all ratios are equal.
    """
    gap_PGT = trainer_PGT - rollouts.logprobs_PGT
    known_PGT = rollouts.action_PGT & ~jnp.isnan(gap_PGT)
    gap_PGT = jnp.where(known_PGT, gap_PGT, 0.0)
    number = jnp.maximum(jnp.sum(known_PGT), 1)
    ratio_PGT = jnp.where(known_PGT, jnp.exp(jnp.minimum(gap_PGT, 40.0)), 0.0)
    quantiles = jnp.nanquantile(jnp.where(known_PGT, ratio_PGT, jnp.nan), jnp.array([0.0, 0.01, 0.99, 1.0]))
    least, low, high, most = jnp.nan_to_num(quantiles, nan=1.0)
    none = ~jnp.any(known_PGT)  # then nothing is known to differ
    mean = jnp.where(none, 1.0, jnp.sum(ratio_PGT) / number)
    squares = jnp.where(none, 1.0, jnp.sum(jnp.square(ratio_PGT)) / number)
    ratio = "sampling/importance_sampling_ratio"
    return {
        "sampling/sampling_logp_difference/mean": jnp.sum(jnp.abs(gap_PGT)) / number,
        "sampling/sampling_logp_difference/max": jnp.max(jnp.abs(gap_PGT), initial=0.0),
        f"{ratio}/min": least,
        f"{ratio}/p01": low,
        f"{ratio}/mean": mean,
        f"{ratio}/p99": high,
        f"{ratio}/max": most,
        "sampling/k3": jnp.sum(jnp.where(known_PGT, jnp.expm1(jnp.minimum(gap_PGT, 40.0)) - gap_PGT, 0.0)) / number,
        "sampling/effective_sample_size": jnp.square(mean) / jnp.maximum(squares, 1e-30),
    }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _deviation(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if known.size > 1 else 0.0
