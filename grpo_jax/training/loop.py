"""A run from its parts to its last step: what the command line does, callable from Python."""

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.memory import device_memory
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import everywhere
from grpo_jax.grpo import prepare, update
from grpo_jax.hosts import ending, meeting, store
from grpo_jax.models import Model
from grpo_jax.rewards import Mix, as_mix
from grpo_jax.rollout import programs
from grpo_jax.scoring import Rewards
from grpo_jax.structs import Params, TrainState
from grpo_jax.tasks import Task
from grpo_jax.training.asking import ask
from grpo_jax.training.checkpoint import Checkpoints, size_of
from grpo_jax.training.evaluation import evaluate_questions
from grpo_jax.training.opening import Resume, most_at_once, open_run
from grpo_jax.training.order import step_key
from grpo_jax.training.overview import table as overview
from grpo_jax.training.progress import Progress
from grpo_jax.training.record import Record, Run
from grpo_jax.training.session import Session, Settings, assemble


@dataclass(frozen=True)
class Started:
    """A run whose parts have been built and checked, and whose directory is open."""

    session: Session
    state: TrainState
    checkpoints: Checkpoints
    record: Record
    stop: ending.StopSignal
    files: ExitStack  # the record, the checkpoints and the lock of the directory, closed in this order's reverse


@dataclass(frozen=True)
class Trained:
    """What a run ends with. It is `complete` unless it was told to stop before its last step."""

    path: Path
    state: TrainState
    complete: bool


def train(
    model: Model,
    task: Task,
    algorithm: Algorithm,
    settings: Settings,
    layout: Layout | None = None,
    run: Run | None = None,
    config: str = "",
    resume: bool = False,
    strict: bool = False,
    allow_changes: bool = False,
) -> Trained:
    """Trains for `settings.steps` steps and writes a run directory, which `RunDirectory` reads.

    `config` is kept there as config.yaml. `resume` goes on from the newest checkpoint of the newest run of this name
    that can be verified; it is an error to skip one if `strict`, and to change what is learned unless `allow_changes`.
    On several hosts all of them call this at once, after `grpo_jax.hosts.meeting.join()`.
    """
    how = Resume(strict, allow_changes) if resume else None
    return finish(start(model, task, algorithm, settings, layout, run, config, how))


def start(
    model: Model,
    task: Task,
    algorithm: Algorithm,
    settings: Settings,
    layout: Layout | None = None,
    run: Run | None = None,
    config: str = "",
    resume: Resume | None = None,
) -> Started:
    """Everything before the first step. The hosts agree that they run the same before they load the model's weights."""
    run = Run() if run is None else run
    with ExitStack() as opened:  # is closed again if the run cannot start
        stop = opened.enter_context(closing(ending.StopSignal()))
        path = None if resume is None else Path(store.decide(lambda: str(run.latest())))
        started = _open(assemble(model, task, algorithm, settings, layout), run, path, config, resume, stop)
        opened.pop_all()
    return started


def _open(
    session: Session, run: Run, path: Path | None, config: str, resume: Resume | None, stop: ending.StopSignal
) -> Started:
    """The state and the directory of a run, new unless there is a `path`, once all hosts have agreed."""
    meeting.check_same(session.facts() | {"code in its current folder": meeting.user_code_version()})
    meeting.check_same({"mesh": str(session.mesh.shape)}, "Set mesh.data, mesh.fsdp and mesh.tensor.")
    if session.algorithm.responses_at_once is None:
        meeting.check_same({"memory of a device": str(device_memory())}, "Set algorithm.responses_at_once.")
    opened = open_run(session, run, path, config, Resume() if resume is None else resume)
    return Started(session, opened.state, opened.checkpoints, opened.record, stop, opened.files)


def finish(started: Started) -> Trained:
    """All steps of a run that has been started. Its files are closed when this ends, also after Ctrl-C."""
    with closing(started.stop), started.files:
        try:
            return _loop(started)
        except KeyboardInterrupt:
            saved = started.checkpoints.latest
            advice = "nothing is saved yet" if saved is None else f"step {saved} is saved: go on from it with --resume"
            print(f"\nstopped; {advice}", file=sys.stderr)
            raise


# An error ends this host before it closes the checkpoints, which would wait for the other hosts.
@ending.end_all_hosts_on_error(FileNotFoundError)
def _loop(started: Started) -> Trained:
    """Steps until all are done, with evaluations and checkpoints between them, or until the run is told to stop."""
    session, state, record, stop = started.session, started.state, started.record, started.stop
    settings, done, retired = session.settings, int(state.step), set(record.retired)
    progress = Progress(settings.steps, done, store.is_first())
    progress.say(introduction(session, state, record.path))
    if session.held_out is not None and not record.history:
        record.metrics(0, _evaluate(session, state.params, progress, 0))
    stop.catch_interrupts()
    for index in range(done, settings.steps):
        if used_up(session, retired):
            break
        state, metrics = take_step(session, state, index, retired, record, progress)
        last = index + 1 == settings.steps or used_up(session, retired)
        stopped = stop.after_step() and not last
        if last or (settings.evaluate_every and (index + 1) % settings.evaluate_every == 0):
            metrics |= _evaluate(session, state.params, progress, index + 1)
        record.metrics(index + 1, metrics)
        best = record.best(settings.keep_best)
        if last or stopped or (index + 1) % settings.save_every == 0 or best == index + 1:
            _save(started.checkpoints, state, index + 1, best, progress, wait=last or stopped)
        if stopped:
            progress.say("told to stop: go on with --resume")
            return Trained(record.path, state, complete=False)
    if used_up(session, retired):
        progress.say(f"{len(retired)} prompts are solved: too few are left for a step, so this is the end")
    progress.say(conclusion(record, progress))
    return Trained(record.path, state, complete=True)


