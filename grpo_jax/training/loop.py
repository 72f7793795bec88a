"""A run from its parts to its last step: what the command line does, callable from Python."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.memory import device_memory, peak_gigabytes
from grpo_jax.devices.mesh import Layout, mesh_of
from grpo_jax.devices.placing import everywhere, from_hosts, values_of_host
from grpo_jax.evaluation.settings import Evaluation
from grpo_jax.grpo import prepare, update
from grpo_jax.hosts import ending, meeting, store
from grpo_jax.hosts.codes import NOT_FINITE, STEP_FAILED, RunError
from grpo_jax.hosts.signals import StopRequested, say
from grpo_jax.learner.losses import NONFINITE
from grpo_jax.metrics import total_rewards
from grpo_jax.models import Model
from grpo_jax.rewards import Mix
from grpo_jax.rollout import programs
from grpo_jax.scoring import FailedOnAHost, Rewards
from grpo_jax.structs import Batch, Rollouts, TrainState
from grpo_jax.tasks import Task
from grpo_jax.training.asking import Answers, ask
from grpo_jax.training.checkpoint import Checkpoints, size_of
from grpo_jax.training.ending import Whole, check_before_saving, save_whole, writing
from grpo_jax.training.health import Health, setup_of
from grpo_jax.training.held_out import evaluate_held_out, is_spent, why_spent
from grpo_jax.training.nonfinite import are_usable, describe_skipped, dump, failed, failed_in_a_row, largest_norm
from grpo_jax.training.opening import Resume, open_run
from grpo_jax.training.order import step_key
from grpo_jax.training.profiling import Profile
from grpo_jax.training.progress import Progress
from grpo_jax.training.record import METRICS, Record, Run
from grpo_jax.training.reporting import Reporter
from grpo_jax.training.session import Session, Settings, assemble
from grpo_jax.training.summary import conclusion, introduction
from grpo_jax.training.token_rows import with_tokens


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
class Lesson:
    """What a step learns from, and the norm above which a gradient is left out."""

    answers: Answers
    batch: Batch
    largest_norm: float


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
    evaluation: Evaluation | None = None,
) -> Trained:
    """Trains for `settings.steps` steps and writes a run directory, which `RunDirectory` reads.

    `config` is kept there as config.yaml. `resume` goes on from the newest checkpoint of the newest run of this name
    that can be verified; it is an error to skip one if `strict`, and to change what is learned unless `allow_changes`.
    `evaluation` says how held-out prompts are answered: greedily, once each, if it is not given.
    On several hosts all of them call this at once, after `grpo_jax.hosts.meeting.join()`.
    """
    how = (resume, strict, allow_changes, evaluation)
    return finish(start(model, task, algorithm, settings, layout, run, config, *how))


def start(
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
    evaluation: Evaluation | None = None,
) -> Started:
    """Everything before the first step. The hosts agree that they run the same before they load the model's weights."""
    if not resume and (strict or allow_changes):
        raise ValueError("strict and allow_changes say how a run is resumed: add resume=True, or leave them out.")
    run = Run() if run is None else run
    run = replace(run, root=str(run.folder))  # a reward may change the current folder
    with ExitStack() as opened:  # is closed again if the run cannot start
        stop = opened.enter_context(closing(ending.StopSignal()))
        path = Path(store.decide(lambda: str(run.latest()))) if resume else None
        how = Resume(strict, allow_changes)
        session = assemble(model, task, algorithm, settings, layout, evaluation)
        started = _open(session, run, path, config, how, stop)
        opened.pop_all()
    return started


