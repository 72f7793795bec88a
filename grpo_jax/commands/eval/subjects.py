"""What `grpo-jax eval` is asked to measure: which model, and which configs say how."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grpo_jax.config import Call, Config, ConfigError, find_config, read
from grpo_jax.models.runs import TrainedRun, find_run
from grpo_jax.saved.directory import CONFIG, RunDirectory

CONFIGS = (".yaml", ".yml")
NO_LEARNING = Call("grpo_jax.objectives:verifiable", {}, {"use": "default"}, "the objective")


@dataclass(frozen=True)
class Subject:
    """A task with the config that says how it is asked and scored."""

    name: str
    config: Config


@dataclass(frozen=True)
class Target:
    """What is measured: the run, if it is one, and a subject for each task."""

    run: TrainedRun | None
    subjects: Sequence[Subject]


def targeted(target: str, tasks: Sequence[str], overrides: Sequence[str]) -> Target:
    """What the arguments of the command stand for. Nothing that they name is imported yet."""
    path = _config_of(target)
    run = find_run(target) if path is None else None
    if run is not None:
        overrides, path = [f"model.name={json.dumps(run.name)}", *overrides], _config_of_run(run)
    if path is not None and (run is None or path.is_file()):
        return Target(run, _subjects(path, tasks, overrides))
    if not tasks:
        raise ConfigError(
            f"{target} is {'a run from Python' if run else 'no run and no config, so a model'}, which says no task to"
            " measure it with. Add --task arithmetic, or another one that `grpo-jax tasks` lists, or --task with a"
            " config."
        )
    name = target if run is None else run.name
    with tempfile.TemporaryDirectory() as folder:  # a config of defaults, which the command line completes
        path = Path(folder) / "evaluation.yaml"
        path.write_text("train: {steps: 1}\n", encoding="utf-8")
        return Target(run, _subjects(path, tasks, [f"model.name={json.dumps(name)}", *overrides]))


def _config_of(target: str) -> Path | None:
    """The config file that a target names; None if it is a run or a model."""
    if Path(target).expanduser().is_dir():
        return None
    try:
        path = find_config(target)
    except FileNotFoundError:
        if target.endswith(CONFIGS):
            raise
        return None
    if path.suffix not in CONFIGS:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"there is no config file {path}")
    return path


def _config_of_run(run: TrainedRun) -> Path:
    """The newest config of a run. One that was started from Python has none."""
    return next((path for path in reversed(RunDirectory(run.path).configs()) if path.is_file()), run.path / CONFIG)


def _subjects(path: Path, tasks: Sequence[str], overrides: Sequence[str]) -> list[Subject]:
    """A subject for each task, or the one of the config itself."""
    _find_modules_beside(path)
    if not tasks:
        config = read(path, overrides)
        return [_subject(config.task.target.rpartition(":")[2], config)]
    return [_subject(*_of_task(task, path, overrides)) for task in tasks]


def _of_task(task: str, path: Path, overrides: Sequence[str]) -> tuple[str, Config]:
    """A task by its name, with its own rewards, or that of another config with all that it says but the model."""
    if not task.endswith(CONFIGS):
        return task, replace(read(path, [*overrides, f"task={{use: {json.dumps(task)}}}"]), rewards=())
    other = find_config(task)
    _find_modules_beside(other)
    model = [override for override in overrides if override.startswith(("model.", "mesh."))]
    own = [override for override in overrides if override not in model]
    asked = read(path, [*model, "task={use: arithmetic}"])  # any task, as only model and mesh are looked at
    return other.stem, replace(read(other, own), model=asked.model, mesh=asked.mesh)


def _subject(name: str, config: Config) -> Subject:
    """A subject for which nothing is built that only learning needs."""
    return Subject(name, replace(config, objective=NO_LEARNING, teacher=None))


def _find_modules_beside(path: Path) -> None:
    """Lets `use: my_module:my_reward` find a module beside the config."""
    sys.path.append(str(path.parent.absolute()))
