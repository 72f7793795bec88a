"""The sections of a config. Each one is a call: its keys are the parameters of one function or dataclass.

So a knob is written once, by its owner, and this table only says who the owners are.
"""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from grpo_jax.config.names import load
from grpo_jax.config.signatures import parameters
from grpo_jax.config.values import ConfigError


@dataclass(frozen=True)
class Section:
    """Where `use: name` is looked up, and what is used if it is left out (None: it has to be given).

    `supplied` are parameters that the program gives, so a config cannot. An `optional` section may be left out.
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
    """What a section says: call `target` with `arguments`, then replace fields of the result by `parts`.

    `sources` tells where each argument was written. Arguments and parts may be calls themselves, or tuples of them.
    """

    target: str
    arguments: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)
    parts: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **supplied: Any) -> Any:
        """The result of the call. What the owner refuses is reported with the place of the section."""
        try:
            built = load(self.target)(**_made(self.arguments), **supplied)
            return replace(built, **_made(self.parts)) if self.parts else built
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"{self.place}: {error}") from error

    def part(self) -> Any:
        """A choice of an objective: what a class makes, or a function itself, with its arguments if it has any."""
        owner = load(self.target)
        if inspect.isclass(owner):
            return self.build()
        return functools.partial(owner, **_made(self.arguments)) if self.arguments else owner


def _made(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _make(value) for name, value in values.items()}


def _make(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_make(item) for item in value)
    return value.part() if isinstance(value, Call) else value


@dataclass(frozen=True)
class RewardPart:
    """One item of `rewards`. A class is called and makes the reward; a function is the reward itself."""

    call: Call
    weight: float = 1.0

    def build(self) -> Any:
        reward = load(self.call.target)
        if inspect.isclass(reward):
            return self.call.build()
        known = parameters(self.call.target)
        given = {name: value for name, value in self.call.arguments.items() if value != known[name].default}
        return functools.partial(reward, **given) if given else reward


@dataclass(frozen=True)
class Config:
    """Every section of a config file, checked, with its defaults filled in. No `rewards` means the task's own."""

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
