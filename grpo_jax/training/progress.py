"""What training prints: the phase it is in, one line for each step, and an estimate of the time that is left."""

import logging
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import jax

COMPILES = {"sampling", "learning", "evaluating"}
COMPILED = "/jax/core/compile/backend_compile_duration"


def clock_text(seconds: float) -> str:
    """Minutes and seconds, with hours once there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Announcements(logging.Handler):
    """Prints the log messages of the library, such as that it compiles a program."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.INFO)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the message of a log record."""
        self.say(record.getMessage())


class Progress:
    """Times the phases of every step. A terminal shows the current phase; a log gets finished lines only."""

    def __init__(self, steps: int, done: int, speaks: bool = True):
        self.steps, self.done, self.speaks = steps, done, speaks
        self.times: dict[str, float] = {}
        self.durations: list[float] = []
        self.seen: set[str] = set()
        self.compiled = 0.0
        self.begun = time.monotonic()
        self.live = speaks and sys.stdout.isatty()
        self.closed = False  # whether nobody reads what is printed any more
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        logger = logging.getLogger("grpo_jax")
        logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, Announcements)]
        logger.addHandler(Announcements(self.say))
        logger.setLevel(logging.INFO)
        logger.propagate = False  # or a library that configures the root logger makes every line appear twice

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Times the block, and shows that it runs. Blocks of the same name in one step add up."""
        new = name not in self.seen
        self.seen.add(name)
        self._show(
            f"{name} ..."
            + (
                " (compiling first: seconds for a small model, minutes for a large one)"
                if new and name in COMPILES
                else ""
            ),
            keep=new,
        )
        begun = time.monotonic()
        yield
        self.times[name] = self.times.get(name, 0.0) + time.monotonic() - begun
        self._show("")

    def finish_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Prints the line of a step and gives its times in seconds; `time/compile` is part of the phases."""
        self.done += 1
        times = {f"time/{name}": seconds for name, seconds in self.times.items()}
        times |= {"step_time": sum(self.times.values()), "time/compile": self.compiled}
        self.durations.append(times["step_time"] - self.compiled)
        phases = ", ".join(f"{name} {self.times[name]:.1f}" for name in self.times)
        compiled = f", of it compiling {self.compiled:.1f}" if self.compiled > 0.1 else ""
        self.say(
            f"step {self.done:>{len(str(self.steps))}}/{self.steps}"
            f"  reward {metrics['reward']:.3f}  length {metrics['completions/mean_length']:.1f}"
            f"  entropy {metrics['entropy']:.2f}  grad {metrics['grad_norm']:.2f}"
            f"  {times['step_time']:.1f} s ({phases}{compiled})  {self._left()}"
        )
        self.times, self.compiled = {}, 0.0
        return times

    def finish(self, name: str, text: str) -> None:
        """Prints the result of a phase between two steps, and how long it took."""
        self.say(f"{text}  {self.times.pop(name):.1f} s")
        self.compiled = 0.0

    def elapsed(self) -> str:
        """The time since the start, as text."""
        return clock_text(time.monotonic() - self.begun)

    def say(self, text: str) -> None:
        """Prints a line, on the one host that speaks."""
        self._show("")
        if self.speaks:
            self._print(text + "\n")

    def _print(self, text: str) -> None:
        """Prints, unless the terminal or the pipe is closed; standard output is nothing from then on."""
        if self.closed:
            return
        try:
            print(text, end="", flush=True)
        except OSError:
            self.closed = True
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())  # or Python fails at its end, when it writes what is left
            os.close(nothing)

    def _left(self) -> str:
        recent = sorted(self.durations[-9:])
        return f"left {clock_text((self.steps - self.done) * recent[len(recent) // 2])}"

    def _show(self, text: str, keep: bool = False) -> None:
        if self.live:
            self._print(f"\r\033[K{text}")
        elif keep and text and self.speaks:
            self._print(text + "\n")

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self.compiled += duration_secs
