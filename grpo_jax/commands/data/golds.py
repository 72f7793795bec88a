"""What the rewards give for the gold answers: each has to earn 1 of at least one reward."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.rewards import Example, Mix, score
from grpo_jax.rewards.needs import check_examples

SHOWN = 5  # places in a line
ENOUGH = 1 - 1e-6  # a sum of float32 numbers that should be 1


@dataclass(frozen=True)
class Golds:
    """What golds earn: for each reward the examples whose gold earns less than 1; and those that earn 1 of none."""

    total: int
    below: dict[str, list[str]]
    missed: list[str]

    def text(self, kind: str) -> str:
        """The golds of each reward in a line."""
        if not self.total:
            return f"{kind} examples have no gold answers that could be scored"
        lines = [f"gold answers of the {kind} examples, of which there are {self.total}:"]
        for name, below in self.below.items():
            rest = f"; less: {listed(below)}" if below else ""
            lines.append(f"  {name}: {self.total - len(below)} earn 1{rest}")
        if self.missed:
            lines.append(f"  {len(self.missed)} earn 1 of no reward: {listed(self.missed)}")
        return "\n".join(lines)


def unfit(mix: Mix, examples: Sequence[Example]) -> list[str]:
    """The examples that a reward says it cannot use, as training would refuse them."""
    found = []
    for index, example in enumerate(examples):
        try:
            check_examples(mix, [example], f"example {index}, as")
        except ValueError as error:
            found.append(str(error))
    return found


def scored_golds(mix: Mix, examples: Sequence[Example], tokenizer: Tokenizer) -> Golds:
    """What the golds of all examples that have one earn."""
    asked = [example for example in examples if example.answer]
    if not asked:
        return Golds(0, {}, [])
    responses = [[example.answer] for example in asked]
    rewards_PR = score(mix, asked, responses, token_ids(responses, tokenizer), step=0)[:, 0]
    positive_R = (mix.weights_R > 0) & ~np.isnan(rewards_PR).all(axis=0)  # without those of a judge that is not asked
    if not positive_R.any():
        return Golds(0, {}, [])
    few_PR = ~(rewards_PR >= ENOUGH)  # also where a reward gave no number
    labels = [example.label for example in asked]
    below = {
        name: [label for label, few in zip(labels, few_P, strict=True) if few]
        for name, few_P, positive in zip(mix.names, few_PR.T, positive_R, strict=True)
        if positive
    }
    missed = [label for label, few_R in zip(labels, few_PR[:, positive_R], strict=True) if few_R.size and few_R.all()]
    return Golds(len(asked), below, missed)


def token_ids(responses: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[list[int]]]:
    """The tokens of each response, for rewards that ask for them."""
    return [
        [list(tokenizer.backend(text, add_special_tokens=False)["input_ids"]) for text in group] for group in responses
    ]


def listed(labels: Sequence[str]) -> str:
    """The first of many examples."""
    return ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
