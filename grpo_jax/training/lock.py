"""One process at a time writes into a run directory: the others are refused, with the name of the one that does."""

import errno
import fcntl
import logging
import os
import socket
import weakref
from pathlib import Path
from typing import TextIO

LOCK = "lock"
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Lock:
    """Holds a run directory until it is closed, or the process ends, however it ends.

    The file stays; it is `flock` that counts, and the system gives it back when a process dies. Where the file system
    has no locks, a warning says so.
    """

    def __init__(self, path: Path):
        self.file: TextIO | None = (path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._refuse(path, error)
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()
        own = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close(own()))  # or a forked child would hold the run after its end

    def _refuse(self, path: Path, error: OSError) -> None:
        """Raises for a directory that is in use; warns where it cannot be known."""
        if error.errno in UNSUPPORTED:
            logging.getLogger("grpo_jax").warning(
                "warning: the file system of %s has no locks: take care that no other process writes there", path
            )
            return
        holder = (path / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "another process"
        self.close()
        raise ValueError(
            f"{path} is in use by {holder}. Wait until it has ended or stop it; or start a run of another name."
        ) from error

    def close(self) -> None:
        """Lets other processes have the directory."""
        if self.file is not None:
            self.file.close()
            self.file = None


def _close(lock: Lock | None) -> None:
    if lock is not None:
        lock.close()
