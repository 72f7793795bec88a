"""JAX runs strictly: silent broadcasting is an error, shapes are checked, eight CPU devices stand in for a slice."""

import logging
import os
import re
import signal
import sys
from pathlib import Path

PLATFORM = os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"  # 0 compiles twice as fast
if PLATFORM == "cpu":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " " + FLAGS
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # readline sets it in processes that tests run in, and commands would break lines
for number in (signal.SIGINT, signal.SIGHUP):  # a shell that starts tests in the background has them ignored, also
    if signal.getsignal(number) is signal.SIG_IGN:  # in processes that they start, and runs leave ignored signals so
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parent.parent / "grpo_jax"
# Every annotated shape is checked where it is called; structs are left out, as trees of them hold more than arrays.
CHECKED = [f"grpo_jax.{path.stem}" for path in PACKAGE.iterdir() if path.stem not in ("structs", "__init__")]
install_import_hook(CHECKED, "beartype.beartype").__enter__()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")  # two processes would read what the other is just writing
jax.config.update("jax_compilation_cache_dir", str(PACKAGE.parent / ".pytest_cache" / "xla" / WORKER))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(autouse=True, scope="module")
def forget_programs(tmp_path_factory):
    """Every loaded program holds memory maps, of which a process may have 65,530; the disk cache has them again.

    A module that a test wrote and imported is not what another test imports under the same name.
    """
    yield
    temporary = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(temporary):
            del sys.modules[name]
    jax.clear_caches()


@pytest.fixture(autouse=True)
def forget_commands():
    """A command that a test has run does not go on telling what it does."""
    yield
    logging.getLogger("grpo_jax").handlers.clear()
    logging.getLogger("grpo_jax").setLevel(logging.NOTSET)
    logging.getLogger("grpo_jax").propagate = True


@pytest.fixture(autouse=True)
def no_reports(monkeypatch):
    """Trainings of tests make no report, which would take each of them two seconds; test_report.py has its own."""
    monkeypatch.setattr("grpo_jax.training.reporting.Reporter._start", lambda reporter, nice: None)


@pytest.fixture(params=sorted((PACKAGE.parent / "configs").glob("gsm8k_*.yaml")), ids=lambda path: path.stem)
def tpu_config(request):
    """The path of a config for a TPU, and the slice that the command at its head plans it for."""
    return request.param, re.search(r"--topology (\S+)", request.param.read_text())[1]
