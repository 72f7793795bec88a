"""A library in a process of its own: a hang, a signal or an exit handler of it is not the run's.

The process reads lines of JSON and answers each one. What the library prints goes to a file in the run directory. If
the run ends first, the process sends what it still has, by itself. A second pipe, of one byte, says that the run is
complete: the process may be busy with a step then, and learns it afterwards.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from grpo_jax.hosts.signals import say
from grpo_jax.training.trackers.tracker import TrackedRun, file_name

FOLDER = "trackers"  # in a run directory: the id and the last step of each tracker, and what its library prints
PROGRAM = "import sys; sys.path[:] = {paths!r}; from grpo_jax.training.trackers.serving import serve; serve({outcome})"


class Child:
    """A process that logs metrics with a library; one that has ended is started again at the next step."""

    def __init__(self, label: str, library: str, run: TrackedRun, options: Mapping[str, Any]):
        self.label, self.log = label, run.path / FOLDER / f"{file_name(label)}.log"
        self.completed = False
        self.first = {"library": library, "run": asdict(run) | {"path": str(run.path)}, "options": options}
        self.process = self._started()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.process.poll() is not None:
            self.fail()  # which closes what is left of it
            self.process = self._started()
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._ask({"step": step, "metrics": finite})

    def close(self) -> None:
        """Tells the process that the run is complete, and waits until it has sent everything."""
        self.complete()
        self.fail()

    def complete(self) -> None:
        """Tells the process that the run is complete, also while it is busy. Does not wait, from any thread."""
        self.completed = True
        try:
            self.outcome.write(b"1")
        except (OSError, ValueError):  # the process has ended, or the pipe is closed
            return

    def fail(self) -> None:
        """Closes the pipes, so that the process sends what it has of a run that failed, and waits for its end."""
        for pipe in (self.process.stdin, self.process.stdout, self.outcome):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not yet written to a process that has ended
                    continue
        self.process.wait()

    def _started(self) -> subprocess.Popen[str]:
        """A process in which the library has opened the run."""
        self.log.parent.mkdir(exist_ok=True)
        read, write = os.pipe()
        self.outcome = os.fdopen(write, "wb", buffering=0)
        with self.log.open("a") as log, os.fdopen(read):
            # In a session of its own, so that Ctrl-C in the terminal does not reach it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(paths=sys.path, outcome=read)],
                pass_fds=(read,),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        if self.completed:
            self.complete()
        try:
            place = self._ask(self.first)
        except RuntimeError:
            self.fail()
            raise
        if place:
            say(f"tracker {self.label}: {place}")
        return self.process

    def _ask(self, message: Mapping[str, Any]) -> str:
        """What the process answers to a message; an error of the library is one here."""
        sent, answers = self.process.stdin, self.process.stdout
        if sent is None or answers is None:
            raise RuntimeError("its process has no pipes")
        try:
            sent.write(json.dumps(message) + "\n")
            sent.flush()
            line = answers.readline()
        except OSError:  # it has ended
            line = ""
        if not line:
            self.fail()
            raise RuntimeError(f"its process has ended; see {self.log}")
        answer = json.loads(line)
        if answer["error"]:
            raise RuntimeError(f"{answer['error']}; see {self.log}")
        return str(answer["place"])
