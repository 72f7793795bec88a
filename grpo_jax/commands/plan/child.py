"""A process beside this one, in which the compiler works, and which ends with it."""

import multiprocessing
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


@contextmanager
def child(target: Callable[..., None], *inputs: Any) -> Generator[Connection]:
    """Starts `target(sender, *inputs)` in a process of its own, and yields the connection that receives what it sends.

    The process ends with the block, however that ends. If it ends before, receiving raises an EOFError.
    """
    spawned = multiprocessing.get_context("spawn")
    receiver, sender = spawned.Pipe(duplex=False)
    process = spawned.Process(target=target, args=(sender, *inputs), daemon=True)
    process.start()
    try:
        sender.close()  # or the end of the child would not be noticed
        yield receiver
    finally:
        process.kill()
        process.join()
