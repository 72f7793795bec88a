"""Asks JAX for its devices in a child process, which is ended if it does not answer in time."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from grpo_jax.commands.doctor.child import MARK
from grpo_jax.redaction import redact

PROGRAM = "import sys; sys.path[:] = {paths!r}; from grpo_jax.commands.doctor.child import main; main()"
SECONDS = 60.0  # after as many JAX itself warns that a TPU takes long to start
LOGGED = re.compile(r"[EFIW]\d{4} \S+ +\d+ \S+\] ")  # what XLA writes before each of its messages
COMPLAINT = 300  # characters of what a process says before it dies


@dataclass(frozen=True)
class Answer:
    """What became of the stages: how long each took, or why it failed, and what all of them found together."""

    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()  # why JAX uses no other platform
    hung: str | None = None  # the stage in which it was when the time was over
    died: str | None = None  # the stage in which the process ended by itself
    complaint: str = ""  # how it ended

    @property
    def platform(self) -> str | None:
        """The platform that JAX chose: cpu, gpu or tpu. None if it found no devices."""
        return self.found.get("platform")


def ask_jax(seconds: float = SECONDS) -> Answer:
    """What JAX says within so many seconds."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(paths=sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
        try:
            status: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
        return read_answer(_text(said), _text(errors), status)


def read_answer(said: str, errors: str, status: int | None) -> Answer:
    """The answer in what a child has printed. `status` is None if its time was over."""
    stage, done = "start Python", False
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    reasons: list[str] = []
    for line in said.splitlines():
        if not line.startswith(MARK):
            continue
        told = json.loads(line.removeprefix(MARK))
        stage = told.get("stage", stage)
        found |= told.get("result", {})
        seconds |= {stage: told["seconds"]} if "seconds" in told else {}
        failed |= {stage: redact(told["error"])} if "error" in told else {}
        reasons += [redact(reason) for reason in told.get("reasons", ())]
        done = done or "done" in told or (stage == "import jax" and "error" in told)
    return Answer(
        seconds,
        failed,
        found,
        tuple(reasons),
        hung=stage if status is None and not done else None,
        died=stage if status is not None and not done else None,
        complaint=redact(_complaint(errors, status)),
    )


def _complaint(errors: str, status: int | None) -> str:
    """How a process ended: by which signal or with which status, and the last line that it printed."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = LOGGED.sub("", lines[-1])[:COMPLAINT] if lines else ""
    if status is None:
        return last
    how = f"with status {status}" if status >= 0 else f"by {_signal(-status)}"
    return f"{how}: {last}" if last else how


def _signal(number: int) -> str:
    names = {signal.value: signal.name for signal in signal.Signals}
    return names.get(number, f"signal {number}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it has started, and waits for it only as long as a driver may take to let go."""
    if child.poll() is not None:
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that waits for a device in the kernel cannot be ended
        child.wait(5.0)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
