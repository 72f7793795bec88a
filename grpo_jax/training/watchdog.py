"""Ends a run that stands still: a program that never returns, a device or a network that does not answer."""

import faulthandler
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

from grpo_jax.hosts.codes import STUCK

STDERR = 2  # the file descriptor: sys.stderr may be another object, and locked by the thread that stands still
GRACE_SECONDS = 10.0


@contextmanager
def watched(name: str, seconds: float) -> Generator[None]:
    """Ends the process if the block takes longer: it prints a sentence and where all threads are, to stderr.

    Code that holds Python's lock would keep a thread from that; faulthandler needs no lock, and ends the process a
    little later, with exit status 1. No limit if `seconds` is 0.
    """
    if not seconds:
        yield
        return
    timer = threading.Timer(seconds, _end, (name, seconds))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=STDERR)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def _end(name: str, seconds: float) -> None:
    text = (
        f"error: {name} has taken {seconds / 60:.4g} minutes without an end, so this run stops. Below is where each of"
        " its threads stands. Go on from the last checkpoint with --resume; if it was only slow, raise"
        " train.watchdog_minutes (0: no limit).\n"
    )
    os.write(STDERR, f"\n{text}".encode())
    faulthandler.dump_traceback(file=STDERR, all_threads=True)
    os._exit(STUCK)
