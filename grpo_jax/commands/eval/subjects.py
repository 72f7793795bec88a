"""What `grpo-jax eval` is asked to measure: which model, and which configs say how."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grpo_jax.commands.modules import find_modules_in
from grpo_jax.config import Call, Config, ConfigError, find_config, read
from grpo_jax.config.overrides import read_override
from grpo_jax.models.runs import TrainedRun, find_run, is_run
from grpo_jax.saved.directory import CONFIG, RunDirectory
from grpo_jax.training.trackers.tracker import numbered

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
    if path is None and any(_key(override) == ("model", "name") for override in overrides):
        raise ConfigError(
            f"{target} is what is measured, so model.name cannot name another model. Leave it out, or write that model"
            f" in place of {target}."
        )
    if run is not None:
        overrides, path = [f"model.name={json.dumps(run.name)}", *overrides], _config_of_run(run)
    if path is not None and (run is None or path.is_file()):
        return Target(run, _subjects(path, tasks, overrides))
    if run is None:
        _refuse_missing(target)
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


def _refuse_missing(target: str) -> None:
    """Refuses a path to nothing in a folder of runs, which would be taken for the name of a model on the hub."""
    path = Path(target).expanduser()
    runs = sorted(each.name for each in path.parent.iterdir() if is_run(each)) if path.parent.is_dir() else []
    if runs and "/" in target and not path.exists():
        raise FileNotFoundError(f"there is no {target}; the runs in {path.parent} are {', '.join(runs)}")


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
    find_modules_in(path.parent)
    if not tasks:
        config = read(path, overrides)
        return [_subject(config.task.target.rpartition(":")[2], config)]
    found = [_of_task(task, path, overrides) for task in tasks]
    names = numbered([name for name, _ in found])  # as each task has a folder of answers
    return [_subject(name, config) for name, (_, config) in zip(names, found, strict=True)]


def _of_task(task: str, path: Path, overrides: Sequence[str]) -> tuple[str, Config]:
    """A task by its name, with its own rewards unless others are given, or that of another config with all that it says
    but the model.
    """
    if not task.endswith(CONFIGS):
        return task, _of_name(task, path, overrides)
    other = find_config(task)
    find_modules_in(other.parent)
    model = [override for override in overrides if _key(override)[0] in ("model", "mesh")]
    own = [override for override in overrides if override not in model]
    asked = read(path, [*model, "task={use: arithmetic}"])  # any task, as only model and mesh are looked at
    return other.stem, replace(read(other, own), model=asked.model, mesh=asked.mesh)


def _of_name(task: str, path: Path, overrides: Sequence[str]) -> Config:
    """The config with a task in place of its own. The rewards of the config stay only if an override names them."""
    other = [override for override in overrides if _key(override) in (("task",), ("task", "use"))]
    if other:
        raise ConfigError(
            f"--task {task} names the task, so {other[0]} cannot name one, too. Leave one of them out; single settings"
            " of the task are written as task.held_out=64."
        )
    config = read(path, [f"task={{use: {json.dumps(task)}}}", *overrides])
    return config if any(_key(override)[0] == "rewards" for override in overrides) else replace(config, rewards=())


def _key(override: str) -> tuple[str | int, ...]:
    """The section that an override replaces, or the key in it, and so on."""
    return read_override(override).parts


def _subject(name: str, config: Config) -> Subject:
    """A subject for which nothing is built that only learning needs."""
    return Subject(name, replace(config, objective=NO_LEARNING, teacher=None))
