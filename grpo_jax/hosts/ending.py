"""How the hosts of a run end: all of them, for a reason that each of them tells.

An error on one of them, a signal to any, or one that gives no sign of life any more. Without this the others would wait
inside a collective operation until JAX aborts them, with a number and a stack trace.
"""

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import jax
from jax.experimental import multihost_utils

from grpo_jax.hosts import store

RESUMABLE = 75  # exit status of a run that was told to stop, and has saved: --resume goes on (EX_TEMPFAIL)
LOST = 76  # exit status where another host is missing: --resume goes on from the last checkpoint, if there is one
BEAT_SECONDS = 1
LOST_SECONDS = 30  # without a sign of life
TEXT_LENGTH = 2000  # of what others are told of an error

_over = threading.Event()  # this process is about to end, and knows why


@contextmanager
def together(*plain: type[Exception]) -> Iterator[None]:
    """Ends all hosts if an error ends on one of them what happens inside: the others say whose it was, and what.

    Errors that are `plain` are a sentence and exit status 2, as for the command line; others show where they happened.
    """
    try:
        yield
    except BaseException as error:
        if store.number() > 1:
            _leave(error, plain)
        raise


def _leave(error: BaseException, plain: tuple[type[Exception], ...]) -> None:
    """Ends this process; JAX's own way of ending would wait for the others to do the same."""
    if isinstance(error, plain):
        code, text = 2, str(error)
        print(f"error: {text}", file=sys.stderr, flush=True)
    elif isinstance(error, KeyboardInterrupt):
        code, text = 130, "it was interrupted"
        print("\nstopped, and all other hosts with it", file=sys.stderr, flush=True)
    else:
        code, text = 1, f"{type(error).__name__}: {error}"
        traceback.print_exception(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
        time.sleep(LOST_SECONDS + 4 * BEAT_SECONDS)  # another host may have gone, whom the watch then names
    _over.set()
    with suppress(jax.errors.JaxRuntimeError, AttributeError):  # where there is no store, or none any more
        store.put("ended", f"{code} {' '.join(text.split())[:TEXT_LENGTH]}")
    _exit(code)


def _exit(code: int) -> None:
    if store.is_first():
        time.sleep(4 * BEAT_SECONDS)  # the store ends with this process, and the others are to read it
    sys.stdout.flush()
    os._exit(code)


class Stop:
    """Whether somebody wants the run to stop: SIGTERM, sent to any of its hosts. Where there is one host, a second
    one ends it at once.

    On several hosts JAX hears SIGTERM, and tells the others at the end of the step; nobody says a word before. Ctrl-C
    is the same there, once `heed_interrupts` is called; a second one ends all of them at once.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.several = store.number() > 1
        self.asked = 0
        if not self.several:
            signal.signal(signal.SIGTERM, self._hear)

    def heed_interrupts(self) -> None:
        """To be called when steps begin: before them there is nothing to save."""
        if self.several:
            signal.signal(signal.SIGINT, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.wanted = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if self.several:
            print(
                "all hosts stop after the same step, soon; Ctrl-C again ends them at once", file=sys.stderr, flush=True
            )
            signal.raise_signal(signal.SIGTERM)  # JAX listens for it, and tells the other hosts

    def after_step(self) -> bool:
        """Whether this step is the last. All hosts get the same answer, so all have to ask, after every step."""
        self.asked += 1  # JAX counts the calls from 1, whatever step a run is resumed from
        return multihost_utils.reached_preemption_sync_point(self.asked) if self.several else self.wanted


def watch(names: list[str]) -> None:
    """Ends this process, by name of who is missing, when another host ends or gives no sign of life any more."""
    heard = {index: ("", time.monotonic()) for index in range(len(names))}

    def beat() -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                store.put("alive", f"{time.monotonic()}")
                ended, beats = store.read("ended"), store.read("alive")
            except (jax.errors.JaxRuntimeError, AttributeError):  # the store does not answer, or JAX has put it away
                if _over.is_set():
                    return
                ended, beats = {}, {}  # nothing is heard of anybody, nor of the first, where the store is
            for index, text in (ended | _silent(heard, beats)).items():
                _follow(f"host {index} ({names[index]})", *text.split(" ", 1))

    thread = threading.Thread(target=beat, daemon=True, name="signs of life")
    thread.start()
    atexit.register(_part, thread)


def _part(thread: threading.Thread) -> None:
    """Leaves the other hosts at the end of a run. Signs of life go on while it waits for those that are still writing,
    and end before Python does, which would end the thread inside of JAX, and so abort.
    """
    _over.set()
    try:
        jax.distributed.shutdown()
    finally:
        thread.join()


def _silent(heard: dict[int, tuple[str, float]], beats: Mapping[int, str]) -> dict[int, str]:
    """Of whom nothing has been heard for too long; `heard` is the last beat of each host, and when it changed."""
    now = time.monotonic()
    heard |= {index: (beat, now) for index, beat in beats.items() if beat != heard[index][0]}
    text = (
        f"{LOST} it has not been heard of for {LOST_SECONDS} seconds: it is gone, or its Python was held up,"
        " such as by a regular expression in a reward. Start all hosts again with --resume."
    )
    return {index: text for index, (_, since) in heard.items() if now - since > LOST_SECONDS}


def _follow(name: str, code: str, text: str) -> None:
    if not _over.is_set():
        print(f"error: {name} has ended, and this one with it: {text}", file=sys.stderr, flush=True)
        _exit(int(code))
