"""A fake gcloud: records its arguments, replays states, and runs what goes to a worker in that worker's folder.

$SLICE/calls.jsonl    the arguments of every call
$SLICE/script.json    the answers: {"workers": 4, "requests": [STATE, ...], "nodes": [STATE, ...],
                      "failures": {"GROUP COMMAND": [TEXT, ...]}}. Each call takes one; the last state is repeated.
$SLICE/worker-N       the home directory of a worker
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

SLICE = Path(os.environ["SLICE"])
GONE = "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{}' was not found"


def main(argv: list[str]) -> int:
    with (SLICE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(["gcloud", *argv]) + "\n")
    script = json.loads((SLICE / "script.json").read_text())
    group, command, name = argv[2:5]
    failures = script.get("failures", {}).get(f"{group} {command}", [])
    if failures:
        text = failures.pop(0)
        (SLICE / "script.json").write_text(json.dumps(script))
        print(text, file=sys.stderr)
        return 1
    if command == "describe":
        return describe(script, "requests" if group == "queued-resources" else "nodes", name)
    if command == "delete":
        delete_workers()
    if command == "scp":
        for home in homes(script, argv):
            shutil.copy(argv[4], home)
    if command == "ssh":
        return ssh(script, argv)
    return 0


def describe(script: dict, kind: str, name: str) -> int:
    """Prints the next state; repeats the last one. A slice that is suspended or preempted loses its workers."""
    states = script[kind]
    state = states[0] if len(states) == 1 else states.pop(0)
    (SLICE / "script.json").write_text(json.dumps(script))
    if state == "ABSENT":
        print(GONE.format(name), file=sys.stderr)
        return 1
    if state.startswith(("SUSPEND", "PREEMPTED", "TERMINATED")):
        delete_workers()
    print(state if kind == "nodes" else (state + "||" if "|" not in state else state))
    return 0


def homes(script: dict, argv: list[str]) -> list[Path]:
    worker = next(item.partition("=")[2] for item in argv if item.startswith("--worker="))
    numbers = range(script["workers"]) if worker == "all" else [int(worker)]
    folders = [SLICE / f"worker-{number}" for number in numbers]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    return folders


def ssh(script: dict, argv: list[str]) -> int:
    """Runs the command line in every worker's home directory, through a shell, as sshd does."""
    line = argv[argv.index("--command") + 1]
    running = []
    for home in homes(script, argv):
        number = home.name.removeprefix("worker-")
        environment = os.environ | {"HOME": str(home), "WORKER": number, "PATH": os.environ["WORKER_PATH"]}
        running.append(subprocess.Popen(["bash", "-c", line], cwd=home, env=environment, stdin=subprocess.DEVNULL))
    codes = [process.wait() for process in running]
    for number, code in enumerate(codes):
        if code:
            print(f"##### Command execution on worker {number} failed with exit status {code}.", file=sys.stderr)
    return next((code for code in codes if code), 0)


def delete_workers() -> None:
    """Kills the workers' processes and deletes their folders."""
    for home in SLICE.glob("worker-*"):
        pid = home / "grpo-jax" / "run.pid"
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(home)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
