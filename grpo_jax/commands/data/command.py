"""`grpo-jax data`: what a config asks the model, and what its rewards give for known answers. Loads no weights.

The exit status is 1 if training would refuse an example, or if a gold answer does not earn 1 of any reward.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_jax.commands.data.golds import scored_golds, unfit
from grpo_jax.commands.data.lengths import histogram, prompt_lengths
from grpo_jax.commands.data.probes import probed
from grpo_jax.commands.data.shown import shown
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


def run(arguments: argparse.Namespace) -> int:
    """Prints prompts, their lengths, what golds earn and what probes earn. Returns the exit code."""
    try:
        subject = assembled(arguments.config, arguments.judge)
        print(summary(subject))
        if arguments.config.judge is not None and not arguments.judge:
            print("judge: not asked, so its criteria have no values here; --judge asks it")
        for example in subject.task.train[: arguments.show]:
            print(f"\n{shown(example, subject.model.tokenizer)}")
        refused = [*_print_lengths(subject), *_print_unfit(subject)]
        if refused:  # what a reward cannot use, it cannot score either
            return FAILED
        missed = _print_golds(subject)
        print(f"\n{probed(subject.mix, subject.task.train, subject.model.tokenizer, arguments.probes)}")
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(locate(arguments.config, str(error))) from error
    return FAILED if missed else COMPLETE


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


def _print_lengths(subject: Subject) -> list[str]:
    """Prints a histogram for each kind of example; the prompts that training would refuse."""
    limit, choice = subject.settings.max_prompt_tokens, subject.settings.long_prompts
    refused = []
    for kind, examples in subject.kinds.items():
        lengths = prompt_lengths(examples, subject.model)
        print(f"\n{histogram(lengths, examples, kind, limit, choice)}")
        long = [example.label for example, length in zip(examples, lengths, strict=True) if length > limit]
        refused += long if choice == "refuse" else []
    return refused


def _print_unfit(subject: Subject) -> list[str]:
    """Prints the examples to which no response could be scored."""
    found = [each for examples in subject.kinds.values() for each in unfit(subject.mix, examples)]
    if found:
        print(f"\n{len(found)} examples cannot be scored:")
        print("\n".join(f"  {reason}" for reason in found[:MOST]))
    return found


def _print_golds(subject: Subject) -> int:
    """Prints what gold answers earn; how many earn less than 1 of every reward."""
    missed = 0
    for kind, examples in subject.kinds.items():
        golds = scored_golds(subject.mix, examples, subject.model.tokenizer)
        print(f"\n{golds.text(kind)}")
        missed += len(golds.missed)
    return missed
