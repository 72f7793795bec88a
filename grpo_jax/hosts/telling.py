"""What is printed: the log messages of the library, and of an error that ends a run a sentence."""

import logging
import os
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

from grpo_jax.hosts.codes import FAILED, INTERRUPTED, MISTAKE, RunError
from grpo_jax.hosts.signals import say
from grpo_jax.redaction import redact

PACKAGE = Path(__file__).parent.parent
LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


class Announcements(logging.Handler):
    """Prints the log messages of the library, such as that it compiles a program."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.INFO)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the message of a log record."""
        self.say(record.getMessage())


def announce(say: Callable[[str], None], level: int | None = None) -> None:
    """From now on the log messages of the library are printed by `say`, and by nothing else.

    They are those of a `level` and above; None leaves it as it is, which is INFO unless somebody has set it.
    """
    logger = logging.getLogger("grpo_jax")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, Announcements)]
    logger.addHandler(Announcements(say))
    if level is not None or logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO if level is None else level)
    logger.propagate = False  # or a library that configures the root logger makes every line appear twice


def redraws(terminal: bool) -> bool:
    """Whether a line can be drawn anew: on a terminal, unless TERM says that it is a dumb one."""
    return terminal and os.environ.get("TERM") != "dumb"


def tell(error: BaseException, mistakes: tuple[type[Exception], ...] = (), otherwise: int = FAILED) -> tuple[int, str]:
    """Prints an error; its exit code, and its text for other hosts.

    A mistake and a `RunError` are sentences. Where code of the user failed, the part of the traceback that lies in it
    comes first. Everything else is shown whole: it may be an error of this library, and has to be reported.
    """
    if isinstance(error, KeyboardInterrupt):
        say("\ninterrupted; all other hosts end, too")
        return INTERRUPTED, "it was interrupted"
    text = sentence(error)
    if isinstance(error, (*mistakes, RunError)):
        say(f"error: {text}")
        return (error.code if isinstance(error, RunError) else MISTAKE), text
    frames = frames_of_user(error)
    if frames:
        say("".join(traceback.format_list(frames)).rstrip())
    elif not of_this_package(error):
        say("".join(traceback.format_exception(error)).rstrip())
    say(f"error: {text}")
    return otherwise, text


def sentence(error: BaseException) -> str:
    """The error and, if it has been noted, what is saved."""
    named = isinstance(error, RunError) or of_this_package(error)
    text = str(error) if named else f"{type(error).__name__}: {error}"
    return redact(" ".join([text, *getattr(error, "__notes__", [])[-1:]]))


def of_this_package(error: BaseException) -> bool:
    """Whether this package raised the error itself, so that its text is a sentence with a way out."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError | OSError) and (not frames or _is_ours(frames[-1]))


def frames_of_user(error: BaseException) -> list[traceback.FrameSummary]:
    """The end of the traceback that lies in code of the user, and in what that called; empty if there is none."""
    if of_this_package(error) and error.__cause__ is not None:
        error = error.__cause__  # an error of a reward, whose name and example this package has added
    frames = list(traceback.extract_tb(error.__traceback__))
    last = max((index for index, frame in enumerate(frames) if _is_ours(frame)), default=-1)
    rest = frames[last + 1 :]
    installed = not rest or any(Path(rest[0].filename).is_relative_to(library) for library in LIBRARIES)
    return [] if installed else rest


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(PACKAGE)


def is_quiet() -> bool:
    """Whether only warnings and errors are to be told: progress is left out."""
    return not logging.getLogger("grpo_jax").isEnabledFor(logging.INFO)
