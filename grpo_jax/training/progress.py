"""What training prints: the phase it is in, one line for each step, and an estimate of the time that is left."""

import os
import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from statistics import median

import jax

from grpo_jax.devices.programs import forget_if_many
from grpo_jax.hosts.telling import announce, is_quiet, redraws
from grpo_jax.training.watchdog import watched

COMPILES = {"sampling", "learning", "evaluating"}
COMPILED = "/jax/core/compile/backend_compile_duration"
SLOWER = 10  # times the longest phase of its name so far, which a phase may take whatever the watchdog's limit


def clock_text(seconds: float) -> str:
    """Minutes and seconds, with hours once there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class CompileClock:
    """The seconds that this process has spent compiling since the clock was made."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self.seconds += duration_secs


@cache
def compile_clock() -> CompileClock:
    """The clock that all runs of this process share: JAX keeps a listener, and all that it holds, for ever."""
    return CompileClock()


class Progress:
    """Times the phases of every step. A terminal shows the current phase; a log gets finished lines only. Where the
    logger `grpo_jax` has the level WARNING, neither is shown, and only what is `said` is printed.

    A phase that takes longer than `watchdog_minutes`, and than `SLOWER` times the longest before it, ends the process
    (watchdog.py); 0 is no limit.
    """

    def __init__(self, steps: int, done: int, speaks: bool = True, *, watchdog_minutes: float):
        self.steps, self.done, self.speaks, self.watchdog_minutes = steps, done, speaks, watchdog_minutes
        self.times: dict[str, float] = {}
        self.longest: dict[str, float] = {}
        self.durations: deque[float] = deque(maxlen=9)
        self.clock = compile_clock()
        self.compiled_before = self.clock.seconds
        self.begun = time.monotonic()
        announce(self.say)
        self.shows = speaks and not is_quiet()
        self.live = self.shows and redraws(sys.stdout.isatty())
        self.closed = False  # whether nobody reads what is printed any more

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Times the block, and shows that it runs. Blocks of the same name in one step add up."""
        new = name not in self.longest
        self._show(
            f"{name} ..."
            + (
                " (compiling first: seconds for a small model, minutes for a large one)"
                if new and name in COMPILES
                else ""
            ),
            keep=new,
        )
        begun, longest = time.monotonic(), self.longest.get(name, 0.0)
        with watched(name, self.watchdog_minutes and max(60 * self.watchdog_minutes, SLOWER * longest)):
            with jax.profiler.TraceAnnotation(name):  # its name in a trace; costs nothing without one
                yield
        seconds = time.monotonic() - begun
        self.longest[name] = max(longest, seconds)
        self.times[name] = self.times.get(name, 0.0) + seconds
        self._show("")

    def finish_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Prints the line of a step and gives its times in seconds; `time/compile` is part of the phases.

        `time/over_median` is the time of the step, compiling aside, over the median of up to nine steps before.
        """
        self.done += 1
        compiling = self.clock.seconds - self.compiled_before
        times = {f"time/{name}": seconds for name, seconds in self.times.items()}
        times |= {"step_time": sum(self.times.values()), "time/compile": compiling}
        duration = times["step_time"] - compiling
        if self.durations:
            times["time/over_median"] = duration / max(median(self.durations), 1e-9)
        self.durations.append(duration)
        phases = ", ".join(f"{name} {self.times[name]:.1f}" for name in self.times)
        compiled = f", of it compiling {compiling:.1f}" if compiling > 0.1 else ""
        named = next(name for name in ("reward", "loss") if name in metrics)  # given answers have no reward
        self.note(
            f"step {self.done:>{len(str(self.steps))}}/{self.steps}"
            f"  {named} {metrics[named]:.3f}  length {metrics['completions/mean_length']:.1f}"
            f"  entropy {metrics['entropy']:.2f}  grad {metrics['grad_norm']:.2f}"
            f"  {times['step_time']:.1f} s ({phases}{compiled})  {self._left()}"
        )
        if compiling and forget_if_many():
            self.note("half of the memory maps of this process are used: compiled programs are forgotten")
        self.times, self.compiled_before = {}, self.clock.seconds
        return times

    def finish(self, name: str, text: str) -> None:
        """Prints the result of a phase between two steps, and how long it took."""
        self.note(f"{text}  {self.times.pop(name):.1f} s")
        self.compiled_before = self.clock.seconds

    def elapsed(self) -> str:
        """The time since the start, as text."""
        return clock_text(time.monotonic() - self.begun)

    def say(self, text: str) -> None:
        """Prints a line, on the one host that speaks."""
        self._show("")
        if self.speaks:
            self._print(text + "\n")

    def note(self, text: str) -> None:
        """Prints a line about the progress, on the one host that speaks, unless it is to be quiet."""
        if self.shows:
            self.say(text)

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
        recent = sorted(self.durations)
        return f"left {clock_text((self.steps - self.done) * recent[len(recent) // 2])}"

    def _show(self, text: str, keep: bool = False) -> None:
        if self.live:
            self._print(f"\r\033[K{text}")
        elif keep and text and self.shows:
            self._print(text + "\n")
