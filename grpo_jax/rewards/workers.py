"""Worker processes that call a reward, and are ended when they are late.

A process that computes cannot be told to stop: Python runs no other code while a regular expression backtracks. So what
may hang is called in processes of its own, which are killed at the deadline and replaced. They import the module of the
reward and no JAX, take one call each at a time, and live until the run ends.
"""

import atexit
import inspect
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from typing import Any

from grpo_jax.rewards.guarded import Guarded
from grpo_jax.rewards.signatures import Request
from grpo_jax.rewards.worker import INSIDE, Raised, Said

STARTUP = 120.0  # seconds until a worker has imported the reward
LOGGING = {"log_metric", "log_extra"}  # parameters of functions for TRL
RESPITE = 1.0  # seconds for a process that has closed its connection to end
ATTEMPTS = 3  # workers in a row that may end before they are ready


@dataclass(frozen=True)
class Unanswered:
    """In place of a value: the call took too long, or its worker died."""

    why: str


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a reward as it is sent to a worker, and its result."""

    message: bytes
    future: Future[Any]

    def end(self, value: Any) -> None:
        """Gives the result to whoever still waits for it: a value, an exception of the reward, or Unanswered."""
        with suppress(InvalidStateError):  # cancelled by now
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Raises an error where the result is waited for."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Worker:
    """One process, and the call that it is at."""

    def __init__(self, start: Sequence[bytes]):
        self.ours, theirs = Pipe()
        program = f"import sys; sys.path[:] = {sys.path!r}; from grpo_jax.rewards.worker import serve"
        # It shall not take an accelerator if the reward imports JAX.
        variables = os.environ | {INSIDE: "1", "JAX_PLATFORMS": "cpu"}
        # In a session of its own, so that Ctrl-C in the terminal does not reach it.
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{program}; serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=variables,
            start_new_session=True,
        )
        theirs.close()
        self.ready, self.since = False, time.monotonic()
        self.call: Call | None = None
        for message in start:
            self.ours.send_bytes(message)

    def ended(self) -> str:
        """How the process ended, which has closed its connection."""
        try:
            status = self.process.wait(RESPITE)
        except subprocess.TimeoutExpired:
            return "its connection"
        return f"by signal {-status}" if status < 0 else f"with status {status}"

    def kill(self) -> None:
        """Ends the process, whatever it is at."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with all that it has started: it leads a session of its own
        self.process.wait()
        self.ours.close()


