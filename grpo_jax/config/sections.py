"""The sections of a config. Each one is a call: its keys are the parameters of one function or dataclass.

So a setting is defined once, by its owner, and the table here only names the owners.
"""

import functools
import inspect
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grpo_jax.config.loading import failed, is_ours, load
from grpo_jax.config.signatures import Parameter, parameters
from grpo_jax.config.values import ConfigError
from grpo_jax.redaction import revealed


@dataclass(frozen=True)
class Section:
    """What a section is about, the module in which `use: name` is looked up, and the name used by default (None: `use`
    has to be given).

    The program itself gives the `supplied` parameters, so a config cannot. An `optional` section may be left out.
    What can be named is told from helpers of its module by what a function `returns`, or by the parameters that it
    `takes` when it is called; without both, it is the default alone.
    """

    about: str
    namespace: str
    default: str | None = None
    supplied: tuple[str, ...] = ()
    optional: bool = False
    returns: str | None = None
    takes: tuple[str, ...] = ()
    also_takes: tuple[tuple[str, ...], ...] = ()  # other parameters that it may be called with instead


SECTIONS = {
    "run": Section("the directory of the run", "grpo_jax.training.record", "Run"),
    "model": Section("the model that is trained", "grpo_jax.models", "load", returns="Model"),
    "task": Section("the questions, and how they are worded as prompts", "grpo_jax.tasks", returns="Task"),
    "rewards": Section(
        "a list of what scores the answers; without it the task's own reward does",
        "grpo_jax.rewards",
        supplied=("example", "response", "conversation", "examples", "responses", "prompts", "completions", "judge"),
        takes=("example", "response"),
        also_takes=(("example", "responses"), ("examples", "responses"), ("example", "conversation")),
    ),
    "rollout": Section("how answers are sampled", "grpo_jax.rollout", "Sampler", supplied=("ends", "decode")),
    "objective": Section("what is learned from rewards", "grpo_jax.objectives", "verifiable", returns="Objective"),
    "algorithm": Section(
        "how a step divides its work",
        "grpo_jax.algorithm",
        "Algorithm",
        supplied=("policy", "sample", "decode", "reward", "objective", "optimizer", "teacher", "judge"),
    ),
    "optimizer": Section(
        "how gradients change the weights",
        "grpo_jax.optimizers",
        "adamw",
        supplied=("adapters",),
        returns="optax.GradientTransformation",
    ),
    "train": Section("how long to train, and what to do between steps", "grpo_jax.training.session", "Settings"),
    "evaluation": Section("how held-out prompts are answered", "grpo_jax.evaluation.settings", "Evaluation"),
    "mesh": Section("how weights and prompts are divided among devices", "grpo_jax.devices.mesh", "Layout"),
    "environment": Section(
        "who answers the model in conversations of several turns; without it, the task's environment does",
        "grpo_jax.environments",
        "Configured",
        optional=True,
    ),
    "judge": Section(
        "the language model that rubrics ask about answers",
        "grpo_jax.judges",
        "model",
        supplied=("mesh",),
        optional=True,
        returns="Judge",
    ),
    "teacher": Section(
        "a model whose log-probs are learned from (distillation)",
        "grpo_jax.models",
        "load",
        optional=True,
        returns="Model",
    ),
    "answers": Section(
        "the answers that `grpo-jax sft` learns; without it those of the task",
        "grpo_jax.tasks",
        optional=True,
        returns="Task",
    ),
    "sft": Section(
        "what `grpo-jax sft` does differently; sections in here replace those outside",
        "grpo_jax.training.supervised",
        "Supervised",
        optional=True,
    ),
}
OF_SFT = ("answers", "sft")  # sections that `grpo-jax sft` alone follows

