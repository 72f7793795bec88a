"""The hosts of a run, one process each: how they meet, and how they make sure that they run the same.

On one host everything here is what it would be without: the only host agrees with itself.
"""

import hashlib
import os
import secrets
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping
from glob import glob
from pathlib import Path

import jax

from grpo_jax.hosts import store
from grpo_jax.hosts.ending import LOST, LOST_SECONDS, watch

MEET_SECONDS = 300  # how long a host waits for the others to start
LAUNCH = (
    "Start the same command on all of them at once; on Cloud TPU, from your own machine:"
    " tpu_scripts/run.sh NAME --zone ZONE --bucket gs://BUCKET CONFIG"
)


def join() -> None:
    """Meets the other hosts, if there may be any. To be called before anything touches a device.

    On TPUs `jax.distributed` finds them by itself; elsewhere the variables JAX_COORDINATOR_ADDRESS (host:port of the
    first), JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.
    """
    if jax.distributed.is_initialized() or not _may_have_company():
        return
    if _chips():
        check_number(os.environ)
    _initialize()
    if not jax.distributed.is_initialized():
        return
    names = _meet()
    if len(names) > 1:
        own = store.own()
        leader = f"host 0, which JAX calls the leader, is {names[0]}"  # JAX's words may be the last where it is lost
        print(f"host {own} of {len(names)} is {names[own]}; {leader}", file=sys.stderr, flush=True)
        watch(names)
    if jax.process_count() != len(names):
        raise ValueError(
            f"There are {jax.process_count()} processes with devices, and {len(names)} have met. Unset"
            " JAX_NUM_PROCESSES on a TPU slice, whose hosts find each other; elsewhere set it to their number."
        )


def check_number(environment: Mapping[str, str]) -> None:
    """Refuses a number of processes that is not what the list of a slice's hosts says, where there is such a list."""
    told = environment.get("JAX_NUM_PROCESSES")
    listed = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if told is None or listed is None or environment.get("JAX_PLATFORMS") == "cpu":
        return
    number = len(listed.split(",")) * int(environment.get("MEGASCALE_NUM_SLICES", "1"))
    if told != str(number):
        raise ValueError(
            f"JAX_NUM_PROCESSES is {told}, and this TPU has {number} host(s). Unset JAX_COORDINATOR_ADDRESS,"
            " JAX_NUM_PROCESSES and JAX_PROCESS_ID, as the hosts of a slice find each other, and start all of them."
        )


def _initialize() -> None:
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
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"The hosts could not meet: {error}. {LAUNCH}") from error
    finally:
        for timer in timers:
            timer.cancel()


def _may_have_company() -> bool:
    return "JAX_COORDINATOR_ADDRESS" in os.environ or (bool(_chips()) and "COLAB_RELEASE_TAG" not in os.environ)


def _chips() -> list[str]:
    """The TPU chips of this machine, as files."""
    return glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")


def _wait_on() -> None:
    print(f"waiting for the other hosts of this slice ... {LAUNCH}", file=sys.stderr, flush=True)


def _give_up() -> None:
    print(
        f"error: the other hosts have not started within {MEET_SECONDS} seconds. {LAUNCH}", file=sys.stderr, flush=True
    )
    os._exit(LOST)  # the thread that waits cannot be interrupted


def _meet() -> list[str]:
    """The names of all hosts, in their order."""
    number = store.number()
    store.put("names", f"{number} {socket.gethostname()}")
    while True:
        told = {index: (int(text.split()[0]), text.split()[1]) for index, text in store.read("names").items()}
        check_numbers(told)
        if len(told) == number:
            return [told[index][1] for index in range(number)]
        time.sleep(0.1)


def check_numbers(told: Mapping[int, tuple[int, str]]) -> None:
    """Refuses hosts that expect another number of hosts than the first; `told` is that number and a name for each."""
    for index, (number, name) in told.items():
        if 0 in told and number != told[0][0]:
            raise ValueError(
                f"Host {index} ({name}) has been told of {number} processes, host 0 ({told[0][1]}) of {told[0][0]}."
                " Set JAX_NUM_PROCESSES to one number on all hosts, and start all of them again."
            )


SAME_FILES = (
    "Hosts of a run start with the same command from the same files: copy the files to all hosts again, and start all"
    " with one command."
)


def agree(facts: Mapping[str, str], way_out: str = SAME_FILES) -> None:
    """Refuses hosts that differ: `facts` are names of things and what they are here, of any length."""
    names = store.gather(socket.gethostname())
    told = store.gather(" ".join(hashlib.sha256(fact.encode()).hexdigest() for fact in facts.values()))
    for fact, digests in zip(facts, zip(*map(str.split, told), strict=True), strict=True):
        others = [f"{index} ({names[index]})" for index, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise ValueError(f"Host {', '.join(others)} has another {fact} than host 0 ({names[0]}). {way_out}")


def share(path: Path) -> None:
    """Refuses a directory that some host does not see. One of the same name on a disk of its own is not the same."""
    if store.number() == 1:
        return
    mark = path / store.decide(lambda: _mark(path))
    names, seen = store.gather(socket.gethostname()), store.gather(str(mark.exists()))
    if store.is_first():
        mark.unlink()
    missing = [f"host {index} ({name})" for index, name in enumerate(names) if seen[index] != "True"]
    if missing:
        raise ValueError(
            f"{path} is not on {', '.join(missing)}: all hosts write one checkpoint. Set run.root to a directory that"
            " they share, such as a mounted bucket."
        )


def _mark(path: Path) -> str:
    name = f".seen_{secrets.token_hex(8)}"
    (path / name).touch()
    return name


def code_version() -> str:
    """What tells this package's code, and JAX's, from others."""
    return f"{jax.__version__} {_digest(sorted(Path(__file__).parent.parent.rglob('*.py')))}"


def own_code() -> str:
    """What tells the code that was imported from the current folder, such as rewards of one's own, from others."""
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    installed = [Path(path) for path in sysconfig.get_paths().values()] + [Path(__file__).parent.parent]
    here = [file for file in files if file.suffix == ".py" and file.is_relative_to(Path.cwd())]
    return _digest(sorted(file for file in here if not any(map(file.is_relative_to, installed))))


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
