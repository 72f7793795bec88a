"""Settings of the process that are made before JAX starts, and the accelerators of this machine. Imports no JAX."""

import ctypes
import os
import platform
from glob import glob

# Device files of accelerators.
TPUS = ("/dev/accel*", "/dev/vfio/[0-9]*")
ACCELERATORS = (*TPUS, "/dev/nvidia[0-9]*", "/dev/kfd")
# Options of glibc's malloc.h; mallopt(3) explains them.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# On a machine without a TPU, libtpu asks a metadata server that is not there, and prints errors. These answer instead;
# compiling works with any accelerator type.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two `plan` processes use no chip that they would have to share
}


def tpu_chips() -> list[str]:
    """The device files of this machine's TPU chips."""
    return [file for pattern in TPUS for file in glob(pattern)]


def silence_tpu_library() -> None:
    """Keeps libtpu silent on a machine that has it for compiling only. To be called before JAX starts."""
    if not tpu_chips():
        for name, value in WITHOUT_TPU.items():
            os.environ.setdefault(name, value)


def keep_pages() -> None:
    """Lets this process keep the memory that it frees, if JAX computes on CPUs and the C library is glibc.

    A training step on a CPU allocates and frees gigabytes, and getting new pages would take a tenth of its time. The
    commands call this; research code calls it once, before it imports JAX, whose threads else get arenas of their own.
    """
    if not _has_cpus_alone() or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def memory_maps() -> int:
    """How many memory maps this process holds; 0 where /proc does not tell."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def most_memory_maps() -> int:
    """How many memory maps Linux allows a process, which aborts if it asks for one more."""
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 65_530  # Linux's default


def _has_cpus_alone() -> bool:
    """Whether JAX will use CPUs alone, judged without importing it."""
    platforms = os.environ.get("JAX_PLATFORMS")
    return platforms == "cpu" if platforms else not any(map(glob, ACCELERATORS))
