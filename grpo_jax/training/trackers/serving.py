"""The program of the process in which a library logs metrics: child.py starts it, and tells it what to log."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from grpo_jax.redaction import print_redacted, redact

NICE = 10  # training comes first


class Opened:
    """A run in a library: how to log a step and how to finish, and where a person finds it."""

    def __init__(self, log: Callable[[int, Mapping[str, float]], Any], finish: Callable[[bool], Any], place: str):
        self.log, self.finish, self.place = log, finish, place


def open_wandb(run: Mapping[str, Any], options: Mapping[str, Any]) -> Opened:
    """A run in Weights & Biases. Steps are a column, as its own counter refuses one that is amended later.

    Nothing is sent of the code, of its changes, or of what is printed.
    """
    wandb = importlib.import_module("wandb")
    settings = wandb.Settings(console="off", disable_code=True, disable_git=True)
    known = {"id": run["id"], "name": run["name"], "dir": run["path"], "config": run["settings"]}
    found = wandb.init(**options, **known, resume="allow", settings=settings)
    found.define_metric("step")
    found.define_metric("*", step_metric="step")
    folder = Path(run["path"]) / "wandb"
    return Opened(
        lambda step, metrics: found.log({**metrics, "step": step}),
        lambda complete: found.finish(exit_code=0 if complete else 1),
        found.url or f"offline; wandb sync {folder}/offline-run-* uploads it",
    )


def open_trackio(run: Mapping[str, Any], options: Mapping[str, Any]) -> Opened:
    """A run in trackio, which knows runs by name: so the id is a part of it."""
    trackio = importlib.import_module("trackio")
    name = f"{run['name']}-{run['id']}"
    quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    found = trackio.init(**options, **quiet, name=name, config=dict(run["settings"]), resume="allow")
    shown = options["space_id"] or f"trackio show --project {options['project']} shows it"
    return Opened(
        lambda step, metrics: found.log(dict(metrics), step=step), lambda complete: found.finish(), f"{name}; {shown}"
    )


OPENS = {"wandb": open_wandb, "trackio": open_trackio}


def serve(outcome: int) -> None:
    """Does what the lines of standard input say, and answers each on standard output. At their end it finishes.

    The pipe with the descriptor `outcome` has a byte then if the run is complete.
    """
    os.nice(NICE)
    sys.excepthook = print_redacted
    lines, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # it may ask for nothing
    os.dup2(2, 1)  # and what it prints is not an answer
    opened = None
    for line in lines:
        message = json.loads(line)
        error = ""
        try:
            if opened is None:
                opened = OPENS[message["library"]](message["run"], message["options"])
            else:
                opened.log(message["step"], message["metrics"])
        except Exception as failure:
            error = redact(f"{type(failure).__name__}: {failure}")
        _answer(answers, {"error": error, "place": "" if opened is None else opened.place})
        if opened is None:
            break
    if opened is not None:
        opened.finish(os.read(outcome, 1) != b"")


def _answer(answers: TextIO, answer: Mapping[str, Any]) -> None:
    """Answers the run, which may have ended."""
    try:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    except OSError:
        return
