"""`grpo-jax eval`: answers held-out prompts, and prints what the answers earn, with intervals.

A run stands beside its base model, prompt by prompt, so that the difference has an interval as well.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grpo_jax.algorithm import Algorithm
from grpo_jax.commands import printing
from grpo_jax.commands.eval.subjects import Subject, Target, targeted
from grpo_jax.commands.eval.table import heading, table
from grpo_jax.config import ConfigError, build, locate, render
from grpo_jax.devices.cache import keep_programs
from grpo_jax.devices.mesh import Layout, check_hosts
from grpo_jax.devices.sharding import check_experts
from grpo_jax.evaluation.answering import evaluate_questions
from grpo_jax.evaluation.offered import rehearse_environment, with_environment
from grpo_jax.evaluation.questions import Questions, check_rewards
from grpo_jax.evaluation.result import Evaluated, changes
from grpo_jax.evaluation.settings import Evaluation
from grpo_jax.hosts import ending, meeting, store
from grpo_jax.hosts.codes import COMPLETE, STEP_FAILED, RunError
from grpo_jax.hosts.telling import is_quiet, redraws, tell
from grpo_jax.learner.finite import check_weights
from grpo_jax.models import Model, load
from grpo_jax.saved.directory import RunDirectory, answer_files
from grpo_jax.scoring import FailedOnAHost
from grpo_jax.training.ending import writing
from grpo_jax.training.long_prompts import fitted
from grpo_jax.training.overview import copy_bytes
from grpo_jax.training.progress import clock_text
from grpo_jax.training.record import write_answers

MISTAKES = (ConfigError, FileNotFoundError)  # which the command line, too, prints as one line


@dataclass(frozen=True)
class Asked:
    """A task that is ready to be asked."""

    name: str
    algorithm: Algorithm
    questions: Questions
    evaluation: Evaluation


@dataclass(frozen=True)
class Column:
    """A model of the table: its name, how its weights are loaded, and the step that its answers are filed under."""

    name: str
    model: Model
    step: int


@ending.end_all_hosts_on_error(*MISTAKES)
def run(arguments: argparse.Namespace) -> int:
    """Prints a table for each task; the exit code. On several hosts, all of them run this at once."""
    target = _target(arguments)
    mesh, asked, columns = _prepared(target, arguments)
    clock = Clock(len(columns) * sum(len(each.questions.examples) for each in asked))
    found: list[list[Evaluated]] = [[] for _ in asked]
    try:
        for column in columns:
            params = column.model.params(mesh)
            check_weights(params, column.name)
            for results, each in zip(found, asked, strict=True):
                told = clock.of(f"{column.name}, {each.name}")
                how = (column.step, nullcontext, each.evaluation, told)
                results.append(evaluate_questions(each.algorithm, each.questions, params, *how))
            del params  # before the next ones are loaded
        clock.close()
        _report(target, asked, columns, found, arguments)
        return COMPLETE
    except FailedOnAHost as failure:
        if failure.own is None:
            ending.wait_for_the_host_that_failed()
        error = RunError(str(failure), STEP_FAILED) if failure.own is None else failure.own
        return tell(error, otherwise=STEP_FAILED)[0]
    except MISTAKES:
        raise
    except Exception as error:
        return tell(error, otherwise=STEP_FAILED)[0]


def _target(arguments: argparse.Namespace) -> Target:
    """What is measured. A run directory that does not tell, or cannot be read, is a mistake as well."""
    try:
        return targeted(arguments.target, arguments.task or [], arguments.overrides)
    except MISTAKES:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def _prepared(target: Target, arguments: argparse.Namespace) -> tuple[Mesh, list[Asked], list[Column]]:
    """All parts, checked before any weights are loaded. What keeps them from being built is a mistake of the config."""
    subject = target.subjects[0]
    try:
        _check_folder(arguments.out)
        meeting.join()
        texts = {f"config of {each.name}": render(each.config) for each in target.subjects}
        meeting.check_same(texts | {"version of the code": meeting.code_version()})
        keep_programs()
        parts = build(subject.config)
        model, layout = parts["model"], parts["layout"]
        mesh = _mesh(layout, target, model, arguments.overrides)
        check_hosts(mesh)
        check_experts(model.policy.shapes, mesh)
        asked = [_asked(subject, parts, model)]
        for subject in target.subjects[1:]:
            asked.append(_asked(subject, build(subject.config), model))
        return mesh, asked, _columns(target, model, arguments)
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(locate(subject.config, str(error))) from error


def _check_folder(out: str | None) -> None:
    """Refuses a folder of answers that cannot be written to, before minutes of work."""
    try:
        if out is not None:
            Path(out).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out names the folder of the answers, and {out} cannot be one ({error.strerror}). Name another one."
        ) from error


def _mesh(layout: Layout, target: Target, model: Model, overrides: Sequence[str]) -> Mesh:
    """The mesh of the config; that of a run that was trained on other devices is replaced, which is said."""
    size = copy_bytes(model.policy)
    try:
        return layout.mesh(copy_bytes=size)
    except ValueError:
        if target.run is None or any(override.startswith("mesh") for override in overrides):
            raise
    if store.is_first():
        print(
            f"{target.run.path} was trained on a mesh that the devices here cannot make, so it is measured on the"
            " default one; mesh.data, mesh.fsdp and mesh.tensor choose another.",
            file=sys.stderr,
        )
    return Layout().mesh(copy_bytes=size)


def _asked(subject: Subject, parts: Mapping[str, Any], model: Model) -> Asked:
    """A task with its prompts encoded, once the checks that a training makes of held-out examples have passed."""
    settings, evaluation, task = parts["settings"], parts["evaluation"], parts["task"]
    algorithm = replace(parts["algorithm"], policy=model.policy)  # one policy, so that programs are compiled once
    limit = settings.max_prompt_tokens
    model, task, environment = with_environment(model, task)
    examples = fitted(task.held_out, model, limit, settings.long_prompts, "held-out")[: settings.evaluate_prompts]
    if not examples:
        raise ValueError(
            f"The task {subject.name} has no held-out examples, which are what is asked. Give it some: task.held_out."
        )
    check_rewards(algorithm, model, "held-out", examples)
    rehearse_environment(environment, examples)
    questions = Questions(examples, model, limit, environment)
    first, _ = questions.choose([0])
    evaluation.check(algorithm.engine, algorithm.mix, model.policy, first)
    return Asked(subject.name, algorithm, questions, evaluation)


def _columns(target: Target, model: Model, arguments: argparse.Namespace) -> list[Column]:
    """The model that is compared with, if there is one, and the one that is measured. A run is compared with what it
    began with: its base model, or the weights of another run.
    """
    run = target.run
    name = arguments.target if run is None or "@" in arguments.target else f"{arguments.target}@{run.step}"
    own = Column(name, model, 0 if run is None else run.step)
    before = arguments.before
    if before is None and run is not None:
        before = str(RunDirectory(run.path).identity().get("first_weights", run.base))
    if before is None:
        return [own]
    other = load(before)
    if other.shape != model.shape:
        raise ValueError(
            f"--before compares prompt by prompt with a model of the same shape, and {before} has another one than"
            f" {arguments.target}. Name another model, or measure each by itself."
        )
    known = None if arguments.before is None or other.origin is None else other.origin.run
    return [Column(before, other, 0 if known is None else known.step), own]


class Clock:
    """Says on standard error how many prompts have been answered, and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self.total, self.before, self.begun = total, 0, time.monotonic()
        self.shows = store.is_first() and not is_quiet()
        self.live = self.shows and redraws(sys.stderr.isatty())

    def of(self, label: str) -> Any:
        """What is told of the prompts of one model and one task."""

        def told(done: int, count: int) -> None:
            answered = self.before + done
            self.before += count if done == count else 0
            elapsed = time.monotonic() - self.begun
            left = clock_text(elapsed / answered * (self.total - answered))
            self._say(f"{label}: {done} of {count} prompts, {clock_text(elapsed)}, left {left}")

        self._say(f"{label}: answering ...")
        return told

    def close(self) -> None:
        """Ends the line of a terminal."""
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        if self.shows:
            start, end = ("\r\033[K", "") if self.live else ("", "\n")
            print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def _report(
    target: Target,
    asked: Sequence[Asked],
    columns: Sequence[Column],
    found: Sequence[Sequence[Evaluated]],
    arguments: argparse.Namespace,
) -> None:
    """Prints the tables, and then keeps the answers and the figures: a full disk costs no table."""
    names, figures = [column.name for column in columns], []
    speaks = store.is_first() and printing.is_for_people(arguments)
    for each, results in zip(asked, found, strict=True):
        changed = changes(*results) if len(results) == 2 else None
        figures.append(_figures(each, names, results, changed))
        if speaks:
            text = table(names, results, changed, printing.width())
            printing.show(f"{heading(each.name, each.evaluation, each.algorithm.engine, results[-1])}\n{text}")
        folder = answers_folder(target, each.name if len(asked) > 1 else "", arguments)
        if folder is not None:
            _keep(folder, columns, results, arguments)
        if speaks:
            kept = f"answers: {folder}" if folder is not None else "answers are not kept; --out DIR keeps them"
            printing.show(f"{kept}\n")
    if arguments.json and store.is_first():
        printing.print_json(arguments, figures)


