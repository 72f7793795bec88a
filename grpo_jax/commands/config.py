"""`grpo-jax config`: the resolved config, with where each value was written."""

import argparse

from grpo_jax.config import read, render


def run(arguments: argparse.Namespace) -> int:
    print(render(read(arguments.config, arguments.overrides)), end="")
    return 0