# Choices that an objective is made of: where their names are looked up, and what a mapping without `use` is.
ADVANTAGES, SELECTION = "grpo_jax.objectives.advantages", "grpo_jax.objectives.selection"
CORRECTIONS, KL, TERMS = (f"grpo_jax.objectives.{name}" for name in ("corrections", "kl", "terms"))
PARTS = {
    "advantage": Section("how much better each response was", ADVANTAGES, "Advantage", takes=("scored",)),
    "center": Section("what is subtracted from rewards", ADVANTAGES, takes=("scored",)),
    "scale": Section("what they are then divided by", ADVANTAGES, takes=("scored",)),
    "rewards": Section("rewards of steps or tokens", ADVANTAGES, takes=("scored",)),
    "shaping": Section("a list of changes of rewards", "grpo_jax.objectives.shaping", takes=("scored",)),
    "select": Section("a list of what leaves responses out of their group", SELECTION, takes=("scored",)),
    "prune": Section("a list of what leaves responses out of the loss", SELECTION, takes=("scored", "advantages")),
    "metric": Section("by what responses are chosen", SELECTION, takes=("scored",)),
    "surrogate": Section("what is maximised for each token", "grpo_jax.objectives.surrogates", takes=("tokens",)),
    "ratio": Section(
        "the log-ratio of each token",
        "grpo_jax.objectives.ratios",
        takes=("difference_PGT", "action_PGT"),
    ),
    "weighting": Section(
        "how much each token counts",
        "grpo_jax.objectives.weightings",
        takes=("action_PGT", "counted_PG"),
    ),
    "masks": Section("a list of what leaves tokens out of the surrogate", CORRECTIONS, takes=("tokens", "key")),
    "mask": Section("which tokens a term counts", CORRECTIONS, takes=("tokens", "key")),
    "corrections": Section("a list of factors of the surrogate", CORRECTIONS, takes=("tokens",)),
    "kl": Section("the penalty for leaving a reference policy", KL, "KL"),
    "estimator": Section("how it is estimated", KL, takes=("logprobs_PGT", "ref_logprobs_PGT")),
    "coefficient": Section("a number, or one that adapts", "grpo_jax.objectives.coefficients"),
    "reference": Section("how the reference policy moves", KL, "Reference"),
    "terms": Section("a list of what else is maximised", TERMS, "Term"),
    "value": Section("the value of each token", TERMS, takes=("tokens",)),
}
TRACKERS = Section("a list of where metrics go, beside metrics.jsonl", "grpo_jax.training.trackers")  # of train
# Mappings whose keys have an owner of their own, by the owner of the mapping and its name there.
MAPPINGS = {("grpo_jax.models:load", "lora"): Section("the adapters that are trained", "grpo_jax.models.lora", "Lora")}
OBJECTIVE = "grpo_jax.objectives:Objective"
# Parameters that name a file, which may stand beside the config; `held_out` may be the name of a split instead.
FILES = {"path": os.path.exists, "held_out": os.path.isfile}
GUARDED = "grpo_jax.rewards:Guarded"


