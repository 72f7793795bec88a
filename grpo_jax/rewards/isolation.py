"""Whether the sandbox holds on this machine: a program in it tries to get out, before any response is run."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from grpo_jax.rewards.sandbox import Limits, bubblewrap, run_code

LIMITS = Limits(seconds=20.0, memory=256 * 1024**2, output=65536)
INSTALL = "Install bubblewrap (Debian and Ubuntu: apt-get install bubblewrap)"
UNSAFE = "or, where the machine has nothing to lose, write sandbox: unsafe"

# Each attempt is expected to fail. What succeeds is printed.
PROBE = """
import json, os, signal, sys
facts = json.loads(sys.stdin.read())
def open_socket():
    import socket
    socket.socket()
def read():
    open(facts["secret"]).read()
def write(path):
    open(path, "w").write("written")
def signal_process():
    os.kill(facts["process"], 0)
def see_home():
    [name for name in os.listdir(facts["home"]) if os.path.isfile(os.path.join(facts["home"], name))][0]
def see_processes():
    [name for name in os.listdir("/proc") if name.isdigit()][0]
def fork():
    if os.fork() == 0:
        os._exit(0)
def start_thread():
    import threading
    threading.Thread(target=int).start()
def use_memory():
    bytearray(2 * facts["memory"])
def use_inherited_file():
    for number in range(3, 100):
        try:
            return os.fstat(number)
        except OSError:
            pass
    raise OSError("none")
def raise_limit():
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
def read_environment():
    [name for name in os.environ if name not in ("LANG", "HOME", "TMPDIR", "PWD", "LC_CTYPE")][0]
attempts = {
    "sockets can be opened": open_socket,
    "files outside can be read": read,
    "files outside can be written": lambda: write(facts["secret"] + ".written"),
    "its own system can be written": lambda: os.access("/usr", os.W_OK) or [][0],
    "files of the home directory can be seen": see_home,
    "other processes get signals": signal_process,
    "other processes can be seen": see_processes,
    "processes can be started": fork,
    "threads can be started": start_thread,
    "memory has no limit": use_memory,
    "limits can be raised": raise_limit,
    "open files are inherited": use_inherited_file,
    "the environment is inherited": read_environment,
}
held = []
for name, attempt in attempts.items():
    try:
        attempt()
    except Exception:
        continue
    held.append(name)
print(json.dumps(held))
"""


@functools.cache
def require_isolation() -> None:
    """Refuses a machine on which the sandbox does not start, or on which a program in it gets out of it."""
    if shutil.which("bwrap") is None:
        raise OSError(f"Code is run in a sandbox, and bwrap is not installed. {INSTALL}, {UNSAFE}.")
    try:
        leaks = escapes()
    except OSError as error:
        raise OSError(
            f"Code is run in a sandbox, and bwrap does not start on this machine: {_complaint()}. In a container, allow"
            " user namespaces (docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined);"
            f" on Ubuntu 24 and later, permit them to bwrap by an AppArmor profile; {UNSAFE}."
        ) from error
    if leaks:
        raise OSError(
            f"The sandbox does not hold on this machine: in it, {', '.join(leaks)}. {INSTALL} anew, {UNSAFE}."
        )


def escapes() -> list[str]:
    """What a program in the sandbox can do and must not, in words."""
    with tempfile.TemporaryDirectory(prefix="grpo-jax-") as folder:
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        facts = {
            "secret": str(secret),
            "process": os.getpid(),
            "home": str(Path.home()),
            "memory": LIMITS.memory,
        }
        outcome = run_code("bubblewrap", LIMITS, PROBE, stdin=json.dumps(facts))
        if outcome.output is None or outcome.status != 0:
            return ["the program that tries it did not end well"]
        written = ["files outside can be written"] if os.listdir(folder) != ["secret"] else []
        return list(dict.fromkeys(json.loads(outcome.output) + written))


def _complaint() -> str:
    """What bwrap says when it starts nothing but `true`."""
    with tempfile.TemporaryFile() as empty:
        command = [*bubblewrap(empty.fileno())[:-3], "--", "/usr/bin/true"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return ended.stderr.strip()[-300:].rstrip(".") or f"status {ended.returncode}"