def _open(
    session: Session, run: Run, path: Path | None, config: str, resume: Resume, stop: ending.StopSignal
) -> Started:
    """The state and the directory of a run, new unless there is a `path`, once all hosts have agreed."""
    meeting.check_same(session.facts() | {"code in its current folder": meeting.user_code_version()})
    meeting.check_same({"mesh": str(session.mesh.shape)}, "Set mesh.data, mesh.fsdp and mesh.tensor.")
    meeting.check_same({"first weights": str(session.model.first_weights)}, "Name the step: model.name: RUN@STEP.")
    if session.algorithm.responses_at_once is None or session.algorithm.policy.faster:
        meeting.check_same({"memory of a device": str(device_memory())}, "Set algorithm.responses_at_once.")
    opened = open_run(session, run, path, config, resume)
    return Started(session, opened.state, opened.checkpoints, opened.record, stop, opened.files)


def finish(started: Started) -> Trained:
    """All steps of a run that has been started. Its files are closed when this ends, however it does.

    After an error or Ctrl-C the last whole step is saved, if it was not; a note of the exception says what is on disk.
    """
    whole = Whole(started.state, int(started.state.step))
    with closing(started.stop):
        try:
            trained = _loop(started, whole)
        except BaseException as error:
            started.record.failed = True
            saved = _save_whole(started, whole)
            with suppress(Exception):  # has been said
                started.files.close()
            if isinstance(error, SystemExit):
                text = f"Code of this run called sys.exit({error.code}), which is no way to end it; {saved}"
                raise RunError(text, STEP_FAILED) from error
            if isinstance(error, KeyboardInterrupt):
                say(f"\nstopped; {saved}")
            error.add_note(saved)
            raise
        with writing("A checkpoint", started.record.path):
            started.files.close()
    return trained


# An error ends this host before it closes the checkpoints, which would wait for the other hosts.
@ending.end_all_hosts_on_error(otherwise=STEP_FAILED)
def _loop(started: Started, whole: Whole) -> Trained:
    """What `_steps` does. A reward that fails on one of several hosts ends all, after they have saved together."""
    error: Exception | None
    try:
        return _steps(started, whole)
    except StopRequested:
        say(
            f"told to stop inside of a reward that does not return: its step is left out; {_save_whole(started, whole)}"
        )
        return Trained(started.record.path, whole.state, complete=False)
    except FailedOnAHost as failure:
        error = failure.own
    saved = _save_whole(started, whole)
    if error is None:
        ending.wait_for_the_host_that_failed()
        error = RunError("A reward failed on another host.", STEP_FAILED)
    error.add_note(saved)
    raise error


def _steps(started: Started, whole: Whole) -> Trained:
    """Steps until all are done, with evaluations and checkpoints between them, or until the run is told to stop."""
    session, record, stop = started.session, started.record, started.stop
    settings, first, retired = session.settings, whole.step, set(record.retired)
    progress = Progress(settings.steps, first, store.is_first(), watchdog_minutes=settings.watchdog_minutes)
    health = Health(setup_of(session), record, progress.say)
    reporter = Reporter(record.path, settings.report_minutes, store.is_first(), progress.say)
    started.files.callback(reporter.leave)
    profile = Profile(record.path, settings.profile_steps, progress.say)
    started.files.callback(profile.close)
    stop.catch_interrupts()
    progress.note(introduction(session, whole.state, record.path))
    _evaluate_first(started, whole, progress)
    for _ in range(first, settings.steps):
        if used_up(session, retired) or is_spent(settings, record):
            break
        with profile.step(whole.step + 1):
            ended = _whole_step(started, whole, first, retired, progress)
        ended = ended or is_spent(settings, record)
        _check_best(settings.keep_best, record)
        health.look()
        reporter.after_step()
        if progress.closed:
            stop.request()
        stopped = stop.after_step() and not ended
        best = record.best(settings.keep_best)
        due = ended or stopped or whole.step % settings.save_every == 0 or best == whole.step
        if whole.usable and due:
            check_before_saving(whole.state, whole.step)
            size = size_of(whole.state, session.model.policy.frozen)
            with writing(f"The checkpoint of step {whole.step}", started.checkpoints.directory, size):
                _save(started.checkpoints, whole.state, whole.step, best, progress, wait=ended or stopped)
        if stopped:
            progress.say("told to stop: go on with --resume")
            return Trained(record.path, whole.state, complete=False)
    if used_up(session, retired):
        progress.say(f"{len(retired)} prompts are solved: too few are left for a step, so this is the end")
    if settings.keep_best is not None and is_spent(settings, record):
        progress.say(why_spent(settings.keep_best, record))
    reporter.finish()
    progress.say(conclusion(record, progress))
    return Trained(record.path, whole.state, complete=True)


