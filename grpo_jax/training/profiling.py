"""Records a trace of some steps with JAX's profiler, in `profile/` of the run directory (docs/tracking.md)."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import jax

from grpo_jax.hosts import store

FOLDER = "profile"


class Profile:
    """Traces the steps from the first to the last of `steps`; none if it is None. Each of several hosts has its own.

    A trace that cannot be made or written is a warning: the run goes on.
    """

    def __init__(self, path: Path, steps: tuple[int, int] | None, say: Callable[[str], None]):
        self.steps, self.say, self.running = steps, say, False
        self.folder = path / FOLDER
        if store.host_count() > 1:
            self.folder = self.folder / f"host_{store.host_index()}"

    @contextmanager
    def step(self, number: int) -> Generator[None]:
        """The block is step `number`: it is traced if it is one of those to trace."""
        first, last = (0, 0) if self.steps is None else self.steps
        if not first <= number <= last:
            yield
            return
        if not self.running:
            self._start()
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            yield
        if number == last:
            self.close()

    def close(self) -> None:
        """Writes the trace that is being recorded, if there is one."""
        if not self.running:
            return
        self.running = False
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            self.say(f"warning: the trace of the profiler could not be written to {self.folder} ({error})")
        else:
            self.say(f"the profiler's trace is in {self.folder}: docs/tracking.md says how to open it")

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of a Python function would be an event
        try:
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True, profiler_options=options)
            self.running = True
        except Exception as error:
            self.steps = None
            self.say(f"warning: the profiler cannot trace these steps ({error})")
