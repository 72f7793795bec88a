"""What a worker process runs: it imports a reward, and calls it for what it is sent, one call after the other."""

import asyncio
import ctypes
import inspect
import pickle
import runpy
import signal
import sys
import types
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from grpo_jax.rewards.failures import RemoteError, described

INSIDE = "GRPO_JAX_WORKER"  # the variable by which a program knows that a worker has imported it
DIE_WITH_PARENT = 1  # of prctl, on Linux


@dataclass(frozen=True)
class Said:
    """What a reward has returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """An exception, as a worker sends it: itself need not be able to travel."""

    text: str

    def error(self) -> RemoteError:
        """The exception as the training process sees it."""
        return RemoteError(self.text)


def serve(descriptor: int) -> None:
    """Answers calls until the training process closes the connection, or ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    connection = Connection(descriptor)
    try:
        main = connection.recv()
        if main is not None:
            _run_main(main)
        reward = connection.recv()
    except BaseException as error:
        connection.send(Raised(described(error)))
        return
    connection.send(Said(None))
    loop = asyncio.new_event_loop()
    while True:
        try:
            positional, named = connection.recv()
        except EOFError:
            return
        _send(connection, _said(reward, positional, named, loop))


def _run_main(path: str) -> None:
    """Runs the program that trains as another module, because the reward is in it, as multiprocessing does."""
    module = types.ModuleType("__mp_main__")
    module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _said(
    reward: Any, positional: tuple[Any, ...], named: dict[str, Any], loop: asyncio.AbstractEventLoop
) -> Said | Raised:
    try:
        value = reward(*positional, **named)
        return Said(loop.run_until_complete(_awaited(value)) if inspect.isawaitable(value) else value)
    except BaseException as error:  # nobody presses Ctrl-C here
        return Raised(described(error))


async def _awaited(value: Any) -> Any:
    return await value


def _send(connection: Connection, value: Said | Raised) -> None:
    try:
        connection.send(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        connection.send(Raised(f"what it returned cannot be sent: {error}"))