def _evaluate_first(started: Started, whole: Whole, progress: Progress) -> None:
    """The evaluation before the first step, or the one that a run was stopped in, if there was one."""
    session, record = started.session, started.record
    if session.held_out is None:
        return
    every = session.settings.evaluate_every
    due = whole.step % every == 0 or whole.step == session.settings.steps
    missing = due and record.lacks(whole.step, "eval/reward")
    if record.history and not missing:
        return
    with started.stop.interruptible():
        metrics = evaluate_held_out(session, record, whole.state.params, progress, whole.step)
    with writing("Metrics", record.path):
        record.amend(metrics) if missing else record.metrics(0, metrics)


def _whole_step(started: Started, whole: Whole, first: int, retired: set[int], progress: Progress) -> bool:
    """Moves `whole` on by one step; whether that was the last. Ctrl-C leaves it before the update, or is noted.

    The row of metrics is written even if the evaluation fails: the update is done. A resumed run evaluates again.
    """
    session, record = started.session, started.record
    settings, index = session.settings, whole.step
    with started.stop.interruptible():
        answers = ask(session, whole.state, index, retired, progress.phase)
        pair, key = (answers.rollouts, answers.rewards), step_key(settings.seed, index)
        batch = prepare(session.algorithm, whole.state, *pair, key, progress.phase)
    lesson = Lesson(answers, batch, largest_norm(settings.skip_spikes, record.history))
    state, metrics = take_step(session, whole.state, lesson, index, retired, record, progress)
    last = index + 1 == settings.steps or used_up(session, retired)
    try:
        if last or (settings.evaluate_every and (index + 1) % settings.evaluate_every == 0):
            with started.stop.interruptible():
                metrics |= evaluate_held_out(session, record, state.params, progress, index + 1)
    finally:
        with writing("Metrics", record.path):
            record.metrics(index + 1, metrics)
        whole.state, whole.step = state, index + 1
    whole.usable = True
    if metrics["skipped_updates"]:
        whole.usable = not failed(metrics) or are_usable(state.params)
        cause = describe_skipped(session.algorithm, state.params, batch, answers.rewards, metrics, lesson.largest_norm)
        progress.say(f"warning: step {whole.step}: {cause}")
        count = failed_in_a_row(record.history, first)
        if count >= settings.max_skipped or (last and (metrics[NONFINITE] or not whole.usable)):
            _give_up(started, whole, lesson, metrics, count, cause)
    return last


def _give_up(started: Started, whole: Whole, lesson: Lesson, metrics: dict[str, float], count: int, cause: str) -> None:
    """Ends the run after so many steps in a row that failed, with what shows why the last one did."""
    record, writes = started.record, store.is_first()
    with writing("The failed step", record.path):
        folder = dump(record.path, whole.step, lesson.batch, lesson.answers.rewards, metrics, cause, writes)
    if store.host_count() > 1:  # all hosts are here, and the error ends them at once
        _save_whole(started, whole)
    raise RunError(
        f"The run ends at step {whole.step}, as {count} step(s) in a row had an update that is not finite (see"
        f" train.max_skipped). In the last, {cause}. {folder} has its batch, metrics and config. Mend what is named, or"
        " lower optimizer.learning_rate.",
        NOT_FINITE,
    )


