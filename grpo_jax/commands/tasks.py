"""`grpo-jax tasks`: the tasks that a config can name, with their settings."""

import argparse

from grpo_jax.commands import listing


def run(arguments: argparse.Namespace) -> int:
    """Prints all tasks, or one with all that is written about it. Returns the exit code."""
    return listing.run("task", arguments)
