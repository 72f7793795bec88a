"""Updates that were left out: which steps had one, what was not finite, and what is kept when there are too many."""

import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.placing import everywhere
from grpo_jax.devices.programs import program
from grpo_jax.learner.losses import NONFINITE
from grpo_jax.scoring import Rewards
from grpo_jax.structs import Batch, Params
from grpo_jax.training.record import CONFIG

WINDOW, FEWEST = 32, 8  # steps whose gradient norms a spike is compared with, at most and at least
HUGE = 1e6  # rewards and weights above this are named as a possible cause


def largest_norm(times: float | None, history: Sequence[Mapping[str, Any]]) -> float:
    """The norm above which a gradient is a spike: so many `times` the median of the last steps that had a gradient.

    It follows from the rows of metrics alone, so a resumed run has the same.
    """
    norms = [row["grad_norm"] for row in history if row.get("grad_norm")][-WINDOW:]
    return math.inf if times is None or len(norms) < FEWEST else times * statistics.median(norms)


def failed(metrics: Mapping[str, Any]) -> bool:
    """Whether a step had an update that was not finite."""
    return (metrics.get("skipped_updates") or 0) > (metrics.get("skipped_spikes") or 0)


def failed_in_a_row(history: Sequence[Mapping[str, Any]], since: int) -> int:
    """How many of the last steps, one after the other and all after step `since`, had an update that was not finite."""
    count = 0
    for row in reversed(history):
        if row["step"] <= since or not failed(row):
            break
        count += 1
    return count


def describe_skipped(
    algorithm: Algorithm, params: Params, batch: Batch, rewards: Rewards, metrics: Mapping[str, float], limit: float
) -> str:
    """Why updates of a step were left out, as the end of a sentence."""
    skipped = f"{metrics['skipped_updates']:.0f} of {algorithm.minibatches} updates"
    if not failed(metrics):
        return f"{skipped} left out: a norm of the gradient is above {limit:.3g} (train.skip_spikes)"
    terms = {"loss": "the loss", "grad_norm": "the norm of the gradient"}
    found = [f"{text} is {metrics[name]}" for name, text in terms.items() if not math.isfinite(metrics[name])]
    found = found or ["the optimiser's step leads to weights or moments that are too large, or not finite"]
    causes = _causes(algorithm, params, batch, rewards, metrics)
    return f"{skipped} left out, because {' and '.join(found)}" + (f"; {'; '.join(causes)}" if causes else "")


def _causes(
    algorithm: Algorithm, params: Params, batch: Batch, rewards: Rewards, metrics: Mapping[str, float]
) -> list[str]:
    """What is not finite, or so large that it may be the reason."""
    causes = []
    if metrics[NONFINITE] > 0:
        causes.append(f"{100 * metrics[NONFINITE]:.3g}% of the tokens have a log-prob that is not finite")
    tokens = int(jnp.sum(batch.rollouts.action_PGT))
    for name, count in wrong_tokens(batch).items():
        unknown = name == "the sampler's log-probs" and metrics[NONFINITE] == 0  # an engine may not know them
        if int(count) and not unknown:
            causes.append(f"{name} are not finite for {int(count)} of {tokens} tokens")
    for name, parts in zip(algorithm.mix.names, np.moveaxis(rewards.parts_PGR, 2, 0), strict=True):
        largest = np.nanmax(np.abs(parts), initial=0.0)
        if largest > HUGE:
            causes.append(f"the reward {name} is up to {largest:.3g}")
    if not are_usable(params):
        causes.append(f"weights are up to {float(largest_weight(params)):.3g}")
    rate = metrics.get("learning_rate", math.nan)
    return causes + ([] if math.isnan(rate) else [f"the learning rate is {rate:.3g}"])


@program
def wrong_tokens(batch: Batch) -> dict[str, Array]:
    """How many tokens have a number that is not finite, for each array of a batch."""
    rollouts, shape = batch.rollouts, batch.rollouts.action_PGT.shape
    advantages = batch.advantages if batch.advantages.ndim == 3 else batch.advantages[:, :, None]
    arrays = {
        "the sampler's log-probs": rollouts.logprobs_PGT,
        "the log-probs of the policy before the update": batch.old_logprobs_PGT,
        "the log-probs of the reference": batch.ref_logprobs_PGT,
        "the log-probs of the teacher": batch.teacher_logprobs_PGT,
        "advantages": jnp.broadcast_to(advantages, shape),
        "weights in the loss": batch.weights_PGT,
        "factors of masks": batch.keep_PGT,
    }
    known = {name: a_PGT for name, a_PGT in arrays.items() if a_PGT is not None}
    return {name: jnp.sum(rollouts.action_PGT & ~jnp.isfinite(a_PGT)) for name, a_PGT in known.items()}


def are_usable(params: Params) -> bool:
    """Whether weights are of a size that a trained model may have."""
    return float(largest_weight(params)) <= HUGE


@program
def largest_weight(params: Params) -> Array:
    """The largest size of a weight."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(a)).astype(jnp.float32) for a in jax.tree.leaves(params)]))


def dump(
    path: Path, step: int, batch: Batch, rewards: Rewards, metrics: Mapping[str, float], cause: str, writes: bool
) -> Path:
    """Keeps a step that failed, in a folder of the run directory `path`: batch.npz with every array that was learned
    from, metrics.json with the cause, and the config. All hosts call this, and the one that `writes` writes.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(replace(batch, metrics={}))
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(where, simple=True, separator="/"): everywhere(a) for where, a in leaves
    }
    folder = path / f"failed_step_{step:06d}"
    if not writes:
        return folder
    folder.mkdir(exist_ok=True)
    np.savez(folder / "batch.npz", **arrays, rewards_PGR=rewards.parts_PGR)
    numbers = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    text = json.dumps({"step": step, "cause": cause} | numbers, indent=1)
    (folder / "metrics.json").write_text(text + "\n")
    if (path / CONFIG).exists():
        shutil.copy(path / CONFIG, folder / CONFIG)
    return folder
