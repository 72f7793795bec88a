"""What JAX finds on this machine, in a process of its own: it may hang, or end the process.

Each stage is announced by a line of JSON before it begins, so that the parent knows where it stopped.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Generator
from typing import Any

MARK = "grpo-jax doctor: "  # before each line, since libraries print to standard output, too
SIZE, PRODUCT = 128, 128.0**3  # of the matrix of ones, and the sum of its product with itself: exact in bfloat16


class Reasons(logging.Handler):
    """Keeps why JAX could not use a platform, which it only logs where another platform is left."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the message of a log record."""
        self.texts.append(record.getMessage())


def main() -> None:
    """Runs the stages. All but the first are tried whatever became of those before."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a training may be running beside this
    reasons = Reasons()
    logger = logging.getLogger("jax._src.xla_bridge")
    logger.addHandler(reasons)
    logger.setLevel(logging.INFO)
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "import jax": _import_jax,
        "import grpo_jax": _import_package,
        "find devices": _find_devices,
        "compute": _compute,
    }
    for name, stage in stages.items():
        with _told(name):
            _tell(result=stage())
    _tell(reasons=reasons.texts, done=True)


@contextlib.contextmanager
def _told(name: str) -> Generator[None]:
    """Tells that a stage begins, and how it ended."""
    _tell(stage=name)
    begun = time.monotonic()
    try:
        yield
    except BaseException as error:
        _tell(error=f"{type(error).__name__}: {error}")
        if name == "import jax":
            raise SystemExit(0) from error
    else:
        _tell(seconds=time.monotonic() - begun)


def _tell(**what: Any) -> None:
    print(f"\n{MARK}{json.dumps(what)}", flush=True)


def _import_jax() -> dict[str, Any]:
    import jax

    return {"jax": jax.__version__, "folder": os.path.dirname(str(jax.__file__))}


def _import_package() -> dict[str, Any]:
    import grpo_jax.training  # nearly all of the package, with Flax, Optax, Orbax and transformers

    return {"package": os.path.dirname(os.path.dirname(grpo_jax.training.__file__))}


def _find_devices() -> dict[str, Any]:
    import jax

    devices = jax.local_devices()
    stats = [getattr(device, "memory_stats", dict)() or {} for device in devices]
    limits = [stat["bytes_limit"] for stat in stats if "bytes_limit" in stat]
    return {
        "platform": devices[0].platform,
        "kinds": sorted({device.device_kind for device in devices}),
        "devices": len(devices),
        "hosts": jax.process_count(),
        "memory": min(limits) if len(limits) == len(devices) else None,
    }


def _compute() -> dict[str, Any]:
    import jax

    ones = jax.numpy.ones((SIZE, SIZE))
    return {"computed": float(jax.jit(lambda x: (x @ x).sum())(ones))}


if __name__ == "__main__":
    main()
