"""A child process that answers questions one after the other, and is replaced when it is late.

What may hang or take all memory is asked of a child, because it can be ended whatever it does: the training process
cannot interrupt native code of its own. Question and answer are JSON, a line each.
"""

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO, Any, cast

STARTUP = 120.0  # seconds until the child has imported what it needs


class Child:
    """The process that runs `command`. It is started by the first question, and started again after it was ended."""

    def __init__(self, command: Sequence[str]):
        self.command, self.process, self.lock = tuple(command), None, threading.Lock()

    def ask(self, question: Any, seconds: float) -> Any:
        """The answer, or None if there was none after `seconds`, or the process ended."""
        with self.lock:
            answer = None
            try:
                process = self._running()
                if process is not None:
                    answer = _exchange(process, question, seconds)
            finally:  # also when a deadline or Ctrl-C interrupts: a late answer is not that to the next question
                if answer is None:
                    self._end()
            return answer

    def _running(self) -> subprocess.Popen[bytes] | None:
        """The process, which says `true` once it is ready; None if it ends without that."""
        if self.process is None:
            # In a session of its own, so that Ctrl-C in the terminal does not reach it.
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            if _line(self.process, STARTUP) is not True:
                return None
        return self.process

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _exchange(process: subprocess.Popen[bytes], question: Any, seconds: float) -> Any:
    stdin = cast(IO[bytes], process.stdin)
    try:
        stdin.write(json.dumps(question).encode() + b"\n")
        stdin.flush()
    except BrokenPipeError:
        return None
    return _line(process, seconds)


def _line(process: subprocess.Popen[bytes], seconds: float) -> Any:
    """The next line that the process writes; None if it writes none in time, or ends."""
    stdout = cast(IO[bytes], process.stdout).fileno()
    end, read = time.monotonic() + seconds, b""
    while not read.endswith(b"\n"):
        piece = os.read(stdout, 65536) if readable(stdout, end - time.monotonic()) else b""
        if not piece:
            return None
        read += piece
    return json.loads(read)


def readable(file: int, seconds: float) -> bool:
    """Whether a pipe has something to read, or has ended, within some time."""
    poll = select.poll()  # select.select refuses numbers from 1024, which a process with many files has
    poll.register(file, select.POLLIN)
    return bool(poll.poll(max(seconds, 0.0) * 1000))
