"""The program that runs in the sandbox: it sets limits, runs the code of a response, and says what calls returned.

Run as text, without the package: argv is limits, code, and what the tests need and call, as JSON. It never gets what
the calls should return: that is compared outside, so code that changes this program, its results or `==` gains nothing.
"""

import json
import os
import resource
import sys
from typing import Any

READY = b"ready\n"  # begins the output, before any of the code has run; its time begins here
BROKEN = b"error\n"  # begins it where the imports of the tests fail, before what they say
MOST_FILES = 32
LARGEST_FILE = 16 * 1024**2  # bytes
DEEPEST = 50  # levels of lists in lists


def limit(memory: int, seconds: int) -> None:
    """Sets limits that the code cannot raise again: bytes of memory, seconds of CPU time, files and their sizes."""
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, LARGEST_FILE),
        (resource.RLIMIT_NOFILE, MOST_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def written(value: Any, depth: int = 0) -> str:
    """The value as a Python literal; an error if it is anything but plain data."""
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    if value is None or type(value) in (bool, int, str, bytes, complex):
        return repr(value)
    if type(value) is float:
        return repr(value).replace("inf", "1e999")
    if isinstance(value, dict):
        items = (f"{written(key, depth + 1)}: {written(item, depth + 1)}" for key, item in dict.items(value))
        return "{" + ", ".join(items) + "}"
    parts = [written(item, depth + 1) for item in value] if isinstance(value, list | tuple | set | frozenset) else None
    if parts is None:
        raise TypeError(f"{type(value).__name__} is no plain data")
    if isinstance(value, list):
        return f"[{', '.join(parts)}]"
    if isinstance(value, tuple):
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    return "{" + ", ".join(parts) + "}" if parts else "set()"


def imported(imports: str) -> dict[str, Any]:
    """The names that the tests import; where that fails, the program ends and says so."""
    names: dict[str, Any] = {"__name__": "response"}
    try:
        exec(compile(imports, "imports", "exec"), names)
    except BaseException as error:
        os.write(1, BROKEN + f"{type(error).__name__}: {error}".encode())
        sys.exit(1)
    return names


def answer_calls(code: str, setup: str, calls: list[str], names: dict[str, Any]) -> None:
    """Writes a line for each call: its number, and what it returned; nothing after the number if it failed."""
    results, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what the code prints is not asked for
    exec(compile(code, "response", "exec"), names)
    exec(compile(setup, "setup", "exec"), names)
    for number, call in enumerate(calls):
        try:
            text = written(eval(call, names))
        except BaseException:  # the code may raise SystemExit, too
            text = ""
        os.write(results, f"{number} {text}\n".encode())


def main() -> None:
    """Runs the code as a program of its own, or, where there are calls, as a module that they are made to."""
    limits, code, tests = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    sys.argv = ["response"]
    limit(**limits)
    names = imported(tests["imports"])
    os.write(1, READY)
    if tests["calls"]:
        answer_calls(code, tests["setup"], tests["calls"], names)
    else:
        exec(compile(code, "response", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
