"""One event loop for all async rewards of the process, in a thread of its own that lives as long as the process.

A semaphore, a queue or an HTTP session that a reward keeps belongs to the loop in which it was first used, so the loop
of the second step has to be that of the first. It does not run in the main thread, because a notebook has a loop there
already, and because the main thread has to leave at a deadline or at Ctrl-C. Neither this thread nor those that
`asyncio.to_thread` takes are waited for at the end of Python.
"""

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from grpo_jax.hosts.signals import REWARD_THREADS

MOST_THREADS = 64  # that functions given to asyncio.to_thread have together
Result = TypeVar("Result")
RESPITE = 0.5  # seconds that abandoned coroutines have to end, before the next ones get another loop


class _EventLoop:
    """A running event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(DaemonThreads(MOST_THREADS))
        threading.Thread(target=self._run, daemon=True, name="async rewards").start()

    def _run(self) -> None:
        REWARD_THREADS.add(threading.get_ident())
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """The result of a coroutine, which runs at once."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def answers(self) -> bool:
        """Whether the loop is free, and not inside of a coroutine that waits without `await`."""
        free = threading.Event()
        self.loop.call_soon_threadsafe(free.set)
        return free.wait(RESPITE)


class DaemonThreads(ThreadPoolExecutor):
    """Threads for functions that wait, such as those of asyncio.to_thread. The end of Python does not wait for them."""

    def __init__(self, most: int):
        super().__init__(most)
        self.most, self.threads, self.waiting = most, 0, queue.SimpleQueue()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result of a call in one of the threads, which are started as calls come."""
        future: Future[Any] = Future()
        self.waiting.put((future, function, args, kwargs))
        if self.threads < self.most:
            self.threads += 1
            threading.Thread(target=self._work, daemon=True, name=f"async rewards {self.threads}").start()
        return future

    def _work(self) -> None:
        REWARD_THREADS.add(threading.get_ident())
        while True:
            future, function, args, kwargs = self.waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)


_running: list[_EventLoop] = []  # one at most
os.register_at_fork(after_in_child=_running.clear)  # threads do not survive a fork


def start(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Future[Any]]:
    """The results of coroutines, which run beside each other in the event loop of the process."""
    if not _running:
        _running.append(_EventLoop())
    return [_running[0].start(coroutine) for coroutine in coroutines]


def wait_for(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that runs in the event loop. Whatever interrupts the waiting thread cancels it."""
    futures = start([coroutine])
    try:
        return futures[0].result()
    finally:
        abandon(futures)


async def gathered(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of coroutines that run beside each other. Where one raises, the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def abandon(futures: Iterable[Future[Any]]) -> None:
    """Cancels what is not finished, without waiting for it. If the loop is blocked, the next step gets another one."""
    unfinished = [future for future in futures if not future.done()]
    for future in unfinished:
        future.cancel()
    if unfinished and _running:
        loop = _running.pop()  # a deadline or Ctrl-C may interrupt the next line
        if loop.answers():
            _running.append(loop)
