"""`grpo-jax export`: writes a run, or a model, for transformers or for PEFT, and sends it to the hub."""

import argparse
import sys
from pathlib import Path

import jax

from grpo_jax.config import ConfigError
from grpo_jax.devices.mesh import Layout
from grpo_jax.learner.finite import check_weights
from grpo_jax.models import export, load
from grpo_jax.models.exporting import check_free
from grpo_jax.models.hub import ADAPTER, check_push, push
from grpo_jax.models.load import load_apart
from grpo_jax.models.runs import find_run, is_run


def run(arguments: argparse.Namespace) -> int:
    """Writes the directory; returns the exit code. Uses the CPU, as a training may be using what is faster."""
    jax.config.update("jax_platforms", "cpu")
    address = None
    try:
        check_free(Path(arguments.out).expanduser().absolute())  # before minutes of work
        if arguments.push is not None:
            check_push(arguments.push)
        mesh = Layout().mesh(jax.devices()[:1])
        model = (load_apart if arguments.adapter else load)(_name(arguments))
        params = {"lora": model.adapters(mesh)} if arguments.adapter and model.adapters else model.params(mesh)
        check_weights(params, arguments.model)
        directory = export(model, params, arguments.out, arguments.dtype, adapter=arguments.adapter)
        print(f"{arguments.model} is in {directory}", file=sys.stderr)
        base = "" if model.origin is None else model.origin.base
        if arguments.adapter and base and find_run(base) is not None:
            print(
                f"its adapters belong to the run {base}, which PEFT cannot load: grpo-jax export {base} --out DIRECTORY"
                f" writes that, to be named in {directory / ADAPTER} and in from_pretrained",
                file=sys.stderr,
            )
        if arguments.push is not None:
            address = push(directory, arguments.push)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    if address is not None:
        print(address)
    return 0


def _name(arguments: argparse.Namespace) -> str:
    """The model, or the run with the step that --step names."""
    if arguments.step is None:
        return arguments.model
    if not is_run(Path(arguments.model).expanduser()):
        raise ConfigError(f"--step names a step of a run, and {arguments.model} is no run directory. Leave it out.")
    return f"{arguments.model}@{arguments.step}"