def _check_best(name: str | None, record: Record) -> None:
    """Refuses to keep the best checkpoint by a metric that the step does not have; an `eval/` one may come later."""
    if name is not None and not name.startswith("eval/") and record.lacks(record.history[-1]["step"], name):
        raise ValueError(
            f"train.keep_best is {name}, which no step measures. {record.path / METRICS} has the names of those"
            " that are."
        )


def _save_whole(started: Started, whole: Whole) -> str:
    return save_whole(whole, started.checkpoints, started.record.best(started.session.settings.keep_best))


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
    session: Session,
    state: TrainState,
    lesson: Lesson,
    index: int,
    retired: set[int],
    record: Record,
    progress: Progress,
) -> tuple[TrainState, dict[str, float]]:
    """The state after an update, and its metrics. Donates the old state, so all else that may fail is done before.

    The answers are recorded, and solved prompts join the `retired`.
    """
    settings, algorithm, answers, batch = session.settings, session.algorithm, lesson.answers, lesson.batch
    solved: list[int] = []
    if settings.retire is not None:
        solved = [example for example, mean in answers.means.items() if mean >= settings.retire]
    if algorithm.objective.needs_rewards:
        pair = (answers.rewards, answers.rollouts)
        rows = list(answer_rows(algorithm.mix, pair[0], everywhere(batch.advantages), pair[1]))
        rows = with_tokens(rows, *pair, algorithm.mix, algorithm.decode, settings.token_groups)
        with writing("The answers", record.path):
            record.completions(index + 1, rows, store.host_index(), store.host_count())
            record.retire(index + 1, solved)
    state, measured = update(algorithm, state, batch, progress.phase, lesson.largest_norm)
    metrics = {name: float(value) for name, value in measured.items()}
    metrics |= {"learning_rate": learning_rate(state), "sampling/programs": programs()} | peak_gigabytes()
    if settings.retire is not None:
        retired |= set(solved)
        metrics["retired_prompts"] = len(retired)
    return state, metrics | progress.finish_step(metrics)


def used_up(session: Session, retired: set[int]) -> bool:
    """Whether so many prompts have been retired that the others do not fill a step."""
    return bool(retired) and len(session.questions.examples) - len(retired) < session.settings.prompts


def answer_rows(mix: Mix, rewards: Rewards, advantages: np.ndarray, rollouts: Rollouts) -> Iterator[dict[str, Any]]:
    """One row for each answer of this host's prompts: what was asked and said, every reward and their total, its
    advantage, its length in tokens, and whether it was cut off.
    """
    parts_pGR, advantages = rewards.parts_PGR[rewards.index_p], advantages[rewards.index_p]
    totals_pG = total_rewards(parts_pGR, mix)
    own = values_of_host(rollouts.action_PGT).sum(axis=2), values_of_host(rollouts.ended_PG)
    length_pG, ended_pG = (  # a host may have the texts of prompts that lie on another's devices (train.resample)
        everywhere(from_hosts(values_pG, mesh_of(rollouts)))[rewards.index_p] for values_pG in own
    )
    for p, example in enumerate(rewards.examples):
        for g, text in enumerate(rewards.texts[p]):
            parts = {f"rewards/{name}": parts_pGR[p, g, r].item() for r, name in enumerate(mix.names)}
            row = {"prompt": example.prompt, "answer": example.answer, "completion": text}
            logged = {name: values[p][g] for name, values in rewards.extras.items()}
            row |= parts | logged | {"reward": totals_pG[p, g].item(), "advantage": advantages[p, g].tolist()}
            yield row | {"length": int(length_pG[p, g]), "truncated": not ended_pG[p, g]}


def learning_rate(state: TrainState) -> float:
    """The rate of the last optimiser step; NaN for an optimiser that does not tell."""
    found = (value for _, value in optax.tree_utils.tree_get_all_with_path(state.opt_state, "learning_rate"))
    return next((float(value.max()) for value in found if isinstance(value, jax.Array)), math.nan)
