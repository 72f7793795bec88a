"""Ends a run on all hosts when one raises an error, any gets a signal, or one stops sending heartbeats.

After an error or a missing heartbeat, the other hosts print which host it was, and why. Without this they would wait
inside a collective operation until JAX aborts them, with a number and a stack trace.
"""

import atexit
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import jax
from jax.experimental import multihost_utils

from grpo_jax.hosts import store
from grpo_jax.hosts.codes import FAILED, LOST, RESUMABLE
from grpo_jax.hosts.signals import INTERRUPTS, STOP, end_at_second, give_back, say, take_over
from grpo_jax.hosts.telling import tell

__all__ = ["LOST", "RESUMABLE", "StopSignal", "end_all_hosts_on_error", "start_heartbeats"]

HEARTBEAT_SECONDS = 1  # between two heartbeats
SILENCE_SECONDS = 30  # without a heartbeat, after which a host counts as lost
TEXT_LENGTH = 2000  # characters of an error that other hosts are shown
# How an error of a collective begins: Gloo, between CPUs, gives a ValueError rather than JAX's own error.
STATUS = r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION)\b"

_ending = threading.Event()  # this process is about to end, and has said why


@contextmanager
def end_all_hosts_on_error(*mistakes: type[Exception], otherwise: int = FAILED) -> Generator[None, None, None]:
    """Ends the run on all hosts if the code inside raises on one of them. The others print which host, and its error.

    Errors of the types of `mistakes` have exit code 2, errors without a code of their own that of `otherwise`.
    """
    try:
        yield
    except BaseException as error:
        if store.host_count() > 1:
            _end_with(error, mistakes, otherwise)
        raise


def _end_with(error: BaseException, mistakes: tuple[type[Exception], ...], otherwise: int) -> None:
    """Stores the error for the other hosts and ends this process at once: JAX's own exit would wait for the others."""
    code, text = tell(error, mistakes, otherwise)
    if of_collective(error):
        time.sleep(SILENCE_SECONDS + 4 * HEARTBEAT_SECONDS)  # if a lost host was the cause, its name is printed first
    _ending.set()
    with suppress(jax.errors.JaxRuntimeError, ConnectionError):  # the store may be gone
        store.put("ended", f"{code} {' '.join(text.split())[:TEXT_LENGTH]}")
    _exit(code)


def wait_for_the_host_that_failed() -> None:
    """Waits while the host that failed says so: then the thread that sends heartbeats ends this process."""
    time.sleep(10 * HEARTBEAT_SECONDS)


def of_collective(error: BaseException) -> bool:
    """Whether this may be what a host gets that computes together with one that is gone."""
    text = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in text
    return isinstance(error, ValueError) and (re.match(STATUS, text) is not None or "Gloo" in text)


def _exit(code: int) -> None:
    if store.is_first():
        time.sleep(4 * HEARTBEAT_SECONDS)  # the store ends with this process, and the others still have to read it
    with suppress(OSError, ValueError):  # nobody may be reading any more
        sys.stdout.flush()
    os._exit(code)


