"""The program of the child process that compares mathematical expressions: math-verify, and limits around it.

Run by path, without the package. It reads a JSON line [gold, answer, seconds], where the answer may be null, and writes
true or false: whether both are equal, or whether the gold can be read at all. What cannot be read equals nothing.
"""

import importlib
import json
import resource
import signal
import sys
from typing import Any

MEMORY = 2 * 1024**3  # bytes; a power of a power of a power would take all there is


def answers() -> None:
    """Answers each line of stdin on stdout. An expression that takes too long ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    library = importlib.import_module("math_verify")
    importlib.import_module("logging").disable()  # or each expression that cannot be read would be a line in the log
    reply, sys.stdout = sys.stdout, sys.stderr
    print("true", file=reply, flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # its default ends the process, whatever that is doing
        try:
            equal = _compare(library, gold, answer)
        except (Exception, RecursionError, MemoryError):
            equal = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(equal), file=reply, flush=True)


def _compare(library: Any, gold: str, answer: str | None) -> bool:
    """Without the timeouts of math-verify, which rely on a signal that native code does not notice."""
    expected = _read(library, gold)
    if answer is None:
        return any(not isinstance(value, str) for value in expected)
    return bool(library.verify(expected, _read(library, answer), timeout_seconds=None, raise_on_error=True))


def _read(library: Any, text: str) -> Any:
    return library.parse(text, parsing_timeout=None, raise_on_error=True)


if __name__ == "__main__":
    answers()
