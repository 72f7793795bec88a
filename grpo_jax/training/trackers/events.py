"""The metrics of a run as files for TensorBoard, in `events/` of its directory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from grpo_jax.training.trackers.tracker import TrackedRun

FOLDER = "events"


@dataclass(frozen=True)
class TensorBoard:
    """Files for TensorBoard in the run directory. A resumed run replaces the steps that it takes again."""

    label = "tensorboard"
    replaces_steps = True

    def open(self, run: TrackedRun) -> "Events":
        """A new file, from which TensorBoard sees that older files end at this step."""
        return Events(run.path / FOLDER, run.step)


class Events:
    """Writes metrics to a file for TensorBoard. Numbers that are not finite are left out."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter  # not needed where TensorBoard is no tracker

        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self.writer.close()
