"""What is said of a reward that raised an exception, with the line of the user's own code that did."""

import linecache
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from grpo_jax.hosts.signals import StopRequested

PACKAGE = Path(__file__).parent.parent
INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class TimeUpError(BaseException):
    """Raised inside a reward at its deadline. It is no Exception, so that a reward does not catch it by accident."""


NO_FAILURES = (KeyboardInterrupt, StopRequested, TimeUpError)  # which end scoring; all else is a failure of a reward


class UnusableError(ConnectionError):
    """A reward of this package can judge no response at all. It ends the run, and its message has the way out."""


class RemoteError(Exception):
    """A reward has raised an exception in a worker. The text has its type, its message and its line."""


def described(error: BaseException) -> str:
    """The exception, and the last line of the user's code that it came through."""
    if isinstance(error, RemoteError):
        return str(error)
    while isinstance(error, BaseExceptionGroup):  # of asyncio.TaskGroup: the first that failed
        error = error.exceptions[0]
    text = f"{type(error).__name__}: {error}".rstrip(" .:")
    line = own_line(error.__traceback__)
    return f"{text} ({line})" if line else text


def own_line(stack: TracebackType | None) -> str:
    """File, line and text of the innermost frame that is neither Python's, nor installed, nor of this package."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(stack)]
    own = [(file, line) for file, line in frames if not any(map(Path(file).is_relative_to, (PACKAGE, *INSTALLED)))]
    if not own:
        return ""
    file, line = own[-1]
    text = linecache.getline(file, line).strip()
    return f"{Path(file).name}:{line}: {text}" if text else f"{Path(file).name}:{line}"
