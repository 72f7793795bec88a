"""`grpo-jax config`: prints a config with every default, and where each value was written."""

import argparse

from grpo_jax.config import render


def run(arguments: argparse.Namespace) -> int:
    """Prints the config; returns the exit code."""
    print(render(arguments.config), end="")
    return 0
