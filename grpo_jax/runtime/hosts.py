"""The hosts of a run, one process each: how they meet, agree, stop together, and notice that one has gone.

On one host everything here is what it would be without: the only host agrees with itself.
"""

import hashlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path

import jax
import numpy as np
from jax._src import distributed  # the one way to the key-value store of jax.distributed
from jax.experimental import multihost_utils

RESUMABLE = 75  # exit status of a run that ended early and can go on with --resume (EX_TEMPFAIL)
MEET_SECONDS = 300  # how long a host waits for the others to start
BEAT_SECONDS = 2
LOST_SECONDS = 20  # without a sign of life
TEXT_BYTES = 4096  # of what hosts tell each other
LAUNCH = "Start the same command on all of them at once; on Cloud TPU: tpu_scripts/run.sh NAME --zone ZONE CONFIG"


def join() -> None:
    """Meets the other hosts, if there may be any. To be called before anything touches a device.

    On TPUs `jax.distributed` finds them by itself; elsewhere the variables JAX_COORDINATOR_ADDRESS (host:port of the
    first), JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.
    """
    if jax.distributed.is_initialized() or not _may_have_company():
        return
    told = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    known = {name: int(os.environ[variable]) for name, variable in told.items() if variable in os.environ}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # or CPUs run collectives in an order of their own
    timers = [threading.Timer(20, _wait_on), threading.Timer(MEET_SECONDS, _give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(
            **known, initialization_timeout=2 * MEET_SECONDS, heartbeat_timeout_seconds=2 * LOST_SECONDS
        )
    except ValueError as error:
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS is set, but the hosts could not meet: {error}") from error
    finally:
        for timer in timers:
            timer.cancel()
    if jax.process_count() > 1:
        _watch(gather(socket.gethostname()))


def _may_have_company() -> bool:
    chips = glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")
    return "JAX_COORDINATOR_ADDRESS" in os.environ or (bool(chips) and "COLAB_RELEASE_TAG" not in os.environ)


def _wait_on() -> None:
    print(f"waiting for the other hosts of this slice ... {LAUNCH}", file=sys.stderr, flush=True)


def _give_up() -> None:
    print(
        f"error: the other hosts have not started within {MEET_SECONDS} seconds. {LAUNCH}", file=sys.stderr, flush=True
    )
    os._exit(2)  # the thread that waits cannot be interrupted


def is_first() -> bool:
    """Whether this is the host that writes what is written once."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """What every host says, in their order."""
    if jax.process_count() == 1:
        return [text]
    said = np.frombuffer(text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0"), np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(said)]


def decide(choose: Callable[[], str]) -> str:
    """What the first host chooses, on every host; where it refuses, all of them do."""
    if jax.process_count() == 1:
        return choose()
    said = ""
    if is_first():
        try:
            said = f"={choose()}"
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
    said = gather(said)[0]
    if not said.startswith("="):
        raise ValueError(said)
    return said[1:]


def agree(facts: Mapping[str, str]) -> None:
    """Refuses hosts that differ: `facts` are names of things and what they are here, of any length."""
    if jax.process_count() == 1:
        return
    names = gather(socket.gethostname())
    for name, fact in facts.items():
        digests = gather(hashlib.sha256(fact.encode()).hexdigest())
        others = [f"{index} ({names[index]})" for index, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise ValueError(
                f"Host {', '.join(others)} has another {name} than host 0 ({names[0]}). Hosts of a run start from the"
                " same files: copy them again to all hosts, and start again."
            )


def share(path: Path) -> None:
    """Refuses a directory that some host does not see."""
    missing = [
        name
        for name, sees in zip(gather(socket.gethostname()), gather(str(path.exists())), strict=True)
        if sees != "True"
    ]
    if missing:
        raise ValueError(
            f"{path} is not on {', '.join(missing)}: all hosts write one checkpoint. Set run.root to a directory that"
            " they share, such as a mounted bucket."
        )


def code_version() -> str:
    """What tells this package's code, and JAX's, from others."""
    package = Path(__file__).parent.parent
    texts = [file.read_bytes() for file in sorted(package.rglob("*.py"))]
    return f"{jax.__version__} {hashlib.sha256(b''.join(texts)).hexdigest()}"


def leave() -> None:
    """Ends this process after an error, where others would wait for it to say goodbye; they then miss it."""
    if jax.process_count() > 1:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


class Stop:
    """Whether somebody wants the run to stop: SIGTERM, sent to any of its hosts. A second one ends it at once."""

    def __init__(self) -> None:
        self.wanted = False
        if not jax.distributed.is_initialized():
            self.before = signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.wanted = True
        signal.signal(signal.SIGTERM, self.before)

    def after(self, step: int) -> bool:
        """Whether this step is the last. All hosts get the same answer, so all have to ask, after every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self.wanted


def _watch(names: list[str]) -> None:
    """Ends this process, by name of who is missing, when another host gives no sign of life any more.

    Without this it would wait inside a collective operation until JAX aborts it, with a number and a stack trace.
    """
    client, index = distributed.global_state.client, jax.process_index()
    place = "grpo_jax/alive/"

    def beat() -> None:
        heard = {other: ("", time.monotonic()) for other in range(len(names)) if other != index}
        while True:
            try:
                client.key_value_set(f"{place}{index}", f"{time.monotonic()}", allow_overwrite=True)
                beats = {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(place)}
            except jax.errors.JaxRuntimeError:
                return  # the store has closed: the run is over, or its first host has gone, which JAX says
            now = time.monotonic()
            for other, (value, since) in heard.items():
                if beats.get(other, "") != value:
                    heard[other] = beats[other], now
                elif now - since > LOST_SECONDS:
                    _lose(other, names[other])
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=beat, daemon=True, name="signs of life").start()


def _lose(index: int, name: str) -> None:
    print(
        f"error: host {index} ({name}) has not been heard of for {LOST_SECONDS} seconds, so this one ends too. Start"
        " all hosts again with --resume.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(RESUMABLE)
