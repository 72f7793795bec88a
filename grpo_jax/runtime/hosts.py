"""The hosts of a run, one process each: how they meet, agree, stop together, and notice that one has gone.

On one host everything here is what it would be without: the only host agrees with itself. Hosts talk through the
key-value store of jax.distributed, which lives on the first of them and needs no device: where one fails, the others
are not stuck in a program that waits for it.
"""

import atexit
import hashlib
import itertools
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path

import jax
from jax._src import distributed  # the one way to the key-value store of jax.distributed
from jax.experimental import multihost_utils

RESUMABLE = 75  # exit status of a run that ended early and can go on with --resume (EX_TEMPFAIL)
MEET_SECONDS = 300  # how long a host waits for the others to start
BEAT_SECONDS = 1
LOST_SECONDS = 20  # without a sign of life
TEXT_LENGTH = 2000  # of what others are told of an error
BOARD = "grpo_jax/"  # where hosts leave word for each other
LAUNCH = "Start the same command on all of them at once; on Cloud TPU: tpu_scripts/run.sh NAME --zone ZONE CONFIG"

_turns = itertools.count()  # what they say one after another; all hosts count alike
_over = threading.Event()  # this process is about to end, and knows why


def join() -> None:
    """Meets the other hosts, if there may be any. To be called before anything touches a device.

    On TPUs `jax.distributed` finds them by itself; elsewhere the variables JAX_COORDINATOR_ADDRESS (host:port of the
    first), JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.
    """
    if jax.distributed.is_initialized() or not _may_have_company():
        return
    check_number(os.environ)
    _initialize()
    if not jax.distributed.is_initialized():
        return
    names = _meet()
    if len(names) > 1:
        own = distributed.global_state.process_id
        leader = f"host 0, which JAX calls the leader, is {names[0]}"  # JAX's words may be the last where it is lost
        print(f"host {own} of {len(names)} is {names[own]}; {leader}", file=sys.stderr, flush=True)
        _watch(names)
    if jax.process_count() != len(names):
        raise ValueError(
            f"There are {jax.process_count()} processes with devices, and {len(names)} have met. Unset"
            " JAX_NUM_PROCESSES on a TPU slice, whose hosts find each other; elsewhere set it to their number."
        )


def check_number(environment: Mapping[str, str]) -> None:
    """Refuses a number of processes that is not what the list of a slice's hosts says, where there is such a list."""
    told = environment.get("JAX_NUM_PROCESSES")
    listed = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    stand_in = "TPU_SKIP_MDS_QUERY" in environment  # the list is then what keeps a library quiet without a TPU
    if told is None or listed is None or stand_in or environment.get("JAX_PLATFORMS") == "cpu":
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
    chips = glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")
    return "JAX_COORDINATOR_ADDRESS" in os.environ or (bool(chips) and "COLAB_RELEASE_TAG" not in os.environ)


def _wait_on() -> None:
    print(f"waiting for the other hosts of this slice ... {LAUNCH}", file=sys.stderr, flush=True)


def _give_up() -> None:
    print(
        f"error: the other hosts have not started within {MEET_SECONDS} seconds. {LAUNCH}", file=sys.stderr, flush=True
    )
    os._exit(2)  # the thread that waits cannot be interrupted


def _meet() -> list[str]:
    """The names of all hosts, in their order."""
    number, place = distributed.global_state.num_processes, f"{BOARD}names/"
    _put(place, f"{number} {socket.gethostname()}")
    while True:
        told = {index: (int(text.split()[0]), text.split()[1]) for index, text in _read(place).items()}
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


def is_first() -> bool:
    """Whether this is the host that writes what is written once."""
    return distributed.global_state.process_id == 0


def gather(text: str) -> list[str]:
    """What every host says, in their order. It waits for all of them, however long they take."""
    number, place = distributed.global_state.num_processes, f"{BOARD}turn_{next(_turns)}/"
    if number == 1:
        return [text]
    _put(place, text)
    while len(said := _read(place)) < number:
        time.sleep(0.1)
    return [said[index] for index in range(number)]


def decide(choose: Callable[[], str]) -> str:
    """What the first host chooses, on every host."""
    return gather(choose() if is_first() else "")[0]


