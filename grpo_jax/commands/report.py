"""`grpo-jax report`: a run as a page of HTML, or several of them side by side on one page."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_jax.commands.printing import print_json
from grpo_jax.config import ConfigError
from grpo_jax.report.diagnosis import diagnoses
from grpo_jax.report.headline import headline
from grpo_jax.report.page import write_comparison, write_report
from grpo_jax.report.reading import read_run

COMPARISON = "comparison.html"  # in the current folder, as it belongs to no single run


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, and prints its path, or as JSON what was learned; the exit code."""
    runs = [Path(run) for run in arguments.runs]
    page = _written(runs, None if arguments.out is None else Path(arguments.out))
    if arguments.json:
        print_json(arguments, {"page": str(page), "runs": [_learned(run) for run in runs]})
    else:
        print(page)
    return 0


def _written(runs: Sequence[Path], out: Path | None) -> Path:
    """The page, once it is written."""
    try:
        if len(runs) == 1:
            return write_report(runs[0], out)
        return write_comparison(runs, Path(COMPARISON) if out is None else out)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise  # it is a sentence
        raise ConfigError(f"The report cannot be written ({error.strerror}). Give another file: --out FILE.") from error


def _learned(run: Path) -> dict[str, Any]:
    """The headline of a run, and what is wrong with it, as JSON has them."""
    found = read_run(run)
    head = headline(found)
    wrong = [{"title": each.title, "text": each.text} for each in diagnoses(found)]
    return {"run": str(run), **dataclasses.asdict(head), "verdict": head.verdict, "wrong": wrong}
