"""The sections of a config. Each one is a call: its keys are the parameters of one function or dataclass.

So a knob is written once, by its owner, and this table only says who the owners are.
"""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_jax.config.names import load
from grpo_jax.config.signatures import parameters
from grpo_jax.config.values import ConfigError


@dataclass(frozen=True)
class Section:
    """Where `use: name` is looked up, and what is used if it is left out (None: it has to be given).

    `supplied` are parameters that the program gives, so a config cannot.
    """

    namespace: str
    default: str | None = None
    supplied: tuple[str, ...] = ()


SECTIONS = {
    "run": Section("grpo_jax.runtime.run", "Run"),
    "model": Section("grpo_jax.models", "load"),
    "task": Section("grpo_jax.tasks"),
    "rewards": Section("grpo_jax.rewards", supplied=("example", "response", "prompts", "completions")),
    "rollout": Section("grpo_jax.rollout", "Sampler", supplied=("ends", "decode")),
    "objective": Section("grpo_jax.objectives", "grpo"),
    "algorithm": Section(
        "grpo_jax.grpo",
        "Algorithm",
        supplied=("policy", "sample", "decode", "reward", "objective", "optimizer"),
    ),
    "optimizer": Section("grpo_jax.runtime.optimizer", "adamw"),
    "train": Section("grpo_jax.commands.train", "Train"),
    "mesh": Section("grpo_jax.runtime.sharding", "Layout"),
}


@dataclass(frozen=True)
class Call:
    """What a section says: call `target` with `arguments`. `sources` tells where each argument was written."""

    target: str
    arguments: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    def build(self, **supplied: Any) -> Any:
        """The result of the call. What the owner refuses is reported with the place of the section."""
        try:
            return load(self.target)(**self.arguments, **supplied)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"{self.place}: {error}") from error


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
