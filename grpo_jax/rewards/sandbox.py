"""Runs untrusted Python in bubblewrap (`bwrap`), Debian's sandbox of unprivileged namespaces, with limits of its own.

The code sees Python's standard library, /usr read-only, and an empty folder of a few MiB; no home, no other process, no
network, no environment. It is one process (see `seccomp.py`), and ends when its time is over or its output too long.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from grpo_jax.rewards import inside, seccomp
from grpo_jax.rewards.child import readable

Kind = Literal["bubblewrap", "unsafe"]
STARTUP = 60.0  # seconds until the program in the sandbox says that it is ready
FOLDER, DISK = "/scratch", 16 * 1024**2  # where the code may write, and how many bytes
NOBODY = "65534"
MOST_TEXT = 100_000  # bytes of code, and of calls; the kernel limits an argument to 128 KiB


@dataclass(frozen=True)
class Limits:
    """What a piece of code may use."""

    seconds: float
    memory: int  # bytes
    output: int  # bytes


@dataclass(frozen=True)
class Calls:
    """Expressions that are evaluated after the code and `setup`; `imports` are run before the code."""

    sources: tuple[str, ...] = ()
    imports: str = ""
    setup: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a piece of code ended: what it wrote, None if that was too much or took too long, and its exit status."""

    output: bytes | None
    status: int | None


def run_code(kind: Kind, limits: Limits, code: str, calls: Calls | None = None, stdin: str = "") -> Outcome:
    """Runs the code as a program, or as a module that `calls` are made to.

    A sandbox that does not start is an OSError, and imports that fail in it are a ValueError.
    """
    most = {"memory": limits.memory, "seconds": int(limits.seconds) + 1}
    job = [json.dumps(most), code, written_calls(Calls() if calls is None else calls)]
    with _started(kind, job) as process:
        threading.Thread(target=_feed, args=(process, stdin.encode()), daemon=True).start()
        begun = _read(process, len(inside.READY), STARTUP, exactly=True)
        if begun == inside.BROKEN:
            said = _read(process, 1000, 1.0)
            raise ValueError(f"the imports fail in the sandbox: {(said if said else b'').decode(errors='replace')}")
        if begun != inside.READY:
            raise OSError("The sandbox did not start.")
        end = time.monotonic() + limits.seconds
        output = _read(process, limits.output + 1, limits.seconds)
        if output is None or len(output) > limits.output:
            return Outcome(None, None)
        try:
            return Outcome(output, process.wait(max(end - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            return Outcome(None, None)


def written_calls(calls: Calls) -> str:
    """The calls as the program in the sandbox reads them, in ASCII."""
    return json.dumps({"imports": calls.imports, "setup": calls.setup, "calls": list(calls.sources)})


@contextmanager
def _started(kind: Kind, job: list[str]) -> Generator[subprocess.Popen[bytes]]:
    """The process, which is ended in any case, with all that belongs to it."""
    interpreter = [os.path.realpath(sys.executable), "-I", "-S", "-c", Path(inside.__file__).read_text("utf-8"), *job]
    with tempfile.TemporaryDirectory(prefix="grpo-jax-") as folder, tempfile.TemporaryFile() as filter_file:
        command, files = interpreter, []
        if kind != "unsafe":
            filter_file.write(seccomp.filter_program())
            filter_file.seek(0)
            command, files = [*bubblewrap(filter_file.fileno()), *interpreter], [filter_file.fileno()]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=folder,
            pass_fds=files,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has ended
                pass
            process.wait()
            cast(IO[bytes], process.stdout).close()


def bubblewrap(filter_file: int) -> list[str]:
    """The command that starts a program in the sandbox."""
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not installed")
    command = [program, "--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY]
    command += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", FOLDER, "--setenv", "TMPDIR", FOLDER]
    command += ["--size", str(DISK), "--tmpfs", FOLDER]  # before the next ones, as Python may be installed below it
    for path in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache"):
        command += ["--ro-bind-try", path, path]
    for path in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        command += [] if path == "/usr" else ["--ro-bind", path, path]
    command += ["--chdir", FOLDER]
    command += ["--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom"]
    return [*command, "--remount-ro", "/", "--seccomp", str(filter_file), "--"]


def _feed(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Runs in a thread, because code that does not read its input must not keep anybody waiting."""
    try:
        with cast(IO[bytes], process.stdin) as stdin:
            stdin.write(text)
    except OSError:  # the code has ended
        pass


def _read(process: subprocess.Popen[bytes], most: int, seconds: float, exactly: bool = False) -> bytes | None:
    """What the process writes, up to `most` bytes or its end; None if neither comes in time."""
    stdout, end, read = cast(IO[bytes], process.stdout).fileno(), time.monotonic() + seconds, b""
    while len(read) < most:
        if not readable(stdout, end - time.monotonic()):
            return None
        piece = os.read(stdout, min(most - len(read), 65536) if exactly else 65536)
        if not piece:
            break
        read += piece
    return read
