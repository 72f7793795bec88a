"""`grpo-jax objectives`: the objectives that a config can name, with their settings and what each is made of."""

import argparse
import importlib

from grpo_jax.commands import listing


def run(arguments: argparse.Namespace) -> int:
    """Prints all objectives, a table of their choices, or one with all that is written about it; the exit code."""
    if arguments.table or arguments.markdown:
        return _presets().run(arguments)
    return listing.run("objective", arguments, lambda name: _presets().choices(name))


def _presets():
    """The module that builds objectives, which imports JAX; the others are read from text."""
    return importlib.import_module("grpo_jax.commands.presets")
