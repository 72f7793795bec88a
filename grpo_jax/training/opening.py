"""The state, the directory and the checkpoints of a run before its first step, whether it is new or resumed."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from grpo_jax.hosts import meeting, store
from grpo_jax.hosts.signals import INTERRUPTS
from grpo_jax.saved.manifest import steps_in
from grpo_jax.saved.steps import is_early
from grpo_jax.structs import TrainState
from grpo_jax.training.checkpoint import SAVED, Checkpoints, Keep, size_of
from grpo_jax.training.lock import Lock
from grpo_jax.training.record import Record, Run, RunDirectory
from grpo_jax.training.restoring import restore_newest
from grpo_jax.training.resuming import (
    Fingerprint,
    check_start_over,
    compare,
    fingerprint,
    read_fingerprint,
    write_fingerprint,
)
from grpo_jax.training.session import Session, Settings, first_state
from grpo_jax.training.trackers.feed import feeds_of, forget


@dataclass(frozen=True)
class Resume:
    """How a run is resumed: `strict` refuses to skip a damaged checkpoint, `allow_changes` to refuse other settings."""

    strict: bool = False
    allow_changes: bool = False


@dataclass(frozen=True)
class Opened:
    """What a run needs of its directory. Other processes cannot open it before its `files` are closed."""

    state: TrainState
    checkpoints: Checkpoints
    record: Record
    files: ExitStack


def open_run(session: Session, run: Run, path: Path | None, config: str, resume: Resume) -> Opened:
    """A new run, or the one in the directory `path`, with its newest state that can be trusted."""
    settings, mix, engine = session.settings, session.algorithm.mix, session.algorithm.engine
    counted = session.evaluation.counted(engine, mix)
    _check_best(settings.keep_best, *((mix.names, counted) if session.held_out is not None else ((), ())))
    with ExitStack() as opened:  # is closed again if the run cannot be opened
        if path is not None:
            _lock(path, opened)
        known = fingerprint(session, config) if path is None else compare(path, session, config, resume.allow_changes)
        INTERRUPTS.check()
        state = first_state(session)
        INTERRUPTS.check()
        frozen = session.model.policy.frozen
        _check_space(run.folder if path is None else path, size_of(state, frozen), session.settings)
        if path is None:
            path = Path(store.decide(lambda: str(run.create())))
            _lock(path, opened)
        meeting.check_shared_directory(path)
        if not _has_steps(path):
            _check_start_over(path, session.settings, resume)
        checkpoints = _with_checkpoints(path, session.settings, frozen, opened)
        state = _restored(path, checkpoints, state, session.settings, resume)
        record = opened.enter_context(closing(Record(path, int(state.step), store.is_first())))
        way_out = f"They do not see the same {path} yet, or not any more: start all of them again, with --resume."
        meeting.check_same({"history of the run": repr((record.history, record.retired))}, way_out)
        if int(state.step) == 0 and store.is_first():
            _begin_again(path)
        _keep(path, run, session, known, record, config)
        _track(record, int(state.step), settings, known)
        return Opened(state, checkpoints, record, opened.pop_all())


def _check_best(best: str | None, names: Sequence[str], counted: Sequence[str] = ()) -> None:
    """Refuses to keep the best checkpoint by a metric of held-out prompts that a run with rewards of these names does
    not measure, and that is none of those that are `counted`. There are none without held-out prompts.
    """
    known = ["eval/reward"] * bool(names) + [f"eval/rewards/{name}/mean" for name in names]
    known += [f"eval/{name}" for name in counted]
    if best is not None and best.startswith("eval/") and best not in known:
        listed = f"measured are {', '.join(known)}" if known else "this run has no held-out prompts"
        raise ValueError(
            f"train.keep_best names {best}, which is none of the metrics of held-out prompts that are better where they"
            f" are larger: {listed}."
        )


def _lock(path: Path, opened: ExitStack) -> None:
    if store.is_first():
        opened.enter_context(closing(Lock(path)))


def _with_checkpoints(path: Path, settings: Settings, frozen: frozenset[str], opened: ExitStack) -> Checkpoints:
    keep = Keep(settings.keep, settings.keep_every)
    return opened.enter_context(closing(Checkpoints(path / "checkpoints", keep, frozen)))


def _restored(
    path: Path, checkpoints: Checkpoints, state: TrainState, settings: Settings, resume: Resume
) -> TrainState:
    """The newest state of a run that can be trusted, or its first one if there is none yet."""
    early = store.decide(lambda: str(is_early(path))) == "True"
    had_steps = _has_steps(path)
    found = restore_newest(checkpoints, state, early, resume.strict, resume.allow_changes)
    if found is None and had_steps:  # none of them is whole
        _check_start_over(path, settings, resume)
    if found is not None and int(found.step) > settings.steps:
        raise ValueError(
            f"{path} is at step {int(found.step)} already, and train.steps is {settings.steps}. Ask for more steps, or"
            " start a new run without --resume."
        )
    return state if found is None else found


def _has_steps(path: Path) -> bool:
    return store.decide(lambda: str(steps_in(path / "checkpoints"))) != "[]"


def _check_start_over(path: Path, settings: Settings, resume: Resume) -> None:
    """Refuses to begin again where a step had been saved. A run that was killed in its first save has lost none."""
    last = int(store.decide(lambda: str(_last_step(path))))
    lost = store.decide(lambda: str(_was_saved(path, last, settings))) == "True"
    check_start_over(path, last, lost, resume.allow_changes)


def _was_saved(path: Path, last: int, settings: Settings) -> bool:
    """Whether a step has been saved whole in a run with `last` steps: the second save waits for the first."""
    return (path / SAVED).exists() or last > 2 * _save_every(path, settings)


def _last_step(path: Path) -> int:
    return max((row["step"] for row in RunDirectory(path).metrics()), default=0)


def _save_every(path: Path, settings: Settings) -> int:
    """How often the run was saved so far."""
    known = read_fingerprint(path)
    before = {} if known is None else known.parts
    return int(before.get("train.save_every", settings.save_every))


def most_at_once(settings: Settings) -> int:
    """The number of checkpoints that may be on disk at once: those that stay, and the one that is being saved."""
    last = settings.steps // settings.save_every * settings.save_every
    every = settings.keep_every
    divided = (
        sum(step % every == 0 for step in range(settings.save_every, last + 1, settings.save_every)) if every else 0
    )
    return settings.keep + 1 + (settings.keep_best is not None) + divided


def _check_space(place: Path, size: int, settings: Settings) -> None:
    """Refuses a disk that is too small for the checkpoints, before anything is trained."""
    if not store.is_first():
        return
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    used = sum(file.stat().st_size for file in (place / "checkpoints").rglob("*") if file.is_file())
    count = min(most_at_once(settings), settings.steps + 1)
    needed, free = count * size - used, shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"{count} checkpoints of {size / 1e9:.3g} GB may be on disk at once, but {there} has"
            f" {free / 1e9:.3g} GB free. Free some, set run.root to another disk, or lower train.keep."
        )


def _keep(path: Path, run: Run, session: Session, known: Fingerprint, record: Record, config: str) -> None:
    """Keeps what the run is made of from now on."""
    if store.is_first():
        record.write_config(config)
        write_fingerprint(path, run.name, known, session.model)


def _begin_again(path: Path) -> None:
    """A run that has lost its checkpoints is another one to its trackers."""
    if (path / SAVED).exists():
        (path / SAVED).unlink()
        forget(path)


def _track(record: Record, step: int, settings: Settings, known: Fingerprint) -> None:
    """Hands the metrics to the trackers, on the one host that writes."""
    if record.writes:
        texts = known.settings if known.settings else known.parts
        record.hand_to(feeds_of(settings.trackers, record.path, step, {k: _plain(v) for k, v in texts.items()}))


def _plain(text: str) -> str | int | float | bool | None:
    """A setting as a number where it is one: trackers compare these."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool | None) else text
