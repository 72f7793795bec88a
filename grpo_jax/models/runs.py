"""A run as a model: its base model, and the weights of one of its saved steps."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from grpo_jax.devices.sharding import weight_shardings, with_shardings
from grpo_jax.saved.arrays import described, read_arrays, saved_shapes
from grpo_jax.saved.directory import CONFIG, METRICS, RUN, RunDirectory, settings_of
from grpo_jax.saved.manifest import MANIFEST
from grpo_jax.saved.steps import CHECKPOINTS, choose_step
from grpo_jax.structs import Params

PARTS = (CHECKPOINTS, "completions", "events")  # the folders of a run


@dataclass(frozen=True)
class TrainedRun:
    """A run directory, one of its saved steps, and the model that it was trained from.

    `template` holds the arguments that its chat template was given, `system` the system prompt of its task. `lora` are
    the settings of its adapters, if only these were trained, `digest` is that of the base that they belong to, and
    `int8` says whether this was in 8 bits.
    """

    path: Path
    step: int
    base: str
    template: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    lora: Mapping[str, Any] | None = None
    digest: str = ""
    int8: bool = False

    @property
    def name(self) -> str:
        """The run with its step, as `load` takes it."""
        return f"{self.path}@{self.step}"


def find_run(name: str) -> TrainedRun | None:
    """The run that a name such as runs/quickstart or runs/quickstart@24 stands for; None if it is that of a model."""
    path, step = Path(name).expanduser(), None
    named = re.fullmatch(r"(.+)@(\d+)", name)
    if named is not None and not path.exists():
        path, step = Path(named[1]).expanduser(), int(named[2])
    if is_run(path):
        adapters = adapters_of(path)
        found = TrainedRun(path, choose_step(path, step), base_of(path), template_of(path), system_of(path))
        if adapters is None:
            return found
        return replace(found, lora=adapters["settings"], digest=adapters["base"], int8=adapters.get("int8", False))
    if step is not None and path.is_dir():
        raise ValueError(f"Only a run has steps, and {path} is no run directory. Leave out @{step}, or name a run.")
    _refuse_other_folders(path)
    return None


def is_run(path: Path) -> bool:
    """Whether a directory is that of a run."""
    return (
        path.is_dir()
        and not (path / "config.json").exists()
        and any((path / name).exists() for name in (RUN, CHECKPOINTS, METRICS))
    )


def base_of(path: Path) -> str:
    """The model that a run was trained from. A run that began with the weights of another has the same base."""
    found = RunDirectory(path)
    base = found.identity().get("model")
    if base is None:
        base = _text_setting(path, "model.name")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{path} does not say which model it was trained from, as its model was made in Python. Write the name of"
            f' one with this config and tokenizer into {path / RUN}, as "model": "NAME".'
        )
    return base


def template_of(path: Path) -> dict[str, Any]:
    """The arguments of the chat template that a run was trained with."""
    found = RunDirectory(path).identity().get("template", {})
    if not isinstance(found, dict):
        raise ValueError(f"{path / RUN}: template must hold the arguments of a chat template; got {found!r}.")
    return found


def adapters_of(path: Path) -> dict[str, Any] | None:
    """The `settings` of the adapters that a run trained, and the digest of their `base`; None if it trained all."""
    found = RunDirectory(path).identity().get("adapters")
    if found is not None and not (isinstance(found, dict) and {"settings", "base"} <= found.keys()):
        raise ValueError(f"{path / RUN}: adapters must have settings and base; got {found!r}. Put a copy of it there.")
    return found


def system_of(path: Path) -> str:
    """The system prompt of the task that a run was trained with; nothing if there was none."""
    found = _text_setting(path, "task.system")
    return "" if found == "null" else found


def _text_setting(path: Path, name: str) -> str:
    """A setting of a run's config that is a text; nothing if it is not there."""
    if not (path / CONFIG).is_file():
        return ""
    text = settings_of(RunDirectory(path).config()).get(name, ("", ""))[0]
    return json.loads(text) if text.startswith('"') else text


def _refuse_other_folders(path: Path) -> None:
    """Refuses a folder of runs, and one within a run: each with what to write instead."""
    if (path / "config.json").exists() or not path.is_dir():
        return
    runs = sorted(each for each in path.iterdir() if is_run(each))
    if runs:
        raise FileNotFoundError(f"{path} is a folder of runs, not one of them. Name a run, such as {runs[-1]}.")
    for parent in path.resolve().parents[:3]:
        if is_run(parent) and path.resolve().relative_to(parent).parts[0] in PARTS:
            step = f"@{path.name}" if path.name.isdecimal() else ""
            raise FileNotFoundError(f"{path} is a part of a run. Name the run instead: {parent}{step}.")


def read_weights(run: TrainedRun, shapes: Params, mesh: Mesh) -> Params:
    """The weights of a run's step, each device reading its part. The optimiser's state is not read."""
    checkpoints = run.path / CHECKPOINTS
    like = {"params": with_shardings(shapes, weight_shardings(shapes, mesh))}
    try:
        _check_shapes(run, saved_shapes(checkpoints, run.step), described(like))
        return read_arrays(checkpoints, run.step, like)["params"]
    except OtherModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(
            f"{checkpoints / str(run.step)} cannot be read ({type(error).__name__}: {error}). Name another step, or put"
            " a copy of this one there."
        ) from error


def read_adapters(run: TrainedRun, shapes: Params, mesh: Mesh) -> Params:
    """The adapters of a run's step, each device reading its part."""
    return read_weights(run, {"lora": shapes}, mesh)["lora"]


def manifest_digest(run: TrainedRun) -> str:
    """A digest of the files of a run's step."""
    manifest = run.path / CHECKPOINTS / str(run.step) / MANIFEST
    return hashlib.sha256(manifest.read_bytes() if manifest.is_file() else run.name.encode()).hexdigest()[:16]


class OtherModelError(ValueError):
    """A run has the weights of another model than the one that is now found under the name of its base."""


def _check_shapes(run: TrainedRun, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Refuses weights of another model than the base: one whose files have changed since, or another of its name."""
    sizes = {name: text.partition(" ")[2] for name, text in saved.items() if name.startswith("params/")}
    expected = {name: text.partition(" ")[2] for name, text in wanted.items()}
    different = sorted(name for name in sizes.keys() | expected.keys() if sizes.get(name) != expected.get(name))
    if different:
        name = different[0]
        raise OtherModelError(
            f"{run.path}, step {run.step}, has the weights of another model than {run.base}:"
            f" {name.removeprefix('params/')} is {sizes.get(name, 'not')} in it, and {expected.get(name, 'not')} in"
            f" {run.base} ({len(different)} differ). Put back the model that the run was trained from, or write its"
            f' name into {run.path / RUN}, as "model": "NAME".'
        )
