"""`grpo-jax watch`: a run in the terminal, from its files alone: also over ssh, and while the run goes on."""

import argparse
import io
import sys
from pathlib import Path

from grpo_jax.report.terminal import show_once, watch


def run(arguments: argparse.Namespace) -> int:
    """Shows the run, again and again until Ctrl-C where somebody looks; the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # answers hold characters that not every terminal knows
    if arguments.once or not sys.stdout.isatty():
        show_once(Path(arguments.run))
    else:
        watch(Path(arguments.run), arguments.seconds)
    return 0
