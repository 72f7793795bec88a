"""How the hosts of a run, one process each, find each other and check that they run the same.

On a single host every check passes, and nothing waits.
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
from pathlib import Path

import jax

from grpo_jax.devices.process import tpu_chips
from grpo_jax.hosts import store
from grpo_jax.hosts.ending import LOST, SILENCE_SECONDS, start_heartbeats

JOIN_SECONDS = 300  # how long a host waits for the others to start
LAUNCH = (
    "Start the same command on all of them at once; on Cloud TPU, from your own machine:"
    " tpu_scripts/run.sh NAME --zone ZONE --bucket gs://BUCKET CONFIG"
)
SAME_FILES = (
    "Hosts of a run start with the same command from the same files: copy the files to all hosts again, and start all"
    " with one command."
)


def join() -> None:
    """Joins the other hosts of the run, if there may be any. To be called before anything touches a device.

    On TPUs `jax.distributed` finds the hosts by itself; elsewhere the variables JAX_COORDINATOR_ADDRESS (host:port of
    the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.
    """
    if jax.distributed.is_initialized() or not _may_have_other_hosts():
        return
    if tpu_chips():
        check_process_count(os.environ)
    _initialize()
    if not jax.distributed.is_initialized():
        return
    names = _host_names()
    if len(names) > 1:
        index = store.host_index()
        leader = f"host 0, which JAX calls the leader, is {names[0]}"  # if it is lost, JAX's message may be the last
        print(f"host {index} of {len(names)} is {names[index]}; {leader}", file=sys.stderr, flush=True)
        start_heartbeats(names)
    if jax.process_count() != len(names):
        raise ValueError(
            f"{len(names)} hosts have joined, but JAX finds devices of {jax.process_count()} processes. Unset"
            " JAX_NUM_PROCESSES on a TPU slice, whose hosts find each other; elsewhere set it to their number."
        )


def check_process_count(environment: Mapping[str, str]) -> None:
    """Refuses a JAX_NUM_PROCESSES that differs from the number of hosts in a TPU slice's own list, if it has one."""
    count = environment.get("JAX_NUM_PROCESSES")
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if count is None or hosts is None or environment.get("JAX_PLATFORMS") == "cpu":
        return
    expected = len(hosts.split(",")) * int(environment.get("MEGASCALE_NUM_SLICES", "1"))
    if count != str(expected):
        raise ValueError(
            f"JAX_NUM_PROCESSES is {count}, but this TPU has {expected} host(s). Unset JAX_COORDINATOR_ADDRESS,"
            " JAX_NUM_PROCESSES and JAX_PROCESS_ID, as the hosts of a slice find each other, and start all of them."
        )


def _initialize() -> None:
    """Calls `jax.distributed.initialize`, which waits for the other hosts, and says so if that takes long."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # else CPUs may run collectives in different orders
    timers = [threading.Timer(20, _print_waiting), threading.Timer(JOIN_SECONDS, _give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            initialization_timeout=2 * JOIN_SECONDS,
            heartbeat_timeout_seconds=2 * SILENCE_SECONDS,
        )
    except ValueError as error:
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            text = f"JAX_COORDINATOR_ADDRESS is set, but the hosts could not find each other: {error}"
            raise ValueError(text) from error
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"The hosts could not find each other: {error}. {LAUNCH}") from error
    finally:
        for timer in timers:
            timer.cancel()


def _number(variable: str) -> int | None:
    return int(os.environ[variable]) if variable in os.environ else None


def _may_have_other_hosts() -> bool:
    return "JAX_COORDINATOR_ADDRESS" in os.environ or (bool(tpu_chips()) and "COLAB_RELEASE_TAG" not in os.environ)


def _print_waiting() -> None:
    print(f"waiting for the other hosts of this run ... {LAUNCH}", file=sys.stderr, flush=True)


def _give_up() -> None:
    text = f"error: the other hosts have not started within {JOIN_SECONDS} seconds. {LAUNCH}"
    print(text, file=sys.stderr, flush=True)
    os._exit(LOST)  # the thread that waits cannot be interrupted


def _host_names() -> list[str]:
    """The names of all hosts, by host index. Refuses hosts that expect different numbers of hosts."""
    count = store.host_count()
    store.put("names", f"{count} {socket.gethostname()}")
    while True:
        texts = {index: text.split() for index, text in store.read("names").items()}
        check_host_counts({index: (int(number), name) for index, (number, name) in texts.items()})
        if len(texts) == count:
            return [texts[index][1] for index in range(count)]
        time.sleep(0.1)


def check_host_counts(expected: Mapping[int, tuple[int, str]]) -> None:
    """Refuses hosts that do not expect as many hosts as the first. `expected` has that number and a name for each."""
    if 0 not in expected:
        return
    first_count, first_name = expected[0]
    for index, (count, name) in expected.items():
        if count != first_count:
            raise ValueError(
                f"Host {index} ({name}) expects {count} processes, but host 0 ({first_name}) expects {first_count}."
                " Set JAX_NUM_PROCESSES to the same number on all hosts, and start all of them again."
            )


def check_same(facts: Mapping[str, str], way_out: str = SAME_FILES) -> None:
    """Refuses hosts that differ in any of the `facts`: a name for each, and a text of any length."""
    names = store.gather(socket.gethostname())
    gathered = store.gather(" ".join(hashlib.sha256(text.encode()).hexdigest() for text in facts.values()))
    for fact, digests in zip(facts, zip(*map(str.split, gathered), strict=True), strict=True):
        others = [f"{index} ({names[index]})" for index, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise ValueError(f"Host {', '.join(others)} has another {fact} than host 0 ({names[0]}). {way_out}")


def check_shared_directory(path: Path) -> None:
    """Refuses a directory that is not the same on all hosts, such as one of that name on each host's own disk."""
    if store.host_count() == 1:
        return
    marker = path / store.decide(lambda: _marker_in(path))
    names, found = store.gather(socket.gethostname()), store.gather(str(marker.exists()))
    if store.is_first():
        marker.unlink()
    missing = [f"host {index} ({name})" for index, name in enumerate(names) if found[index] != "True"]
    if missing:
        raise ValueError(
            f"{path} is not on {', '.join(missing)}: all hosts write one checkpoint. Set run.root to a directory that"
            " they share, such as a mounted bucket."
        )


def _marker_in(path: Path) -> str:
    """Makes an empty file with a random name, and returns the name."""
    name = f".seen_{secrets.token_hex(8)}"
    (path / name).touch()
    return name


def code_version() -> str:
    """A text that changes with the code of this package and with the version of JAX."""
    return f"{jax.__version__} {_digest(sorted(Path(__file__).parent.parent.rglob('*.py')))}"


def user_code_version() -> str:
    """A text that changes with the code imported from the current folder, such as the user's own rewards."""
    modules = list(sys.modules.values())
    files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    installed = [Path(path) for path in sysconfig.get_paths().values()] + [Path(__file__).parent.parent]
    here = [file for file in files if file.suffix == ".py" and file.is_relative_to(Path.cwd())]
    return _digest(sorted(file for file in here if not any(map(file.is_relative_to, installed))))


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
