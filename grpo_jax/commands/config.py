"""`grpo-jax config`: the resolved config, with where each value was written."""

import argparse

from grpo_jax.config import render


def run(arguments: argparse.Namespace) -> int:
    print(render(arguments.config), end="")
    return 0