def _keep(folder: Path, columns: Sequence[Column], results: Sequence[Evaluated], arguments: argparse.Namespace) -> None:
    """Keeps the answers of each model, each host those that it scored; those of `--before` in a folder of their own."""
    for column, result in zip(columns, results, strict=True):
        place = folder / ("before" if arguments.before is not None and column is not columns[-1] else "")
        who = (store.host_index(), store.host_count())
        with writing("The answers", place, other="name another folder with --out"):
            write_answers(place, "held_out", column.step, result.answers, answer_files(place, "held_out"), *who)


def answers_folder(target: Target, task: str, arguments: argparse.Namespace) -> Path | None:
    """Where answers are kept. Those of a run with its own settings belong to the ones that it wrote itself; others are
    kept apart from them. None for a model, unless a folder is named.
    """
    if arguments.out is not None:
        return Path(arguments.out).expanduser() / task
    if target.run is None:
        return None
    other = [override for override in arguments.overrides if not override.startswith("mesh.")]
    own = not other and not arguments.task and arguments.before is None
    return target.run.path / ("completions" if own else "evaluations") / task


def _figures(asked: Asked, names: Sequence[str], results: Sequence[Evaluated], changed: Any) -> dict[str, Any]:
    models = [
        {"model": name, "metrics": dict(each), "intervals": _plain(each.intervals)}
        for name, each in zip(names, results, strict=True)
    ]
    settings = dataclasses.asdict(asked.evaluation)
    told = {"task": asked.name, "prompts": len(asked.questions.examples), "evaluation": settings, "models": models}
    return told if changed is None else told | {"changes": _plain(changed)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dataclasses.asdict(value) for name, value in values.items()}
