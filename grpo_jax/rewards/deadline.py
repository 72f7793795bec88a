"""A deadline for scoring, and a word about what it is at: no reward may keep a run waiting for ever.

Python cannot end a thread, but a signal handler can raise an exception in the main thread, where rewards run. Two
things send the signal: a thread, for a reward that waits, and a timer of CPU time, for one that computes without giving
up the interpreter (a regular expression that backtracks), under which no other thread runs. Both use SIGVTALRM, because
math-verify has SIGALRM. If the exception does not end the reward either, faulthandler ends the process.

In the same way scoring is left when the run was told to stop (SIGTERM) and a reward does not return soon.
"""

import faulthandler
import logging
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from grpo_jax.hosts.signals import STOP, StopRequested
from grpo_jax.rewards.failures import TimeUpError

SLOW = 60.0  # seconds after which, and after each as many more, a line says what scoring is at
GRACE = 30.0  # seconds that a reward has to end once it was told to; then the process ends with status 1
TICK = 1.0  # seconds between signals after the first
PATIENCE = 3.0  # seconds that scoring may go on after the run was told to stop
STDERR = 2  # the file descriptor, which stays what it is when sys.stderr is replaced


class Watch:
    """What scoring is `at`, and the clock that it runs against. Only in the main thread can it be interrupted."""

    def __init__(self, seconds: float | None):
        self.seconds, self.at, self.over = seconds, "the rewards", False
        self.begun = self.said = time.monotonic()
        self.done, self.lock = threading.Event(), threading.Lock()
        self.main = threading.main_thread().ident if threading.current_thread() is threading.main_thread() else None
        self.first = SLOW if seconds is None else min(SLOW, seconds)
        self.interrupts = self.main is not None and (seconds is not None or STOP.listening)

    @property
    def stopped(self) -> bool:
        """Whether the run was told to stop, and scoring has gone on for too long since."""
        return STOP.passed() > PATIENCE

    @property
    def passed(self) -> float:
        """Seconds since scoring began."""
        return time.monotonic() - self.begun

    def start(self) -> None:
        """Sets the clock. What faulthandler and the signal did before comes back only partly: see `stop`."""
        threading.Thread(target=self._wait, name="watch over rewards", daemon=True).start()
        if self.seconds is not None:
            faulthandler.dump_traceback_later(self.seconds + GRACE, exit=True, file=STDERR)
        if self.interrupts:
            self.handler = signal.signal(signal.SIGVTALRM, self._look)
            signal.setitimer(signal.ITIMER_VIRTUAL, min(self.first, TICK), TICK)

    def stop(self) -> None:
        """Stops the clock. A signal that is on its way would end the process by default, so it is ignored then."""
        with self.lock:
            self.done.set()
        if self.interrupts:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            known = callable(self.handler)
            signal.signal(signal.SIGVTALRM, self.handler if known else signal.SIG_IGN)
        if self.seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def _wait(self) -> None:
        """Runs in a thread, which gets on while a reward waits for something."""
        due = self.begun + self.first
        while not self.done.wait(max(min(due - time.monotonic(), TICK), 0)):
            if time.monotonic() < due and not self.stopped:
                continue
            with self.lock:
                if self.done.is_set():
                    return
                if self.main is not None and self.interrupts:
                    signal.pthread_kill(self.main, signal.SIGVTALRM)
                else:
                    self._speak()
            left = SLOW if self.seconds is None else min(SLOW, max(self.seconds - self.passed, TICK))
            due = time.monotonic() + (TICK if self.stopped else left)

    def _look(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread at each signal: says what scoring is at, or ends it."""
        if self.done.is_set():
            return
        self._speak()
        if self.stopped:
            raise StopRequested
        if self.seconds is not None and self.passed >= self.seconds:
            if not self.over:
                faulthandler.dump_traceback(file=STDERR, all_threads=True)
            self.over = True
            raise TimeUpError

    def _speak(self) -> None:
        if time.monotonic() - self.said >= SLOW:
            self.said = time.monotonic()
            logging.getLogger("grpo_jax").warning("scoring has taken %.0f s, and is at %s", self.passed, self.at)


@contextmanager
def interpreter_watched(seconds: float | None) -> Generator[None]:
    """Ends the process when no thread but one has run for `seconds`, and `GRACE` more: while rewards are called beside
    sampling, one of them may compute without giving up the interpreter, and nothing else would end that.
    """
    done, lock = threading.Event(), threading.Lock()

    def put_off(limit: float) -> None:
        while not done.is_set():
            with lock:
                if not done.is_set():
                    faulthandler.dump_traceback_later(limit, exit=True, file=STDERR)
            done.wait(TICK)

    if seconds is None:
        yield
        return
    arguments = (seconds + GRACE,)
    threading.Thread(target=put_off, args=arguments, name="watch over early rewards", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            done.set()
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def watched(seconds: float | None) -> Generator[Watch]:
    """Says after a minute what scoring is at, and ends it with a TimeoutError after `seconds`; None is no limit.

    The error is raised in the main thread. In others, or if a reward goes on all the same, the process ends `GRACE`
    seconds later. All stacks are written to stderr then.
    """
    watch = Watch(seconds)
    watch.start()
    try:
        try:
            yield watch
        finally:
            watch.stop()
    except BaseException as error:
        watch.stop()  # once more, as the signal may have come just while it was stopped
        if not watch.over or not isinstance(error, Exception | TimeUpError):
            raise
        raise TimeoutError(
            f"Scoring took longer than {seconds} s, and was at {watch.at}; the stack of that moment is on stderr."
            " A reward must come to an end: give it a limit of its own, or raise algorithm.reward_seconds."
        ) from error
