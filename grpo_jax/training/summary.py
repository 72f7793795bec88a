"""What a run prints before its first step and after its last."""

import shlex
from pathlib import Path

import jax
import numpy as np

from grpo_jax.rollout.given import GivenAnswers
from grpo_jax.saved.directory import REPORT
from grpo_jax.structs import Params, TrainState
from grpo_jax.training.checkpoint import SAVED, size_of
from grpo_jax.training.opening import most_at_once
from grpo_jax.training.overview import table as overview
from grpo_jax.training.progress import Progress
from grpo_jax.training.record import Record
from grpo_jax.training.session import Session


def introduction(session: Session, state: TrainState, path: Path) -> str:
    """What is about to happen, in numbers."""
    settings, algorithm = session.settings, session.algorithm
    size, frozen = _count(state.params), algorithm.policy.frozen
    adapted = f", {_count(algorithm.policy.trained(state.params)) / 1e6:.2f} M of them trained" if frozen else ""
    kl = algorithm.objective.kl if algorithm.objective.needs_reference else None
    term = "no reference policy, as there is no KL term" if kl is None else f"KL coefficient {kl.coefficient}"
    term = "given answers are learned" if isinstance(algorithm.engine, GivenAnswers) else term
    devices = overview(
        session.mesh, jax.process_count(), algorithm.policy, state, settings.prompts, algorithm.engine.responses
    )
    kept = f"{size_of(state, frozen) / 1e9:.2g} GB at most; {most_at_once(settings)} at most on disk"
    first = "" if session.model.first_weights is None else f"first weights: {session.model.first_weights}\n"
    if session.model.lora is not None:
        name = "a model made in Python" if session.model.origin is None else session.model.origin.base
        first += f"adapters {session.model.lora} of {name}\n"
    return (
        f"{first}"
        f"{size / 1e6:.1f} M parameters{adapted} on {session.mesh.size} {session.mesh.devices.flat[0].platform}"
        " device(s);"
        f" {len(session.questions.examples)} training prompts,"
        f" {len(session.held_out.examples) if session.held_out else 'no'} held-out ones\n"
        f"{settings.prompts} prompts a step, {algorithm.minibatches} optimiser step(s) each; {term}\n"
        f"{devices}\n"
        f"{'each checkpoint':<22} {kept}\n"
        f"{'resuming at' if int(state.step) else 'from'} step {int(state.step)} to {settings.steps}, into {path}"
    )


def _count(params: Params) -> int:
    return sum(array.size for array in jax.tree.leaves(params))


def conclusion(record: Record, progress: Progress) -> str:
    """The first rewards against the last, and where everything is. Steps that taught nothing are not compared."""
    taught = [row for row in record.history if not row.get("skipped_updates")]
    name = "reward" if any("reward" in row for row in taught) else "loss"  # given answers have no reward
    rewards, held_out = ([row[name] for row in taught if row.get(name) is not None] for name in (name, "eval/reward"))
    few = min(3, len(rewards) // 2) or len(rewards)  # no step is in both, unless there is one only
    text = "no step was learned from, so there are no rewards to compare"
    if few:
        first, last = (np.mean(part) for part in (rewards[:few], rewards[-few:]))
        compared = f"mean of the first and of the last {few} steps" if few > 1 else "the first and the last step"
        text = f"{name} {first:.3f} -> {last:.3f} ({compared})"
    skipped = len([row for row in record.history if row.get("skipped_updates")])
    text += f", without {skipped} step(s) that had updates left out" if skipped else ""
    if len(held_out) > 1:
        text += f"; held-out reward {held_out[0]:.3f} -> {held_out[-1]:.3f}"
    text += f"\ndone in {progress.elapsed()}; metrics, answers and checkpoints are in {record.path}"
    here = Path.cwd()
    run = shlex.quote(str(record.path.relative_to(here) if record.path.is_relative_to(here) else record.path))
    made = f"{run}/{REPORT} opens in a browser; " if (record.path / REPORT).exists() else ""
    text += f"\nreport: {made}grpo-jax report {run} makes it anew, and grpo-jax watch {run} shows it here"
    if not (record.path / SAVED).exists():  # so there is no checkpoint to go on with
        return text
    on = f"grpo-jax train CONFIG model.name={run} goes on from here with rewards; " if name == "loss" else ""
    return f"{text}\nnext: {on}grpo-jax generate {run}, or grpo-jax export {run} --out {run}-model"
