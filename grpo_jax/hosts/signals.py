"""What signals do while a run loads and trains, and code of users that may not end the process. Imports no JAX."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from grpo_jax.redaction import redact

_before: dict[int, Any] = {}  # what each signal did before it was taken over
_fork = threading.local()  # what `_block` has blocked in this thread


def take_over(number: int, handler: Callable[[int, Any], None]) -> bool:
    """Makes a signal call this handler until `give_back`; whether it does. One that is ignored stays so, as under
    nohup, and no thread but the main one may decide.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) == signal.SIG_IGN:
        return False
    _before.setdefault(number, signal.getsignal(number))
    signal.signal(number, handler)
    return True


def give_back(number: int) -> None:
    """Lets a signal do what it did before it was taken over."""
    if number in _before:
        before = _before.pop(number)
        signal.signal(number, signal.SIG_DFL if before is None else before)  # None: it was not set by Python


def _block() -> None:
    """Keeps signals back while a child is forked, until it is no longer the run that they speak to."""
    _fork.blocked = set(_before)
    signal.pthread_sigmask(signal.SIG_BLOCK, _fork.blocked)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _fork.blocked)


def _forget() -> None:
    """In a forked child, such as one that a reward starts: signals end it, and say nothing to the run."""
    if _before:
        signal.set_wakeup_fd(-1)
        for number in list(_before):
            give_back(number)
    _unblock()


os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)


class Interrupts:
    """What Ctrl-C does: it raises KeyboardInterrupt, or is noted where a step must not be torn; a second one ends the
    process at once.

    Python drops an exception that a handler raises inside a destructor or a callback of the garbage collector. So each
    Ctrl-C is noted as well, and `check` raises it again.
    """

    def __init__(self) -> None:
        self.noted, self.raises, self.listening = False, True, False

    def listen(self) -> bool:
        """Takes over Ctrl-C from Python, but from nobody else; whether it has."""
        if self.listening or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return False
        self.noted, self.raises = False, True
        self.listening = take_over(signal.SIGINT, self._catch)
        return self.listening

    def close(self) -> None:
        """Lets Ctrl-C do what it did before."""
        if self.listening:
            give_back(signal.SIGINT)
        self.noted, self.raises, self.listening = False, True, False

    def check(self) -> None:
        """Raises KeyboardInterrupt if a Ctrl-C has ended nothing yet."""
        if self.noted:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From now on Ctrl-C is only noted, but for blocks in which it is `allowed`."""
        self.raises = False

    def release(self) -> None:
        """Ends what `hold` began."""
        self.raises = True

    @contextmanager
    def allowed(self) -> Generator[None]:
        """Ctrl-C raises inside this block, and at its start if it came before."""
        self.check()
        self.raises = True
        try:
            yield
        finally:
            self.raises = False

    def _catch(self, number: int, frame: object) -> None:
        self.noted = True
        signal.signal(number, signal.SIG_DFL)  # the second ends the process
        if self.raises:
            raise KeyboardInterrupt
        say("stopping when this step is whole and saved; Ctrl-C again ends at once")


INTERRUPTS = Interrupts()  # one for the process, as there is one Ctrl-C


def end_at_second(numbers: Collection[int]) -> Callable[[], None]:
    """Ends the process at the second signal of these numbers, also while the main thread is inside a long call of JAX,
    where Python runs no handler. Returns the function that ends the watch.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    other = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        seen: set[int] = set()
        while arrived := os.read(reader, 16):
            for number in arrived:
                if number in seen:
                    os._exit(128 + number)
                seen |= {number} & set(numbers)
        os.close(reader)

    def close() -> None:
        signal.set_wakeup_fd(other)
        os.close(writer)

    threading.Thread(target=watch, daemon=True, name="signals").start()
    return close


class Signalled(BaseException):
    """A signal that ends the process has come, and blocks are left before it does."""


@contextmanager
def left_by_signals(numbers: Collection[int] = (signal.SIGTERM, signal.SIGHUP)) -> Generator[None]:
    """A block that such a signal leaves, so that what it has begun is put away; then the signal ends the process."""

    def leave(number: int, frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # the second ends the process at once
        raise Signalled(number)

    taken = [number for number in numbers if take_over(number, leave)]
    try:
        yield
    except Signalled as signalled:
        signal.raise_signal(signalled.args[0])
        raise
    finally:
        for number in taken:
            give_back(number)


def say(text: str) -> None:
    """Prints to standard error, without secrets. It may be closed by now, or in use if a handler of a signal prints."""
    with suppress(OSError, ValueError, RuntimeError):
        print(redact(text), file=sys.stderr, flush=True)


class StopRequested(BaseException):
    """A run was told to stop, and is inside of a reward that does not return. No reward catches it by accident."""


class Stop:
    """Whether a signal has told this process to stop, for code that cannot wait for the end of the step."""

    def __init__(self) -> None:
        self.listening = False  # whether somebody would end the run
        self.asked: float | None = None  # when, by time.monotonic

    def ask(self) -> None:
        """Notes that the run was told to stop, if it listens. Scoring looks at it: a reward may never return."""
        if self.listening and self.asked is None:
            self.asked = time.monotonic()

    def passed(self) -> float:
        """Seconds since the run was told to stop; 0 if it was not."""
        return 0.0 if self.asked is None else time.monotonic() - self.asked


STOP = Stop()  # one for the process, as there is one SIGTERM
REWARD_THREADS: set[int] = set()  # that run code of the user beside the main one


class CalledExit(Exception):
    """Code of the user has called os._exit, which would end the run as if it were complete."""


@contextmanager
def exits_refused() -> Generator[None]:
    """Inside, os._exit is an error in this thread and in those of rewards. Others, and forked children, may call it."""
    leave, process, thread = os._exit, os.getpid(), threading.get_ident()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process or threading.get_ident() not in {thread, *REWARD_THREADS}:
            leave(status)
        raise CalledExit(f"it called os._exit({status}), which would end the run.")

    vars(os)["_exit"] = refuse
    try:
        yield
    finally:
        vars(os)["_exit"] = leave