def agree(facts: Mapping[str, str]) -> None:
    """Refuses hosts that differ: `facts` are names of things and what they are here, of any length."""
    names = gather(socket.gethostname())
    told = gather(" ".join(hashlib.sha256(fact.encode()).hexdigest() for fact in facts.values()))
    for fact, digests in zip(facts, zip(*map(str.split, told), strict=True), strict=True):
        others = [f"{index} ({names[index]})" for index, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise ValueError(
                f"Host {', '.join(others)} has another {fact} than host 0 ({names[0]}). Hosts of a run start from the"
                " same files: copy them again to all hosts, and start again."
            )


def share(path: Path) -> None:
    """Refuses a directory that some host does not see. One of the same name on a disk of its own is not the same."""
    if distributed.global_state.num_processes == 1:
        return
    mark = path / decide(lambda: _mark(path))
    names, seen = gather(socket.gethostname()), gather(str(mark.exists()))
    if is_first():
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
    package = Path(__file__).parent.parent
    texts = [file.read_bytes() for file in sorted(package.rglob("*.py"))]
    return f"{jax.__version__} {hashlib.sha256(b''.join(texts)).hexdigest()}"


@contextmanager
def together(*plain: type[Exception]) -> Iterator[None]:
    """Ends all hosts if an error ends on one of them what happens inside: the others say whose it was, and what.

    Errors that are `plain` are a sentence and exit status 2, as for the command line; others show where they happened.
    """
    try:
        yield
    except BaseException as error:
        if distributed.global_state.num_processes > 1:
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
    if isinstance(error, jax.errors.JaxRuntimeError):  # as where another host has gone, whom the watch then names
        time.sleep(2 * LOST_SECONDS)
    _over.set()
    with suppress(jax.errors.JaxRuntimeError, AttributeError):  # where there is no store, or none any more
        _put(f"{BOARD}ended/", f"{code} {' '.join(text.split())[:TEXT_LENGTH]}")
    _exit(code)


def _exit(code: int) -> None:
    if is_first():
        time.sleep(4 * BEAT_SECONDS)  # the store ends with this process, and the others are to read it
    sys.stdout.flush()
    os._exit(code)


class Stop:
    """Whether somebody wants the run to stop: SIGTERM, sent to any of its hosts. Where there is one host, a second
    one ends it at once.

    On several hosts Ctrl-C is the same, once `heed_interrupts` is called; a second one ends all of them at once.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.several = distributed.global_state.num_processes > 1
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

    def after(self, step: int) -> bool:
        """Whether this step is the last. All hosts get the same answer, so all have to ask, after every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self.several else self.wanted


def _put(place: str, text: str) -> None:
    index = distributed.global_state.process_id
    distributed.global_state.client.key_value_set(f"{place}{index}", text, allow_overwrite=True)


def _read(place: str) -> dict[int, str]:
    """What the hosts have put there, by their number."""
    found = distributed.global_state.client.key_value_dir_get(place)
    return {int(key.rpartition("/")[2]): text for key, text in found}


def _watch(names: list[str]) -> None:
    """Ends this process, by name of who is missing, when another host ends or gives no sign of life any more.

    Without this it would wait inside a collective operation until JAX aborts it, with a number and a stack trace.
    """
    heard = {index: ("", time.monotonic()) for index in range(len(names))}

    def beat() -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                _put(f"{BOARD}alive/", f"{time.monotonic()}")
                ended, beats = _read(f"{BOARD}ended/"), _read(f"{BOARD}alive/")
            except (jax.errors.JaxRuntimeError, AttributeError):  # the store does not answer, or JAX has put it away
                if _over.is_set():
                    return
                ended, beats = {}, {}  # nothing is heard of anybody, nor of the first, where the store is
            for index, text in (ended | _silent(heard, beats)).items():
                _follow(f"host {index} ({names[index]})", *text.split(" ", 1))

    threading.Thread(target=beat, daemon=True, name="signs of life").start()
    atexit.register(_over.set)  # it comes before JAX's own; signs of life go on, as others may still be writing


def _silent(heard: dict[int, tuple[str, float]], beats: Mapping[int, str]) -> dict[int, str]:
    """Of whom nothing has been heard for too long; `heard` is the last beat of each host, and when it changed."""
    now = time.monotonic()
    heard |= {index: (beat, now) for index, beat in beats.items() if beat != heard[index][0]}
    text = f"{RESUMABLE} it has not been heard of for {LOST_SECONDS} seconds. Start all hosts again with --resume."
    return {index: text for index, (_, since) in heard.items() if now - since > LOST_SECONDS}


def _follow(name: str, code: str, text: str) -> None:
    if not _over.is_set():
        print(f"error: {name} has ended, and this one with it: {text}", file=sys.stderr, flush=True)
        _exit(int(code))
