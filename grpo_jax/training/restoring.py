"""Which of the saved states a run goes on from: the newest whose files are what they were, and what was skipped."""

import json
import logging
from pathlib import Path

import jax

from grpo_jax.hosts import store
from grpo_jax.learner.finite import all_finite
from grpo_jax.saved.arrays import described
from grpo_jax.saved.manifest import write_manifest
from grpo_jax.saved.steps import Candidate, find_candidate
from grpo_jax.structs import TrainState
from grpo_jax.training.checkpoint import Checkpoints, saved_part

UNUSABLE = "unusable"  # the folder that newer steps which cannot be used are moved into


def restore_newest(
    checkpoints: Checkpoints, like: TrainState, early: bool, strict: bool, convert: bool
) -> TrainState | None:
    """The newest state that can be trusted, laid out as `like`; None if nothing was ever saved whole.

    Warns of newer steps that cannot be used, and moves them out of the way; an error if `strict`. `convert` allows
    another type than that of `like`. On several hosts all use the step that the first finds.
    """
    skipped: dict[int, str] = {}
    below: int | None = None
    while True:
        found = _agree(checkpoints.directory, early, below)
        skipped |= found.skipped
        if (below := found.step) is None:
            break
        state, reason = _restored(checkpoints, below, found.sealed, like, convert)
        if state is not None:
            _report(checkpoints, skipped, below, found, strict)
            return state
        skipped[below] = f"step {below} cannot be used ({reason})"
    _refuse_all(checkpoints.directory, skipped, strict)
    _set_aside(checkpoints, skipped)
    return None


def _agree(directory: Path, early: bool, below: int | None) -> Candidate:
    """What the first host finds, on all hosts."""

    def find() -> str:
        found = find_candidate(directory, early, below)
        return json.dumps([found.step, list(found.skipped.items()), found.sealed, found.extra])

    step, skipped, sealed, extra = json.loads(store.decide(find))
    return Candidate(step, dict(skipped), sealed, tuple(extra))


def _restored(
    checkpoints: Checkpoints, step: int, sealed: bool, like: TrainState, convert: bool
) -> tuple[TrainState | None, str]:
    """The state of `step`, or why it cannot be used. A state of another run than `like` is an error."""
    try:
        wanted = described(saved_part(like, checkpoints.frozen))
        _check_arrays(f"{checkpoints.directory}/{step}", checkpoints.shapes(step), wanted, convert)
        state = checkpoints.restore(step, like)
    except ValueError as error:
        if sealed or isinstance(error, OtherArraysError):
            raise
        return None, f"it cannot be read: {_first_line(error)}"
    except (OSError, KeyError, TypeError, AttributeError, jax.errors.JaxRuntimeError) as error:
        if sealed:
            raise ValueError(
                f"{checkpoints.directory}/{step} is as it was saved, but cannot be read: {_first_line(error)}. Was it"
                " saved by a later version of orbax-checkpoint?"
            ) from error
        return None, f"it cannot be read: {_first_line(error)}"
    if int(state.step) != step:
        return None, f"it is a copy of step {int(state.step)}"
    if not all_finite(state.params):
        return None, "its weights are not finite numbers"
    return state, ""


class OtherArraysError(ValueError):
    """A checkpoint holds other arrays than the run that is to go on from it."""


def _check_arrays(path: str, saved: dict[str, str], wanted: dict[str, str], convert: bool) -> None:
    """Refuses a state with other arrays; with other types too, unless they may be converted."""
    both = saved.keys() & wanted.keys()
    shapes = {name for name in both if saved[name].partition(" ")[2] != wanted[name].partition(" ")[2]}
    types = {name for name in both if saved[name] != wanted[name]} - shapes
    lines = [f"{name}: saved {saved[name]}, now {wanted[name]}" for name in sorted(shapes | types)]
    lines += [f"{name}: saved {saved[name]}, now not there" for name in sorted(saved.keys() - wanted.keys())]
    lines += [f"{name}: not saved, now {wanted[name]}" for name in sorted(wanted.keys() - saved.keys())]
    if not lines or (convert and len(types) == len(lines)):
        return
    shown = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
    way_out = "Resume with the run's own config.yaml" + (
        ", or convert the numbers with --allow-changes." if len(types) == len(lines) else "."
    )
    raise OtherArraysError(
        f"{path} does not fit this config: it was saved from another model or optimiser ({shown}). {way_out}"
    )


def _report(checkpoints: Checkpoints, skipped: dict[int, str], step: int, found: Candidate, strict: bool) -> None:
    """Says what was skipped for `step`, moves it away, and gives an early step its manifest."""
    if skipped and strict:
        raise ValueError(
            f"{'; '.join(skipped.values())}, and --strict allows no other step. Leave it out to go on from step"
            f" {step}, the newest that can be verified."
        )
    log = logging.getLogger("grpo_jax")
    for reason in skipped.values() if store.is_first() else ():
        log.warning("warning: %s, using step %d", reason, step)
    if found.extra and store.is_first():
        log.warning("warning: step %d: files that are not in its manifest are ignored: %s", step, found.extra)
    if not found.sealed and store.is_first():
        log.warning("warning: step %d was saved without sums of its files, so it cannot be verified", step)
        write_manifest(checkpoints.directory / str(step), step)
    _set_aside(checkpoints, skipped)


def _refuse_all(directory: Path, skipped: dict[int, str], strict: bool) -> None:
    """An error if no step is whole, except where the run ended while it saved its first one."""
    first_save = len(skipped) == 1 and "was not saved whole" in next(iter(skipped.values()))
    if skipped and (strict or not first_save):
        raise ValueError(
            f"No checkpoint in {directory} can be used: {'; '.join(skipped.values())}. Put a copy of a whole one there,"
            " or start a new run without --resume."
        )


def _set_aside(checkpoints: Checkpoints, skipped: dict[int, str]) -> None:
    """Moves steps that cannot be used out of the way of those that are saved next."""
    if skipped and store.is_first():
        folder = checkpoints.directory.parent / UNUSABLE
        folder.mkdir(exist_ok=True)
        for step in skipped:
            taken = {path.name for path in folder.iterdir()}
            names = [str(step), *(f"{step}.{number}" for number in range(2, len(taken) + 3))]
            place = folder / next(name for name in names if name not in taken)
            (checkpoints.directory / str(step)).rename(place)
            logging.getLogger("grpo_jax").warning("warning: step %d is moved to %s", step, place)
    if skipped:
        store.gather("moved")
        checkpoints.forget()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
