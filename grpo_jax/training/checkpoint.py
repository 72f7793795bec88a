"""Saving and restoring the train state with Orbax. Order and randomness follow from its step and retired examples.

A step is saved in this order: Orbax commits its files, then the manifest with their sums is written
(saved/manifest.py), then older steps are deleted. So whenever a process ends, a step that can be verified is on disk,
once one was.
"""

import shutil
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import jax
import orbax.checkpoint as ocp

from grpo_jax.hosts import store
from grpo_jax.saved.arrays import described
from grpo_jax.saved.manifest import MANIFEST, steps_in, write_manifest
from grpo_jax.structs import TrainState

SAVED = "saved"  # the file in a run directory that says that a step has been saved whole, even if all of them are gone


@dataclass(frozen=True)
class Keep:
    """Which saved steps stay: the `newest`, all that `every` divides (0: none), and the best, which `save` is told."""

    newest: int
    every: int = 0

    def of(self, steps: Collection[int], best: int | None = None) -> set[int]:
        """Those of the steps that stay."""
        divided = {step for step in steps if self.every and step % self.every == 0}
        return set(sorted(steps)[-self.newest :]) | divided | {step for step in steps if step == best}


def saved_part(state: TrainState, frozen: frozenset[str]) -> TrainState:
    """What a checkpoint holds of a state: all but the frozen parameters, which are those of the model as it was."""
    return replace(state, params={name: value for name, value in state.params.items() if name not in frozen})


class Checkpoints:
    """The states of a run, each saved whole while training goes on, but for the `frozen` parameters."""

    def __init__(self, directory: Path, keep: Keep, frozen: frozenset[str] = frozenset()):
        self.directory, self.keep, self.frozen = directory.absolute(), keep, frozen
        options = ocp.CheckpointManagerOptions(max_to_keep=None, cleanup_tmp_directories=True)  # deleted here instead
        handler = ocp.StandardCheckpointHandler()  # named, so that `shapes` can ask before anything is restored
        self.manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handler)
        self.worker = ThreadPoolExecutor(1, "checkpoints")
        self.unfinished: Future[None] | None = None

    @property
    def latest(self) -> int | None:
        """The step of the newest state, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, best: int | None = None) -> None:
        """Starts saving; the state may be donated as soon as this returns. The step `best`, if any, stays too."""
        self.wait()
        self.manager.save(step, args=ocp.args.StandardSave(saved_part(state, self.frozen)))
        self.unfinished = self.worker.submit(self._finish, step, best)

    def _finish(self, step: int, best: int | None) -> None:
        """The first host writes the manifest once all hosts have saved, and then deletes what need not stay."""
        self.manager.wait_until_finished()
        if not store.is_first():
            return
        write_manifest(self.directory / str(step), step)
        (self.directory.parent / SAVED).touch()
        folders = [self.directory / str(saved) for saved in steps_in(self.directory)]
        saved = [int(folder.name) for folder in folders if folder.is_dir() and not folder.is_symlink()]
        for old in set(saved) - self.keep.of(saved, best):
            (self.directory / str(old) / MANIFEST).unlink(missing_ok=True)  # a part of a step is never taken for one
            shutil.rmtree(self.directory / str(old))

    def wait(self) -> None:
        """Until what is being saved is on disk. Raises what went wrong there."""
        unfinished, self.unfinished = self.unfinished, None
        if unfinished is not None:
            unfinished.result()

    def shapes(self, step: int) -> dict[str, str]:
        """The shape and type of every array of a saved state, by its path."""
        return described(self.manager.item_metadata(step).tree)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step with the types of `like` (arrays, or shapes with shardings), sharded like it. Frozen
        parameters are those of `like`.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved_part(like, self.frozen))
        found = cast(TrainState, self.manager.restore(step, args=ocp.args.StandardRestore(shapes)))
        return replace(found, params=like.params | found.params)

    def forget(self) -> None:
        """Looks at the directory again, after steps have been moved away."""
        self.manager.reload()

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self.wait()
        finally:
            self.worker.shutdown()
            self.manager.close()


def size_of(state: TrainState, frozen: frozenset[str]) -> int:
    """The bytes of a checkpoint, before they are compressed."""
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(saved_part(state, frozen)))