def _save(
    checkpoints: Checkpoints, state: TrainState, step: int, best: int | None, progress: Progress, wait: bool
) -> None:
    """Saves a state in the background, or waits for it. The step `best` is kept, too."""
    with progress.phase("saving"):
        checkpoints.save(step, state, best)
        if wait:
            checkpoints.wait()
    progress.finish("saving", f"{'saved' if wait else 'in the background, saving'} step {step}")


def take_step(
    session: Session, state: TrainState, index: int, retired: set[int], record: Record, progress: Progress
) -> tuple[TrainState, dict[str, float]]:
    """The state after one step, and its metrics. The answers are recorded, and solved prompts join the `retired`."""
    settings, algorithm = session.settings, session.algorithm
    answers = ask(session, state, index, retired, progress.phase)
    batch = prepare(algorithm, state, answers.rollouts, answers.rewards, step_key(settings.seed, index), progress.phase)
    advantages = everywhere(batch.advantages)
    state, measured = update(algorithm, state, batch, progress.phase)
    metrics = {name: float(value) for name, value in measured.items()}
    metrics |= {"learning_rate": learning_rate(state), "sampling/programs": programs()}
    if settings.retire is not None:
        solved = [example for example, mean in answers.means.items() if mean >= settings.retire]
        retired |= set(solved)
        record.retire(index + 1, solved)
        metrics["retired_prompts"] = len(retired)
    rows = list(answer_rows(as_mix(algorithm.reward), answers.rewards, advantages))
    record.completions(index + 1, rows, store.host_index() if store.host_count() > 1 else None)
    return state, metrics | progress.finish_step(metrics)


def used_up(session: Session, retired: set[int]) -> bool:
    """Whether so many prompts have been retired that the others do not fill a step."""
    return bool(retired) and len(session.questions.examples) - len(retired) < session.settings.prompts


def _evaluate(session: Session, params: Params, progress: Progress, done: int) -> dict[str, float]:
    """The rewards of greedy answers to held-out prompts, as metrics; nothing where there are no such prompts."""
    if session.held_out is None:
        return {}
    means = evaluate_questions(session.algorithm, session.held_out, params, done, progress.phase)
    names = as_mix(session.algorithm.reward).names
    listed = ", ".join(f"{name} {means[f'rewards/{name}/mean']:.3f}" for name in names)
    count = len(session.held_out.examples)
    progress.finish("evaluating", f"{count} held-out prompts: reward {means['reward']:.3f} ({listed})")
    return {f"eval/{name}": value for name, value in means.items()}


def answer_rows(mix: Mix, rewards: Rewards, advantages: np.ndarray) -> Iterator[dict[str, Any]]:
    """One row for each answer of this host's prompts: what was asked and said, every reward, and its advantage."""
    parts_pGR, advantages = rewards.parts_PGR[rewards.index_p], advantages[rewards.index_p]
    for p, example in enumerate(rewards.examples):
        for g, text in enumerate(rewards.texts[p]):
            parts = {f"rewards/{name}": parts_pGR[p, g, r].item() for r, name in enumerate(mix.names)}
            row = {"prompt": example.prompt, "answer": example.answer, "completion": text}
            yield row | parts | {"advantage": advantages[p, g].tolist()}


def learning_rate(state: TrainState) -> float:
    """The rate of the last optimiser step; NaN for an optimiser that does not tell."""
    found = (value for _, value in optax.tree_utils.tree_get_all_with_path(state.opt_state, "learning_rate"))
    return next((float(value) for value in found if isinstance(value, jax.Array)), math.nan)


def introduction(session: Session, state: TrainState, path: Path) -> str:
    """What is about to happen, in numbers."""
    settings, algorithm = session.settings, session.algorithm
    size = sum(array.size for array in jax.tree.leaves(state.params))
    kl = algorithm.objective.kl if algorithm.objective.needs_reference else None
    devices = overview(
        session.mesh, jax.process_count(), algorithm.policy, state, settings.prompts, algorithm.engine.responses
    )
    return (
        f"{size / 1e6:.1f} M parameters on {session.mesh.size} {session.mesh.devices.flat[0].platform} device(s);"
        f" {len(session.questions.examples)} training prompts,"
        f" {len(session.held_out.examples) if session.held_out else 'no'} held-out ones\n"
        f"{settings.prompts} prompts a step, {algorithm.minibatches} optimiser step(s) each;"
        f" {'no reference policy, as there is no KL term' if kl is None else f'KL coefficient {kl.coefficient}'}\n"
        f"{devices}\n"
        f"each checkpoint takes up to {size_of(state) / 1e9:.1f} GB; at most {most_at_once(settings)} are on disk at once\n"
        f"{'resuming at' if int(state.step) else 'from'} step {int(state.step)} to {settings.steps}, into {path}"
    )


def conclusion(record: Record, progress: Progress) -> str:
    """The first rewards against the last, and where everything is."""
    rewards, held_out = (
        [row[name] for row in record.history if row.get(name) is not None] for name in ("reward", "eval/reward")
    )
    few = min(3, len(rewards))
    first, last = (np.mean(part) for part in (rewards[:few], rewards[-few:]))
    text = f"reward {first:.3f} -> {last:.3f} (mean of the first and of the last {few} steps)"
    if len(held_out) > 1:
        text += f"; held-out reward {held_out[0]:.3f} -> {held_out[-1]:.3f}"
    return f"{text}\ndone in {progress.elapsed()}; metrics, answers and checkpoints are in {record.path}"