class Pool:
    """The workers of one reward, and the thread that gives them calls: each to the first worker that is free.

    It is one thread for all steps, because Linux ends a worker together with the thread that started it.
    """

    def __init__(self, guard: Guarded, label: str):
        self.most, self.deadline, self.label, self.start = guard.workers, guard.deadline, label, _start_of(guard, label)
        self.workers: list[Worker] = []
        self.failed = 0  # workers in a row that were never ready
        self.asked: queue.SimpleQueue[Call] = queue.SimpleQueue()  # calls that the thread has not seen yet
        self.calls: deque[Call] = deque()  # that no worker has been given
        self.closed = False
        self.reader, self.writer = _pipe_of(self)  # a byte wakes the thread: there are calls, or nobody waits for some
        threading.Thread(target=self._run, daemon=True, name=f"workers of {label}").start()

    def ask(self, message: bytes) -> Future[Any]:
        """The result of a call, once a worker has made it. Cancelling it ends the worker that is at it."""
        call = Call(message, Future())
        self.asked.put(call)
        call.future.add_done_callback(lambda future: self._wake() if future.cancelled() else None)
        self._wake()
        return call.future

    def finish(self) -> None:
        """Ends the thread and all workers."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # there are so many bytes that it wakes anyway
            os.write(self.writer, b"!")

    def _run(self) -> None:
        """Gives calls to workers until the pool is closed."""
        while not self.closed:
            try:
                self._turn()
            except Exception as error:
                failed = [*self.calls, *(worker.call for worker in self.workers if worker.call is not None)]
                self.calls.clear()
                self.close()
                for call in failed:
                    call.fail(error)
        self.close()

    def _turn(self) -> None:
        """Sends calls to workers that are free, waits until something happens, and takes what workers have said."""
        while not self.asked.empty():
            self.calls.append(self.asked.get())
        while self.calls and self.calls[0].future.cancelled():
            self.calls.popleft()
        for worker in list(self.workers):
            if worker.call is not None and worker.call.future.cancelled():
                self._remove(worker)  # it is at what nobody waits for
        busy = sum(worker.call is not None for worker in self.workers)
        missing = min(self.most, len(self.calls) + busy) - len(self.workers)
        self.workers += [Worker(self.start) for _ in range(missing)]
        for worker in list(self.workers):
            if worker.ready and worker.call is None:
                self._give_next(worker)
        wait([self.reader, *(worker.ours for worker in self.workers)], timeout=self._soonest())
        with suppress(BlockingIOError):
            os.read(self.reader, 2**16)
        for worker in list(self.workers):
            call, said = worker.call, self._heard(worker)
            if said is not None and call is not None:
                call.end(said.error() if isinstance(said, Raised) else said.value)

    def _give_next(self, worker: Worker) -> None:
        """Sends the next call that somebody waits for, if there is one, unless the worker has died."""
        while self.calls and self.calls[0].future.cancelled():
            self.calls.popleft()
        if not self.calls:
            return
        try:
            worker.ours.send_bytes(self.calls[0].message)
        except OSError:
            self._remove(worker)
            return
        worker.call, worker.since = self.calls.popleft(), time.monotonic()

    def _soonest(self) -> float | None:
        """Seconds until the first worker is late; None if none can be."""
        limits = [(worker, self._limit(worker)) for worker in self.workers]
        left = [worker.since + limit - time.monotonic() for worker, limit in limits if limit is not None]
        return max(min(left), 0.0) if left else None

    def _limit(self, worker: Worker) -> float | None:
        if not worker.ready:
            return STARTUP
        return self.deadline if worker.call is not None else None

    def _heard(self, worker: Worker) -> Said | Raised | None:
        """What a worker has said since, if anything. One that is late or has died is removed."""
        try:
            if worker.ours.poll():
                said = worker.ours.recv()
                if worker.ready:
                    worker.call = None
                    return said
                self._begin(worker, said)
            limit = self._limit(worker)
            if limit is None or time.monotonic() - worker.since < limit:
                return None
            why = f"it took more than {limit:g} s"
        except (EOFError, OSError):
            why = f"its process ended {worker.ended()}"
        self._remove(worker)
        return Said(Unanswered(why))

    def _begin(self, worker: Worker, said: Said | Raised) -> None:
        """A worker that has imported the reward is ready."""
        if isinstance(said, Raised):
            raise ValueError(f"{self.label} cannot be imported by a worker: {said.text}")
        worker.ready, self.failed = True, 0

    def _remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.kill()
        self.failed += not worker.ready
        if self.failed >= ATTEMPTS:
            raise RuntimeError(
                f"{self.label} cannot be imported by workers: {self.failed} in a row ended before they had. stderr"
                " has why. Try the import in a Python of its own, or leave out workers."
            )

    def close(self) -> None:
        """Ends all workers."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.kill()


def _pipe_of(pool: Pool) -> tuple[int, int]:
    """The ends of a pipe that is closed when nobody can write to it any more."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
        weakref.finalize(pool, os.close, end).atexit = False
    return ends


_pools: weakref.WeakKeyDictionary[Guarded, Pool] = weakref.WeakKeyDictionary()


os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork, and the workers are not its own


def start(guard: Guarded, label: str, requests: Sequence[Request]) -> list[Future[Any]]:
    """The result of each call, which the workers make as they become free."""
    pool = _pools.get(guard)
    if pool is None:
        pool = _pools[guard] = Pool(guard, label)
        weakref.finalize(guard, pool.finish)
    return [pool.ask(message) for message in [_call(guard, label, each) for each in requests]]


def _call(guard: Guarded, label: str, request: Request) -> bytes:
    """A call as it is sent. What it would log would stay in the worker, so it gets nothing to log with."""
    named = {name: value for name, value in request.named.items() if name not in LOGGING}
    if len(named) < len(request.named) and LOGGING & {*inspect.signature(guard.reward).parameters}:
        raise ValueError(
            f"{label} asks for workers, from which nothing can be logged. Leave out log_metric and log_extra, or"
            " the workers."
        )
    return _pickled((request.positional, named), label, "what it is called with")


@atexit.register
def _close_all() -> None:
    for pool in list(_pools.values()):
        pool.finish()
        pool.close()


def _start_of(guard: Guarded, label: str) -> tuple[bytes, bytes]:
    """What a worker is told first: how to find the reward."""
    if os.environ.get(INSIDE):
        raise RuntimeError(
            f"{label} asks for workers inside of a worker, which has imported the program that trains. Put what"
            ' it runs under `if __name__ == "__main__":`, or the reward into a module of its own.'
        )
    main = sys.modules["__main__"]
    pickled = _pickled(guard.reward, label, "it")
    is_in_main = b"__main__" in pickled  # where it was defined is a part of a pickle
    file = getattr(main, "__file__", None) if is_in_main else None
    if is_in_main and file is None:
        raise ValueError(f"{label} asks for workers, which cannot import what was typed here: put it into a file.")
    return pickle.dumps(file), pickled


def _pickled(value: Any, label: str, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{label} asks for workers, but {what} cannot be sent to them: {error}. It must be a function of a"
            " module, not of another function."
        ) from error
