"""`grpo-jax checkpoint`: which checkpoints a run has, and whether their files are what was saved."""

import argparse
import dataclasses
from pathlib import Path

from grpo_jax.commands.printing import print_json, show
from grpo_jax.saved.manifest import Verdict, list_step, steps_in, verify


def run(arguments: argparse.Namespace) -> int:
    """Prints a line for each step; the exit status is 1 if the newest cannot be used."""
    folder = Path(arguments.run) / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{arguments.run} has no folder of checkpoints; give the directory of a run.")
    look = verify if arguments.action == "verify" else list_step
    verdicts = [look(folder / str(step)) for step in steps_in(folder)]
    if arguments.json:
        print_json(arguments, [dataclasses.asdict(verdict) for verdict in verdicts])
    else:
        text = "\n".join(["step        size  files", *map(_line, verdicts)])
        show(text if verdicts else f"{arguments.run} has no checkpoint yet")
    return int(bool(verdicts) and verdicts[-1].status in ("damaged", "unfinished"))


def _line(verdict: Verdict) -> str:
    extra = f"; not in its manifest: {', '.join(verdict.extra)}" if verdict.extra else ""
    reason = f": {verdict.reason}" if verdict.reason else ""
    return f"{verdict.step:<6} {verdict.size / 1e6:>8.1f} MB  {verdict.status}{reason}{extra}"
