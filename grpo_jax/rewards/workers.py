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
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from multiprocessing.connection import Pipe, wait
from typing import Any

from grpo_jax.rewards.guarded import Guarded, innermost
from grpo_jax.rewards.signatures import Request
from grpo_jax.rewards.worker import INSIDE, Raised, Said

STARTUP = 120.0  # seconds until a worker has imported the reward
LOGGING = {"log_metric", "log_extra"}  # parameters of functions for TRL
ATTEMPTS = 3  # workers in a row that may end before they are ready
LATE = object()  # in place of a value: the call took too long, or its worker died


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
        self.ready, self.call, self.since = False, -1, time.monotonic()
        for message in start:
            self.ours.send_bytes(message)

    def kill(self) -> None:
        """Ends the process, whatever it is at."""
        self.process.kill()
        self.process.wait()
        self.ours.close()


class Pool:
    """The workers of one reward, and the thread that gives them calls.

    It is one thread for all steps, because Linux ends a worker together with the thread that started it.
    """

    def __init__(self, guard: Guarded, label: str):
        self.most, self.deadline, self.label, self.start = guard.workers, guard.deadline, label, _start_of(guard, label)
        self.workers: list[Worker] = []
        self.failed = 0  # workers in a row that were never ready
        self.jobs: queue.SimpleQueue[tuple[Sequence[bytes], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name=f"workers of {label}").start()

    def _run(self) -> None:
        """Judges one batch after the other, until there is a None."""
        while (job := self.jobs.get()) is not None:
            calls, future = job
            try:
                found = self._judge(calls, future)
            except BaseException as error:
                self.close()
                with suppress(InvalidStateError):  # nobody waits any more
                    future.set_exception(error)
                continue
            if future.cancelled():
                self.close()  # they are still at what nobody waits for
            with suppress(InvalidStateError):  # cancelled by now
                future.set_result(found)
        self.close()

    def _judge(self, calls: Sequence[bytes], future: Future[Any]) -> dict[int, Any]:
        """What the reward says in each call: a value, the exception that it raised, or LATE."""
        waiting, found = deque(range(len(calls))), {}
        while len(found) < len(calls) and not future.cancelled():
            missing = min(self.most, len(calls) - len(found)) - len(self.workers)
            self.workers += [Worker(self.start) for _ in range(missing)]
            for worker in list(self.workers):
                if worker.ready and worker.call < 0 and waiting and self._give(worker, waiting[0], calls):
                    waiting.popleft()
            wait([worker.ours for worker in self.workers], timeout=self._soonest())
            for worker in list(self.workers):
                call, said = worker.call, self._heard(worker)
                if said is not None and call >= 0:
                    found[call] = said.error() if isinstance(said, Raised) else said.value
        return found

    def _give(self, worker: Worker, call: int, calls: Sequence[bytes]) -> bool:
        """Sends a call to a worker; whether it was still there."""
        try:
            worker.ours.send_bytes(calls[call])
        except OSError:
            self._remove(worker)
            return False
        worker.call, worker.since = call, time.monotonic()
        return True

    def _soonest(self) -> float:
        """Seconds until the first worker is late; a second at most, to see whether nobody waits any more."""
        limits = [(worker, self._limit(worker)) for worker in self.workers]
        left = [worker.since + limit - time.monotonic() for worker, limit in limits if limit is not None]
        return max(min([1.0, *left]), 0.0)

    def _limit(self, worker: Worker) -> float | None:
        if not worker.ready:
            return STARTUP
        return self.deadline if worker.call >= 0 else None

    def _heard(self, worker: Worker) -> Said | Raised | None:
        """What a worker has said since, if anything. One that is late or has died is removed."""
        try:
            if worker.ours.poll():
                said = worker.ours.recv()
                if worker.ready:
                    worker.call = -1
                    return said
                self._begin(worker, said)
            limit = self._limit(worker)
            if limit is None or time.monotonic() - worker.since < limit:
                return None
        except (EOFError, OSError):
            pass  # it has died
        self._remove(worker)
        return Said(LATE)

    def _begin(self, worker: Worker, said: Said | Raised) -> None:
        """A worker that has imported the reward is ready."""
        if isinstance(said, Raised):
            raise ValueError(f"Reward {self.label} cannot be imported by a worker: {said.text}")
        worker.ready, self.failed = True, 0

    def _remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.kill()
        self.failed += not worker.ready
        if self.failed >= ATTEMPTS:
            raise RuntimeError(
                f"{self.failed} workers in a row ended before they had imported reward {self.label}; stderr has why."
                " Try the import in a Python of its own, or leave out workers."
            )

    def close(self) -> None:
        """Ends all workers."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.kill()


_pools: weakref.WeakKeyDictionary[Guarded, Pool] = weakref.WeakKeyDictionary()


def start(guard: Guarded, label: str, requests: Sequence[Request]) -> Future[dict[int, Any]]:
    """The result of each call, by its index, once the workers have made them all."""
    pool = _pools.get(guard)
    if pool is None:
        pool = _pools[guard] = Pool(guard, label)
        weakref.finalize(guard, pool.jobs.put, None)
    calls = [_call(guard, label, each) for each in requests]
    future: Future[dict[int, Any]] = Future()
    pool.jobs.put((calls, future))
    return future


def _call(guard: Guarded, label: str, request: Request) -> bytes:
    """A call as it is sent. What it would log would stay in the worker, so it gets nothing to log with."""
    named = {name: value for name, value in request.named.items() if name not in LOGGING}
    if len(named) < len(request.named) and LOGGING & {*inspect.signature(guard.reward).parameters}:
        raise ValueError(
            f"Reward {label} asks for workers, from which nothing can be logged. Leave out log_metric and log_extra, or"
            " the workers."
        )
    return _pickled((request.positional, named), label, "what it is called with")


@atexit.register
def _close_all() -> None:
    for pool in list(_pools.values()):
        pool.close()


def _start_of(guard: Guarded, label: str) -> tuple[bytes, bytes]:
    """What a worker is told first: how to find the reward."""
    if os.environ.get(INSIDE):
        raise RuntimeError(
            f"Reward {label} asks for workers inside of a worker, which has imported the program that trains. Put what"
            ' it runs under `if __name__ == "__main__":`, or the reward into a module of its own.'
        )
    main = sys.modules["__main__"]
    is_in_main = getattr(innermost(guard.reward), "__module__", None) == "__main__" or (
        getattr(type(innermost(guard.reward)), "__module__", None) == "__main__"
    )
    file = getattr(main, "__file__", None) if is_in_main else None
    if is_in_main and file is None:
        raise ValueError(
            f"Reward {label} asks for workers, which cannot import what was typed here: put it into a file."
        )
    return pickle.dumps(file), _pickled(guard.reward, label, "the reward itself")


def _pickled(value: Any, label: str, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Reward {label} asks for workers, but {what} cannot be sent to them: {error}. It must be a function of a"
            " module, not of another function."
        ) from error
