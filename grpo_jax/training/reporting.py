"""Keeps `report.html` of a run fresh, in a process of its own that can neither slow the run nor end it.

The process has the lowest priority while the run trains, and reads files alone. One that fails, or is not done when the
next is due, costs nothing but a warning, which is printed once.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from grpo_jax.saved.directory import REPORT

NICE = 19  # the lowest priority
WAITED = 20.0  # seconds for the last report of a run that is complete, when there is nothing left to slow
PROGRAM = "import sys, os; sys.path[:] = {paths!r}; os.nice({nice}); from grpo_jax.report.page import write_report"
_left: list[subprocess.Popen[bytes]] = []  # that were still running when their runs ended


class Reporter:
    """Starts a report of a run every `minutes` (0: never), on the one host that `writes`."""

    def __init__(self, path: Path, minutes: float, writes: bool, say: Callable[[str], None]):
        self.path, self.seconds, self.writes, self.say = path, 60 * minutes, writes, say
        self.begun, self.warned, self.finished = time.monotonic(), False, False
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: IO[bytes] | None = None

    def after_step(self) -> None:
        """Starts a report if one is due and none is being made; looks how the one before ended."""
        if not self.seconds or not self.writes:
            return
        if self.process is not None and self.process.poll() is not None:
            self._ended(self.process.returncode)
        if self.process is None and time.monotonic() - self.begun >= self.seconds:
            self._start(NICE)

    def finish(self) -> None:
        """Makes the report of a run that is complete, and waits for it, for some seconds at most."""
        if not self.seconds or not self.writes:
            return
        self._end()
        self._start(0)
        self.finished = True
        try:
            if self.process is not None:
                self._ended(self.process.wait(WAITED))
        except subprocess.TimeoutExpired:
            self._let_go()

    def leave(self) -> None:
        """Starts the report of a run that ends before its last step, and waits for nothing.

        One that is being made lacks the last steps, so it is made anew.
        """
        if self.seconds and self.writes and not self.finished:
            self._end()
            self._start(NICE)
        self._let_go()

    def _let_go(self) -> None:
        """Lets a process go on without this one."""
        if self.process is not None:
            _left.append(self.process)
            self.process = None
        if self.errors is not None:
            self.errors.close()

    def _start(self, nice: int) -> None:
        self.begun = time.monotonic()
        program = f"{PROGRAM.format(paths=sys.path, nice=nice)}; write_report({str(self.path)!r})"
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        try:
            self.errors = tempfile.TemporaryFile()
            # In a session of its own, so that Ctrl-C in the terminal does not reach it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env=os.environ | threads,
                start_new_session=True,
            )
        except OSError as error:
            self._warn(str(error))

    def _ended(self, status: int) -> None:
        """Notes that the process has ended, with a warning if it made no report."""
        self.process = None
        if self.errors is not None:
            self.errors.seek(0)
            text = self.errors.read().decode(errors="replace").strip()
            self.errors.close()
            if status:
                self._warn(text.splitlines()[-1] if text else f"its process ended with status {status}")

    def _end(self) -> None:
        """Ends a process that is still at an older report."""
        if self.process is not None:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):  # a file system that does not answer holds it
                self.process.wait(1.0)
            (self.path / f"{REPORT}.{self.process.pid}.new").unlink(missing_ok=True)  # half a page
            self.process = None
        if self.errors is not None:
            self.errors.close()

    def _warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            self.say(
                f"warning: {self.path.name}/{REPORT} is not made ({reason}). The run is not affected;"
                f" grpo-jax report {self.path} tries again."
            )
