"""`grpo-jax data`: what a config asks the model, and what its rewards give for known answers. Loads no weights.

The exit status is 1 if training would refuse an example, or if a gold answer does not earn 1 of any reward.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_jax.commands.data.golds import Golds, listed, scored_golds, unfit
from grpo_jax.commands.data.lengths import histogram, prompt_lengths, spread
from grpo_jax.commands.data.probes import earned, table
from grpo_jax.commands.data.shown import shown
from grpo_jax.commands.printing import print_json, show
from grpo_jax.config import Config, ConfigError, locate
from grpo_jax.config.building import built
from grpo_jax.hosts.codes import COMPLETE, FAILED
from grpo_jax.judges import Judge
from grpo_jax.models import Model
from grpo_jax.rewards import Example, Mix
from grpo_jax.rewards.rubrics import Sheet
from grpo_jax.tasks import Task
from grpo_jax.training.session import Settings

MOST = 10  # examples that cannot be scored, each with its reason


@dataclass(frozen=True)
class Subject:
    """What a config asks, and what scores the answers."""

    task: Task
    model: Model
    mix: Mix
    settings: Settings

    @property
    def kinds(self) -> dict[str, Sequence[Example]]:
        """The examples by what they are for, without kinds that have none."""
        kinds = {"training": self.task.train, "held-out": self.task.held_out}
        return {kind: examples for kind, examples in kinds.items() if examples}


@dataclass
class Seen:
    """What was found: the tokens of prompts by kind of example, the prompts that training would refuse, examples that
    cannot be scored, what golds earn by kind, and what probes earn.
    """

    subject: Subject
    lengths: dict[str, list[int]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    golds: dict[str, Golds] = field(default_factory=dict)
    earned: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def mistakes(self) -> list[str]:
        """What keeps the data from being trained with, a sentence for each kind of mistake."""
        found = []
        if self.refused:
            limit = self.subject.settings.max_prompt_tokens
            found.append(f"{len(self.refused)} prompts have more than {limit} tokens: {listed(self.refused)}")
        if self.unfit:
            found.append("\n".join([f"{len(self.unfit)} examples cannot be scored:", *_indented(self.unfit[:MOST])]))
        missed = [label for golds in self.golds.values() for label in golds.missed]
        return found + ([f"{len(missed)} gold answers earn 1 of no reward: {listed(missed)}"] if missed else [])


def run(arguments: argparse.Namespace) -> int:
    """Prints prompts, their lengths, what golds earn and what probes earn. Returns the exit code."""
    told = _say_nothing if arguments.quiet else show
    try:
        seen = look(assembled(arguments.config, arguments.judge), arguments, told)
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(locate(arguments.config, str(error))) from error
    if arguments.json:
        print_json(arguments, plain(seen))
    elif arguments.quiet:
        show("\n".join(seen.mistakes) or summary(seen.subject))
    return FAILED if seen.mistakes else COMPLETE


def look(subject: Subject, arguments: argparse.Namespace, told: Callable[[str], None]) -> Seen:
    """Looks at the data, and tells what it finds. Nothing is scored if a reward cannot use an example."""
    seen = Seen(subject)
    told(summary(subject))
    if arguments.config.judge is not None and not arguments.judge:
        told("judge: not asked, so its criteria have no values here; --judge asks it")
    for example in subject.task.train[: arguments.show]:
        told(f"\n{shown(example, subject.model.tokenizer)}")
    _look_at_lengths(seen, told)
    seen.unfit = [each for examples in subject.kinds.values() for each in unfit(subject.mix, examples)]
    if seen.unfit:
        told(f"\n{seen.mistakes[-1]}")
    if seen.refused or seen.unfit:
        return seen
    for kind, examples in subject.kinds.items():
        seen.golds[kind] = scored_golds(subject.mix, examples, subject.model.tokenizer)
        told(f"\n{seen.golds[kind].text(kind)}")
    asked = subject.task.train[: arguments.probes]
    seen.earned = earned(subject.mix, asked, subject.model.tokenizer)
    told(f"\n{table(seen.earned, subject.mix, len(asked))}")
    return seen


def _look_at_lengths(seen: Seen, told: Callable[[str], None]) -> None:
    """The tokens of each prompt, as a histogram for each kind of example; the prompts that training would refuse."""
    limit, choice = seen.subject.settings.max_prompt_tokens, seen.subject.settings.long_prompts
    for kind, examples in seen.subject.kinds.items():
        lengths = seen.lengths[kind] = prompt_lengths(examples, seen.subject.model)
        told(f"\n{histogram(lengths, examples, kind, limit, choice)}")
        long = [example.label for example, length in zip(examples, lengths, strict=True) if length > limit]
        seen.refused += long if choice == "refuse" else []


def plain(seen: Seen) -> dict[str, Any]:
    """What was found, as JSON has it."""
    kinds = {kind: {"examples": len(tokens), "prompt_tokens": spread(tokens)} for kind, tokens in seen.lengths.items()}
    parts = zip(seen.subject.mix.names, seen.subject.mix.weights_R.tolist(), strict=True)
    return {
        "examples": kinds,
        "rewards": [{"name": name, "weight": weight} for name, weight in parts],
        "too_long": seen.refused,
        "cannot_be_scored": seen.unfit,
        "gold_answers": {kind: dataclasses.asdict(golds) for kind, golds in seen.golds.items()},
        "earned": seen.earned,
        "mistakes": seen.mistakes,
    }


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _say_nothing(text: str) -> None:
    pass


@dataclass(frozen=True)
class Unasked:
    """In place of a judge: it has no verdict on anything."""

    def check(self, sheet: Sheet) -> None:
        """Refuses nothing."""

    def judge(self, sheets: Sequence[Sheet]) -> list[list[float | None]]:
        """None for each criterion."""
        return [[None] * len(sheet.criteria) for sheet in sheets]


def assembled(config: Config, with_judge: bool) -> Subject:
    """The parts of a run that its data are shown with: `with_judge`, a model that judges is loaded, too."""
    settings, task, model = config.train.build(), built(config.task, Task), built(config.model, Model)
    judge = None
    if config.judge is not None:
        judge = built(config.judge, Judge) if with_judge else Unasked()
    rewards = tuple((item.build(judge=judge), item.weight) for item in config.rewards)
    return Subject(task, model, Mix(rewards) if rewards else task.reward, settings)


def summary(subject: Subject) -> str:
    """How many examples there are, where the first of them stand, and what scores the answers."""
    lines = []
    for kind, examples in subject.kinds.items():
        place = f", the first from {examples[0].source}" if examples[0].source else ""
        again = len(examples) - len({repr(example.prompt) for example in examples})
        twice = f"; {again} ask what another one asks" if again else ""
        lines.append(f"{kind}: {len(examples)} examples{place}{twice}")
    if not subject.task.held_out:
        lines.append("held-out: none, so training cannot be evaluated")
    weights = zip(subject.mix.names, subject.mix.weights_R, strict=True)
    lines.append("rewards: " + ", ".join(f"{name} (weight {weight:g})" for name, weight in weights))
    return "\n".join(lines)
