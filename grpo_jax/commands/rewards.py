"""`grpo-jax rewards`: the rewards that a config can name, with their settings."""

import argparse

from grpo_jax.commands import listing


def run(arguments: argparse.Namespace) -> int:
    """Prints all rewards, or one with all that is written about it. Returns the exit code."""
    return listing.run("rewards", arguments)
