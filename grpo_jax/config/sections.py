"""The sections of a config. Each one is a call: its keys are the parameters of one function or dataclass.

So a setting is defined once, by its owner, and the table here only names the owners.
"""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from grpo_jax.config.names import load
from grpo_jax.config.signatures import parameters
from grpo_jax.config.values import ConfigError
from grpo_jax.redaction import revealed


@dataclass(frozen=True)
class Section:
    """The module in which `use: name` is looked up, and the name used by default (None: `use` has to be given).

    The program itself gives the `supplied` parameters, so a config cannot. An `optional` section may be left out.
    """

    namespace: str
    default: str | None = None
    supplied: tuple[str, ...] = ()
    optional: bool = False


SECTIONS = {
    "run": Section("grpo_jax.training.record", "Run"),
    "model": Section("grpo_jax.models", "load"),
    "task": Section("grpo_jax.tasks"),
    "rewards": Section("grpo_jax.rewards", supplied=("example", "response", "prompts", "completions")),
    "rollout": Section("grpo_jax.rollout", "Sampler", supplied=("ends", "decode")),
    "objective": Section("grpo_jax.objectives", "verifiable"),
    "algorithm": Section(
        "grpo_jax.algorithm",
        "Algorithm",
        supplied=("policy", "sample", "decode", "reward", "objective", "optimizer", "teacher"),
    ),
    "optimizer": Section("grpo_jax.optimizers", "adamw"),
    "train": Section("grpo_jax.training.session", "Settings"),
    "mesh": Section("grpo_jax.devices.mesh", "Layout"),
    "teacher": Section("grpo_jax.models", "load", optional=True),
}

# Choices that an objective is made of: where their names are looked up, and what a mapping without `use` is.
PARTS = {
    "advantage": Section("grpo_jax.objectives.advantages", "Advantage"),
    "center": Section("grpo_jax.objectives.advantages"),
    "scale": Section("grpo_jax.objectives.advantages"),
    "rewards": Section("grpo_jax.objectives.advantages"),
    "shaping": Section("grpo_jax.objectives.shaping"),
    "select": Section("grpo_jax.objectives.selection"),
    "prune": Section("grpo_jax.objectives.selection"),
    "metric": Section("grpo_jax.objectives.selection"),
    "surrogate": Section("grpo_jax.objectives.surrogates"),
    "ratio": Section("grpo_jax.objectives.ratios"),
    "weighting": Section("grpo_jax.objectives.weightings"),
    "masks": Section("grpo_jax.objectives.corrections"),
    "mask": Section("grpo_jax.objectives.corrections"),
    "corrections": Section("grpo_jax.objectives.corrections"),
    "kl": Section("grpo_jax.objectives.kl", "KL"),
    "estimator": Section("grpo_jax.objectives.kl"),
    "coefficient": Section("grpo_jax.objectives.coefficients"),
    "reference": Section("grpo_jax.objectives.kl", "Reference"),
    "terms": Section("grpo_jax.objectives.terms", "Term"),
    "value": Section("grpo_jax.objectives.terms"),
}
OBJECTIVE = "grpo_jax.objectives:Objective"


@dataclass(frozen=True)
class Call:
    """A section as a call: `target` is called with `arguments`, then fields of the result are replaced by `choices`.

    `sources` gives file and line of each argument. Arguments and choices may be calls themselves, or tuples of calls.
    """

    target: str
    arguments: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    location: str = field(default="", compare=False)  # starts a message about the section
    choices: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **supplied: Any) -> Any:
        """The result of the call. An error of the owner is reported with the location of the section."""
        try:
            built = load(self.target)(**_built(self.arguments), **supplied)
            return replace(built, **_built(self.choices)) if self.choices else built
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"{self.location}: {error}") from error

    def choice(self) -> Any:
        """A choice of an objective: an instance of a class, or a function itself, with its arguments if it has any."""
        owner = load(self.target)
        if inspect.isclass(owner):
            return self.build()
        return functools.partial(owner, **_built(self.arguments)) if self.arguments else owner


def _built(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _build(revealed(name, value)) for name, value in values.items()}


def _build(value: Any) -> Any:
    """A value in which each call is replaced by the choice that it stands for."""
    if isinstance(value, tuple):
        return tuple(_build(item) for item in value)
    return value.choice() if isinstance(value, Call) else value


@dataclass(frozen=True)
class RewardPart:
    """One item of `rewards`. If the target is a class, its instance is the reward; a function is the reward itself."""

    call: Call
    weight: float = 1.0

    def build(self) -> Any:
        """The reward, with the arguments that differ from the function's own defaults."""
        reward = load(self.call.target)
        if inspect.isclass(reward):
            return self.call.build()
        known = parameters(self.call.target)
        given = {name: value for name, value in self.call.arguments.items() if value != known[name].default}
        try:
            return functools.partial(reward, **_built(given)) if given else reward
        except ValueError as error:
            raise ConfigError(f"{self.call.location}: {error}") from error


@dataclass(frozen=True)
class Config:
    """The sections of a config file, checked, with defaults filled in. Without `rewards`, the task's own are used."""

    run: Call
    model: Call
    task: Call
    rewards: tuple[RewardPart, ...]
    rollout: Call
    objective: Call
    algorithm: Call
    optimizer: Call
    train: Call
    mesh: Call
    teacher: Call | None = None