class StopSignal:
    """Catches SIGTERM and SIGHUP, so that a run can save and stop after a step. Sent to one host, they stop all.

    On a single host a second one ends the process at once, and Ctrl-C leaves the step that it falls into. On several
    hosts JAX catches SIGTERM and agrees with the other hosts on the step; nothing is printed before. Ctrl-C does the
    same there once `catch_interrupts` has been called, and a second Ctrl-C ends all hosts at once.
    """

    def __init__(self) -> None:
        self.received = False
        self.several = store.host_count() > 1
        self.checks = 0
        self.taken: list[int] = []
        self._listen(signal.SIGHUP)
        self.owns_interrupts = INTERRUPTS.listen()
        self.end_watch = nullcontext
        STOP.listening, STOP.asked = True, None
        if not self.several:
            self._listen(signal.SIGTERM)
            self.end_watch = end_at_second((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

    def catch_interrupts(self) -> None:
        """From now on a Ctrl-C tears no step. To be called before the first one: there is nothing to save before."""
        if self.several:
            self._listen(signal.SIGINT)
        else:
            INTERRUPTS.hold()

    def interruptible(self) -> AbstractContextManager[None]:
        """A block that Ctrl-C leaves by a KeyboardInterrupt, because the state is whole there; on a single host."""
        return nullcontext() if self.several else INTERRUPTS.allowed()

    def request(self) -> None:
        """Does what a SIGTERM to this host would do."""
        if self.several and not self.received:
            signal.raise_signal(signal.SIGTERM)
        self.received = True

    def close(self) -> None:
        """Lets the signals do what they did before."""
        self.end_watch()
        self.end_watch = nullcontext
        STOP.listening, STOP.asked = False, None
        for number in self.taken:
            give_back(number)
        self.taken = []
        if self.owns_interrupts:
            INTERRUPTS.close()
        else:
            INTERRUPTS.release()

    def _listen(self, number: int) -> None:
        if take_over(number, self._catch):
            self.taken.append(number)

    def _catch(self, number: int, frame: object) -> None:
        self.received = True
        STOP.ask()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if self.several:
            text = "all hosts soon save and stop, after the same step; Ctrl-C again ends them at once"
            say(text)
            signal.raise_signal(signal.SIGTERM)  # JAX catches it, and tells the other hosts

    def after_step(self) -> bool:
        """Whether to stop after this step. All hosts get the same answer, so each has to ask after every step."""
        self.checks += 1  # JAX counts the calls from 1, whatever step a run is resumed from
        return multihost_utils.reached_preemption_sync_point(self.checks) if self.several else self.received


def start_heartbeats(names: list[str]) -> None:
    """Starts a thread that sends heartbeats, and that ends this process when another host ends or sends no more.

    `names` are those of all hosts, by host index; the message says which one it was.
    """
    last_heard = {index: ("", time.monotonic()) for index in range(len(names))}

    def exchange() -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            try:
                store.put("heartbeat", f"{time.monotonic()}")
                ended, heartbeats = store.read("ended"), store.read("heartbeat")
                if store.stop_requested():  # SIGTERM to any host: only JAX catches it
                    STOP.ask()
            except (jax.errors.JaxRuntimeError, ConnectionError):  # the store does not answer, or JAX has shut down
                if _ending.is_set():
                    return
                ended, heartbeats = {}, {}  # no heartbeat of any host, nor of the first, which has the store
            for index, text in (ended | _lost_hosts(last_heard, heartbeats)).items():
                _end_because_of(f"host {index} ({names[index]})", *text.split(" ", 1))

    thread = threading.Thread(target=exchange, daemon=True, name="heartbeats")
    thread.start()
    atexit.register(_leave, thread)


def _leave(thread: threading.Thread) -> None:
    """Leaves the other hosts at the end of a run. Heartbeats go on while JAX waits for hosts that are still writing;
    the thread ends before Python does, because Python would end it inside JAX, which aborts the process.
    """
    _ending.set()
    try:
        jax.distributed.shutdown()
    finally:
        thread.join()


def _lost_hosts(last_heard: dict[int, tuple[str, float]], heartbeats: Mapping[int, str]) -> dict[int, str]:
    """An exit status and a message for each host that has been silent too long.

    `last_heard` has each host's last heartbeat, and the time when it came; it is updated here.
    """
    now = time.monotonic()
    last_heard |= {index: (beat, now) for index, beat in heartbeats.items() if beat != last_heard[index][0]}
    text = (
        f"{LOST} no heartbeat has come from it for {SILENCE_SECONDS} seconds: it is gone, or its Python was blocked,"
        " such as by a regular expression in a reward. Start all hosts again with --resume."
    )
    return {index: text for index, (_, since) in last_heard.items() if now - since > SILENCE_SECONDS}


def _end_because_of(name: str, code: str, text: str) -> None:
    if not _ending.is_set():
        say(f"error: {name} has ended, so this one ends, too: {text}")
        _exit(int(code))
