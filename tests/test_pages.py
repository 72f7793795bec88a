"""`keep_pages` keeps freed memory with the process if JAX computes on CPUs."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
from grpo_jax.devices import process

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

process.ACCELERATORS = sys.argv[2:]
if sys.argv[1] == "keep":
    process.keep_pages()
before = resident()
large = np.ones(2**25)
del large
print((resident() - before) * 1024 > 2**27)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options of malloc")
@pytest.mark.parametrize(
    ("words", "platforms", "kept"),
    [
        (["keep"], "cpu", True),
        (["keep"], "", True),
        (["leave"], "cpu", False),
        (["keep", "/dev/null"], "", False),  # a file that exists stands for an accelerator
        (["keep"], "tpu,cpu", False),
    ],
)
def test_keep_pages_keeps_freed_memory_only_if_there_are_no_accelerators(words, platforms, kept):
    variables = os.environ | {"JAX_PLATFORMS": platforms}
    command = [sys.executable, "-c", PROGRAM, *words]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert result.stdout == f"{kept}\n"