@dataclass(frozen=True)
class Call:
    """A section as a call: `target` is called with `arguments`, then fields of the result are replaced by `choices`.

    `sources` gives file and line of each argument, `places` file, line and column of each key that is written.
    Arguments and choices may be calls themselves, or tuples of calls.
    """

    target: str
    arguments: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    location: str = field(default="", compare=False)  # starts a message about the section
    choices: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict, compare=False)

    def owner(self) -> Any:
        """What is called, imported."""
        try:
            return load(self.target)
        except ValueError as error:
            place = self.places.get("use")
            start = self.location if place is None else f"{place}: {self.name}.use"
            raise ConfigError(f"{start}: {error}") from error

    @property
    def name(self) -> str:
        """The section, or the choice within one."""
        return self.location.rpartition(": ")[2]

    def build(self, **supplied: Any) -> Any:
        """The result of the call. An error of the owner is reported with the location of the key that it names."""
        owner, arguments, choices = self.owner(), _built(self.found(self.arguments)), _built(self.choices)
        try:
            built = owner(**arguments, **supplied)
            return replace(built, **choices) if choices else built
        except ConfigError:
            raise
        except (ValueError, OSError) as error:
            variable = isinstance(error, OSError) and "$" in str(error)
            hint = " Variables such as $HOME are not replaced: write the path." if variable else ""
            raise ConfigError(self.blame(f"{error}{hint}")) from error
        except Exception as error:
            if is_ours(self.target):
                raise
            raise ConfigError(self.blame(failed(error))) from error

    def found(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, in which a file that is not in the current folder is the one beside the config."""
        given = dict(arguments)
        for name, is_there in FILES.items():
            text = given.get(name)
            if isinstance(text, str) and text and not os.path.exists(os.path.expanduser(text)):
                beside = Path(self.sources.get(name, "").rpartition(":")[0]).parent / text
                given[name] = str(beside) if is_there(beside) else text
        return given

    def blame(self, message: str) -> str:
        """A message after the location of the key that it names or quotes, or else after that of the section."""
        key = named_key(message, self.name, self.places, {**self.arguments, **self.choices})
        if key is None:
            return f"{self.location}: {message}"
        full = f"{self.name}.{key}"
        return f"{self.places[key]}: {message if message.startswith(full) else f'{full}: {message}'}"

    def choice(self) -> Any:
        """A choice of an objective: an instance of a class, or a function itself, with its arguments if it has any."""
        owner = self.owner()
        if inspect.isclass(owner):
            return self.build()
        return functools.partial(owner, **_built(self.arguments)) if self.arguments else owner


def named_key(message: str, section: str, written: Iterable[str], values: Mapping[str, Any]) -> str | None:
    """The written key that a message is about: the one that it names first, or else the one whose text it repeats."""
    found = [(_position(message, section, key), key) for key in written]
    named = sorted((position, key) for position, key in found if position is not None)
    if named:
        return named[0][1]
    texts = {key: values[key] for key in written if isinstance(values.get(key), str) and len(values[key]) > 2}
    return next((key for key, text in texts.items() if text in message), None)


def _position(message: str, section: str, key: str) -> int | None:
    """Where a message names a key; -1, and so before any other, where it gives the key with its section."""
    if re.search(rf"(?<![\w.]){re.escape(f'{section}.{key}')}(?!\w)", message):
        return -1
    if key == "use":  # in a sentence it is a verb
        return None
    found = re.search(rf"(?<![\w.'\"]){re.escape(key)}(?![\w'\"])", message)
    return None if found is None else found.start()


def _built(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _build(revealed(name, value)) for name, value in values.items()}


def _build(value: Any) -> Any:
    """A value in which each call is replaced by the choice that it stands for."""
    if isinstance(value, tuple):
        return tuple(_build(item) for item in value)
    return value.choice() if isinstance(value, Call) else value


def wanted(call: Call, offered: Mapping[str, Any]) -> dict[str, Any]:
    """What the owner of a call has a parameter for, among what the program can give it."""
    known = parameters(call.target)
    return {name: value for name, value in offered.items() if name in known}


def limits_of_rewards() -> dict[str, Parameter]:
    """The keys that every reward may have, as `Guarded` defines them: in which processes it is called, and how long."""
    return {key: each for key, each in parameters(GUARDED).items() if key != "reward"}


@dataclass(frozen=True)
class RewardPart:
    """One item of `rewards`. If the target is a class, its instance is the reward; a function is the reward itself."""

    call: Call
    weight: float = 1.0  # of the reward in the sum; 0 records it alone
    limits: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **offered: Any) -> Any:
        """The reward, guarded if it has limits that are not the defaults."""
        reward, known = self._reward(offered), limits_of_rewards()
        if all(value == known[key].default for key, value in self.limits.items()):
            return reward
        try:
            return load(GUARDED)(reward, **self.limits)
        except ValueError as error:
            raise ConfigError(self.call.blame(str(error))) from error

    def _reward(self, offered: Mapping[str, Any]) -> Any:
        """The reward, with the arguments that differ from the function's own defaults. A class gets what is offered,
        such as a judge, if it has a parameter for it.
        """
        reward = self.call.owner()
        if inspect.isclass(reward):
            return self.call.build(**wanted(self.call, offered))
        known = parameters(self.call.target)
        given = {name: value for name, value in self.call.arguments.items() if value != known[name].default}
        try:
            return functools.partial(reward, **_built(self.call.found(given))) if given else reward
        except ValueError as error:
            raise ConfigError(f"{self.call.location}: {error}") from error


@dataclass(frozen=True)
class Config:
    """The sections of a config file, checked, with defaults filled in. Without `rewards`, the task's own are used.

    With `sft` it is a config of supervised fine-tuning, on the answers of `answers` or else of the task.
    """

    run: Call
    model: Call
    task: Call
    rewards: tuple[RewardPart, ...]
    rollout: Call
    objective: Call
    algorithm: Call
    optimizer: Call
    train: Call
    evaluation: Call
    mesh: Call
    environment: Call | None = None
    judge: Call | None = None
    teacher: Call | None = None
    answers: Call | None = None
    sft: Call | None = None
