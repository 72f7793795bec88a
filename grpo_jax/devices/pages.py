"""Memory that a CPU's programs free, kept by the process for the next ones."""

import ctypes
import os
import platform
from glob import glob

# Of glibc's malloc.h; mallopt(3) says what they do.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def keep_pages() -> None:
    """Lets this process keep the memory that it frees, where a CPU does the work and glibc gives memory out.

    A step on a CPU takes and frees gigabytes, and new pages would cost a tenth of its time. The commands do so by
    themselves; research code calls it once, before it imports JAX, whose threads have their own ways otherwise.
    """
    if not _has_cpus_alone() or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def _has_cpus_alone() -> bool:
    """Whether JAX will use a CPU, as far as can be told without it."""
    named = os.environ.get("JAX_PLATFORMS")
    return named == "cpu" if named else not any(map(glob, ACCELERATORS))
