"""The exit codes of `grpo-jax train`, each with what it means. Imports no JAX, so `--help` shows at once."""

COMPLETE = 0
FAILED = 1
MISTAKE = 2
NOT_FINITE = 65  # sysexits.h: EX_DATAERR
STEP_FAILED = 70  # EX_SOFTWARE
NOT_WRITTEN = 74  # EX_IOERR
RESUMABLE = 75  # EX_TEMPFAIL
LOST = 76
STUCK = 124  # as timeout(1)
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NOT_READ = 141  # 128 + SIGPIPE

MEANINGS = {
    COMPLETE: "the run is complete",
    FAILED: "any other error",
    MISTAKE: "a mistake in the command, the config or the files it names; nothing was trained",
    NOT_FINITE: "the updates of several steps in a row were not finite; the state before them is saved",
    STEP_FAILED: "a reward, an engine, an objective or anything else failed in a step; the last whole step is saved",
    NOT_WRITTEN: "the run directory could not be written: a full disk, or no permission",
    RESUMABLE: "told to stop by SIGTERM or SIGHUP, or its output was closed; saved, --resume goes on",
    LOST: "another host is missing; --resume goes on from the last checkpoint",
    STUCK: "a phase of a step took longer than train.watchdog_minutes; --resume goes on from the last checkpoint",
    INTERRUPTED: "Ctrl-C; the last whole step is saved",
    NOT_READ: "the output went to a command that stopped reading, such as head; training saves and ends with 75",
}


def table() -> str:
    """A line for each exit code."""
    return "\n".join(f"{code:>5}  {meaning}" for code, meaning in MEANINGS.items())


class RunError(Exception):
    """An error that ends a run with an exit code of its own. Its text is a sentence, which is all that is printed."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
