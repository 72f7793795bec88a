"""The metrics of a run for TensorBoard. They are in metrics.jsonl as well, so an error here is a warning."""

import math
import queue
import threading
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from grpo_jax.hosts.signals import say

WAITING = 100  # steps that may wait to be written, before the writer counts as stuck
CLOSING_SECONDS = 10


class Events:
    """Writes metrics in a thread of its own, which a full disk or a slow one cannot make the run wait for."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self.waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue()
        self.problem: str | None = None
        self.warned = False
        self.thread = threading.Thread(target=self._write_all, daemon=True, name="events")
        self.thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands the metrics of a step to the thread."""
        if self.waiting.qsize() > WAITING:
            self.problem = f"{self.waiting.qsize()} steps wait to be written"
        if self.problem is None:
            self.waiting.put((step, {name: value for name, value in metrics.items() if math.isfinite(value)}))
        self._warn()

    def close(self) -> None:
        """Waits until everything is written, for some seconds at most."""
        self.waiting.put(None)
        self.thread.join(CLOSING_SECONDS)
        if self.thread.is_alive():
            self.problem = f"{self.waiting.qsize()} steps wait to be written"
        self._warn()

    def _warn(self) -> None:
        if self.problem is not None and not self.warned:
            self.warned = True
            say(
                f"warning: the files for TensorBoard in {self.folder} are incomplete from here on ({self.problem});"
                " metrics.jsonl has everything"
            )

    def _write_all(self) -> None:
        """Writes until the end or the first error, whatever it is: nothing of the run depends on these files."""
        try:
            writer = SummaryWriter(str(self.folder), purge_step=self.step + 1)
            while (item := self.waiting.get()) is not None:
                step, metrics = item
                for name, value in metrics.items():
                    writer.add_scalar(name, float(value), step)
                writer.flush()
            writer.close()
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
