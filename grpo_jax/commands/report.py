"""`grpo-jax report`: a run as a page of HTML, or several of them side by side on one page."""

import argparse
from pathlib import Path

from grpo_jax.config import ConfigError
from grpo_jax.report.page import write_comparison, write_report

COMPARISON = "comparison.html"  # in the current folder, as it belongs to no single run


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, and prints its path; the exit code."""
    runs = [Path(run) for run in arguments.runs]
    out = None if arguments.out is None else Path(arguments.out)
    try:
        if len(runs) == 1:
            print(write_report(runs[0], out))
        else:
            print(write_comparison(runs, Path(COMPARISON) if out is None else out))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise  # it is a sentence
        raise ConfigError(f"The report cannot be written ({error.strerror}). Give another file: --out FILE.") from error
    return 0
