"""What can be seen of this machine and this Python: the facts that the checks judge."""

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import grpo_jax
from grpo_jax.commands.doctor.installed import all_versions, requirements
from grpo_jax.commands.doctor.probe import SECONDS, Answer, ask_jax
from grpo_jax.devices.folders import cache_folder, programs_folder
from grpo_jax.devices.process import WITHOUT_TPU, tpu_chips
from grpo_jax.redaction import HIDDEN, is_secret, redact

NVIDIA = "/dev/nvidia[0-9]*"
DRIVER = Path("/proc/driver/nvidia/version")
VARIABLES = re.compile(
    r"(JAX|XLA|LIBTPU|TPU|CUDA|HF|GRPO_JAX)_\w+|TRANSFORMERS_OFFLINE|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV"
    r"|CONDA_PREFIX|XDG_CACHE_HOME|https?_proxy|HTTPS?_PROXY",
)
PASSWORD = re.compile(r"(?<=//)[^/@\s]+@")  # the name and password in a URL
GiB = 1024**3


@dataclass(frozen=True)
class Folder:
    """Where something is written: the bytes that are free there, and whether it can be written to."""

    path: str
    free: int
    writable: bool


@dataclass(frozen=True)
class Facts:
    """All that the checks know. What stays at its default was not found, or is not there."""

    python: tuple[int, ...] = (3, 11, 0)
    bits: int = 64
    system: str = "Linux"
    machine: str = "x86_64"
    named: str = ""  # the operating system, as Python names it
    package: str = ""  # where this package is imported from
    versions: dict[str, str] = field(default_factory=dict)
    asked: dict[str, list[str]] = field(default_factory=dict)  # what packages ask of each other
    variables: dict[str, str] = field(default_factory=dict)
    chips: tuple[str, ...] = ()  # device files of TPU chips
    gpus: tuple[str, ...] = ()  # device files of NVIDIA GPUs
    driver: str | None = None  # the version of NVIDIA's
    holders: tuple[str, ...] = ()  # other processes that have a TPU chip open
    folders: dict[str, Folder] = field(default_factory=dict)
    processors: int = 1
    memory: int | None = None  # bytes that are free
    sandbox: str | None = None  # why code of responses cannot be run; None if it can
    seconds: float = SECONDS  # that JAX had for its answer
    jax: Answer = field(default_factory=Answer)


def look(seconds: float) -> Facts:
    """Looks at everything; JAX has so many seconds to answer."""
    folder = Path(grpo_jax.__file__).parent
    chips = tuple(sorted(tpu_chips()))
    return Facts(
        python=tuple(sys.version_info[:3]),
        bits=64 if sys.maxsize > 2**32 else 32,
        system=platform.system(),
        machine=platform.machine(),
        named=platform.platform(),
        package=str(folder),
        versions=all_versions(),
        asked=requirements(folder.parent),
        variables=shown_variables(),
        chips=chips,
        gpus=tuple(sorted(glob(NVIDIA))),
        driver=driver_version(),
        holders=holders(chips),
        folders=folders(),
        processors=processors(),
        memory=free_memory(),
        sandbox=sandbox(),
        seconds=seconds,
        jax=ask_jax(seconds),
    )


def shown_variables() -> dict[str, str]:
    """The environment variables that change what JAX and the libraries do, without secrets."""
    given = {name: value for name, value in sorted(os.environ.items()) if WITHOUT_TPU.get(name) != value}
    chosen = {name: value for name, value in given.items() if VARIABLES.fullmatch(name)}
    return {name: HIDDEN if is_secret(name) else PASSWORD.sub(f"{HIDDEN}@", redact(v)) for name, v in chosen.items()}


def driver_version() -> str | None:
    """The version of NVIDIA's driver, from Linux."""
    try:
        found = re.search(r"\s(\d{3,}\.\d+(\.\d+)?)\s", DRIVER.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def holders(files: tuple[str, ...]) -> tuple[str, ...]:
    """The processes that have one of the files open, as far as Linux shows them to this user."""
    wanted = {os.path.realpath(file) for file in files}
    found = []
    for link in glob("/proc/[0-9]*/fd/*") if wanted else ():
        try:
            process = link.split("/")[2]
            if os.path.realpath(link) in wanted and int(process) != os.getpid():
                name = Path("/proc", process, "comm").read_text(encoding="utf-8", errors="replace").strip()
                found.append(f"{process} ({name})")  # its arguments may hold secrets
        except OSError:  # it ended, or belongs to somebody else
            continue
    return tuple(dict.fromkeys(found))


def folders() -> dict[str, Folder]:
    """Where runs, compiled programs and downloads are written."""
    hub = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    named = {"runs": Path.cwd(), "programs": programs_folder(), "converted models": cache_folder(), "downloads": hub}
    return {name: _folder(Path(path)) for name, path in named.items()}


def _folder(path: Path) -> Folder:
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return Folder(str(path), shutil.disk_usage(there).free, os.access(there, os.W_OK))


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """The bytes of memory that are free, within the limit of a container; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", lines)
    limits = [int(found[1]) * 1024] if found else []
    with_group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((with_group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        limits += [] if limit == "max" else [int(limit) - int(used)]
    except (OSError, ValueError):  # no container, or one of another kind
        pass
    return min(limits) if limits else None


def sandbox() -> str | None:
    """Why the code of responses cannot be run on this machine; None if it can."""
    try:
        from grpo_jax.rewards.isolation import require_isolation

        require_isolation()
    except (OSError, ImportError) as error:
        return str(error)
    return None
