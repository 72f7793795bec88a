"""Saving and restoring the train state with Orbax. Order and randomness follow from its step and retired examples."""

from pathlib import Path
from typing import cast

import jax
import orbax.checkpoint as ocp

from grpo_jax.structs import TrainState


class Checkpoints:
    """The newest states of a run, each saved whole while training goes on."""

    def __init__(self, directory: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self.directory = directory.absolute()
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest state, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving; the state may be donated as soon as this returns."""
        self.manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Until what is being saved is on disk."""
        self.manager.wait_until_finished()

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, laid out as `like` (arrays, or shapes with shardings)."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return cast(TrainState, self.manager.restore(self.latest, args=ocp.args.StandardRestore(shapes)))
        except ValueError as error:
            raise ValueError(
                f"{self.directory}/{self.latest} does not fit this config: it was saved from another model or"
                f" optimiser. Resume with the run's own config.yaml. ({str(error).splitlines()[0]})"
            ) from error

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.manager.close()
