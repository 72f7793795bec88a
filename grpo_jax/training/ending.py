"""How a run ends before its last step: the last whole step is saved, and what could not be written is said."""

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax

from grpo_jax.hosts.codes import NOT_FINITE, NOT_WRITTEN, RunError
from grpo_jax.learner.finite import all_finite
from grpo_jax.structs import TrainState
from grpo_jax.training.checkpoint import Checkpoints


@dataclass
class Whole:
    """The state after the last step that is whole: its update is done, and its row of metrics is written.

    An update donates this state, so there is none between the start of an update and the end of the step.
    """

    state: TrainState
    step: int
    usable: bool = True  # False if updates fail and the weights are out of all proportion: older ones are worth more

    @property
    def is_there(self) -> bool:
        """Whether the arrays have not been donated."""
        return not any(array.is_deleted() for array in jax.tree.leaves(self.state))


@contextmanager
def writing(what: str, path: Path, size: int = 0, other: str = "take another run.root") -> Generator[None]:
    """Makes any error of the block a sentence: what could not be written, where, what room there is, and which `other`
    place could be taken.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        needed = f", and this takes {size / 1e9:.3g} GB" if size else ""
        text = f"{what} could not be written to {path}{_room(path)}{needed} ({_reason(error)})."
        raise RunError(f"{text} Make room or {other}.", NOT_WRITTEN) from error


def _reason(error: Exception) -> str:
    """What the system said, where that can be found in a long text of Orbax; else the beginning of the text."""
    texts = [os.strerror(number) for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES)]
    found = [text for text in texts if text in str(error)]
    return found[0] if found else f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _room(path: Path) -> str:
    """How much space is free there, where that can be known."""
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        return f", where {shutil.disk_usage(there).free / 1e9:.3g} GB are free"
    except (OSError, StopIteration):
        return ""


def check_before_saving(state: TrainState, step: int) -> None:
    """Refuses to save weights that are not finite: older checkpoints, which are, would make room for them."""
    if not all_finite(state.params):
        raise RunError(
            f"step {step} is not saved, because its weights are not finite numbers",
            NOT_FINITE,
        )


def save_whole(whole: Whole, checkpoints: Checkpoints, best: int | None) -> str:
    """Saves the last whole step if it is not saved yet, and keeps the step `best`; a sentence about what is on disk.

    Raises nothing.
    """
    text = ""
    try:
        if whole.step and checkpoints.latest != whole.step:
            if not whole.usable:
                text = f"The weights of step {whole.step} are of no use, so they are not saved; "
            elif whole.is_there:
                check_before_saving(whole.state, whole.step)
                checkpoints.save(whole.step, whole.state, best)
            else:
                text = f"Step {whole.step} is lost, as the error came while its state was being updated; "
        checkpoints.wait()
    except Exception as error:
        reason = str(error) if isinstance(error, RunError) else _reason(error)
        text = f"Step {whole.step} could not be saved: {reason}; "
    latest = checkpoints.latest
    return text + ("nothing is saved yet" if latest is None else f"step {latest} is saved: go on from it with --resume")
