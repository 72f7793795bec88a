"""Ends a run on all hosts when one raises an error, any gets a signal, or one stops sending heartbeats.

After an error or a missing heartbeat, the other hosts print which host it was, and why. Without this they would wait
inside a collective operation until JAX aborts them, with a number and a stack trace.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
from jax.experimental import multihost_utils

from grpo_jax.hosts import store
from grpo_jax.redaction import print_redacted, redact

RESUMABLE = 75  # exit status of a run that was told to stop, and has saved: --resume goes on (EX_TEMPFAIL)
LOST = 76  # exit status where another host is missing: --resume goes on from the last checkpoint, if there is one
HEARTBEAT_SECONDS = 1  # between two heartbeats
SILENCE_SECONDS = 30  # without a heartbeat, after which a host counts as lost
TEXT_LENGTH = 2000  # characters of an error that other hosts are shown

_ending = threading.Event()  # this process is about to end, and has said why


@contextmanager
def end_all_hosts_on_error(*one_line: type[Exception]) -> Generator[None, None, None]:
    """Ends the run on all hosts if the code inside raises on one of them. The others print which host, and its error.

    Errors of the `one_line` types are printed as one line, with exit status 2, as the command line does; other errors
    are printed with their traceback.
    """
    try:
        yield
    except BaseException as error:
        if store.host_count() > 1:
            _end_with(error, one_line)
        raise


def _end_with(error: BaseException, one_line: tuple[type[Exception], ...]) -> None:
    """Stores the error for the other hosts and ends this process at once: JAX's own exit would wait for the others."""
    if isinstance(error, one_line):
        code, text = 2, redact(str(error))
        print(f"error: {text}", file=sys.stderr, flush=True)
    elif isinstance(error, KeyboardInterrupt):
        code, text = 130, "it was interrupted"
        print("\ninterrupted; all other hosts end, too", file=sys.stderr, flush=True)
    else:
        code, text = 1, redact(f"{type(error).__name__}: {error}")
        print_redacted(type(error), error, error.__traceback__)
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
        time.sleep(SILENCE_SECONDS + 4 * HEARTBEAT_SECONDS)  # if a lost host was the cause, its name is printed first
    _ending.set()
    with suppress(jax.errors.JaxRuntimeError, ConnectionError):  # the store may be gone
        store.put("ended", f"{code} {' '.join(text.split())[:TEXT_LENGTH]}")
    _exit(code)


def _exit(code: int) -> None:
    if store.is_first():
        time.sleep(4 * HEARTBEAT_SECONDS)  # the store ends with this process, and the others still have to read it
    sys.stdout.flush()
    os._exit(code)


class StopSignal:
    """Catches SIGTERM, so that a run can save and stop after a step. Sent to one host, it stops all of them.

    On a single host a second SIGTERM ends the process at once. On several hosts JAX catches SIGTERM and agrees with
    the other hosts on the step; nothing is printed before. Ctrl-C does the same there once `catch_interrupts` has been
    called, and a second Ctrl-C ends all hosts at once.
    """

    def __init__(self) -> None:
        self.received = False
        self.several = store.host_count() > 1
        self.checks = 0
        self.previous: dict[int, Any] = {}  # what the signals did before
        if not self.several:
            self._listen(signal.SIGTERM)

    def catch_interrupts(self) -> None:
        """Makes Ctrl-C on several hosts save and stop, too. To be called before the first step: there is nothing to
        save before.
        """
        if self.several:
            self._listen(signal.SIGINT)

    def close(self) -> None:
        """Lets the signals do what they did before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def _listen(self, number: int) -> None:
        if threading.current_thread() is threading.main_thread():  # no other thread may set what a signal does
            self.previous.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: object) -> None:
        self.received = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if self.several:
            text = "all hosts soon save and stop, after the same step; Ctrl-C again ends them at once"
            print(text, file=sys.stderr, flush=True)
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
        print(f"error: {name} has ended, so this one ends, too: {text}", file=sys.stderr, flush=True)
        _exit(int(code))
