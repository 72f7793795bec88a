"""Supervised fine-tuning: the loop of `train` on given answers, whose likelihood is maximised.

An example with a given answer is a group of one. So the parts of a run are replaced, not its loop: the engine gives the
answers (rollout/given.py), and the objective weighs their log-probs (`likelihood`). Held-out prompts are answered and
scored as in any training.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from grpo_jax.algorithm import Algorithm
from grpo_jax.models import Model
from grpo_jax.models.answered import answered
from grpo_jax.models.templates import sentence
from grpo_jax.objectives import Objective
from grpo_jax.objectives.presets import WEIGHTINGS, likelihood
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rollout.given import Answered, GivenAnswers
from grpo_jax.structs import bucket
from grpo_jax.tasks import Task
from grpo_jax.training.loop import Trained, train
from grpo_jax.training.session import Settings

MOST_CUT = 0.5  # of the answers that are learned
ENOUGH, SLOW = 200, 5  # examples that are timed, and the seconds from which on it is said


@dataclass(frozen=True)
class Supervised:
    """Which text of an example is learned, how much of it, and how much each token counts."""

    answer: str | None = None  # column with the text to learn; null: the answer that rewards compare with
    turns: Literal["last", "all"] = "last"  # of the assistant in a conversation, which are learned
    max_tokens: int = 1024  # after the prompt, from which on an answer is cut off
    weighting: Literal["token_mean", "sequence_mean"] = "token_mean"  # every token counts the same, or every answer

    def __post_init__(self) -> None:
        if self.turns not in ("last", "all"):
            raise ValueError(f"sft.turns is last or all; got {self.turns!r}.")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"sft.weighting is {' or '.join(WEIGHTINGS)}; got {self.weighting!r}.")
        check_range("sft.max_tokens", self.max_tokens, least=1, most=WHOLE)

    @property
    def objective(self) -> Objective:
        """The likelihood of the answers."""
        return likelihood(self.weighting)

    def parts(
        self, model: Model, task: Task, algorithm: Algorithm, answers: Task | None = None
    ) -> tuple[Task, Algorithm]:
        """The task and the algorithm of a run that learns the answers of a task, or those of `answers` in their place.

        Held-out prompts and rewards stay those of `task`.
        """
        source = task if answers is None else answers
        train = self._all_answered(source.train, model)
        _check_cut(train, self.max_tokens)
        held_out = [self._held_out(example, model) for example in task.held_out]
        known = [each for each in [*train, *held_out] if isinstance(each, Answered)]
        longest = bucket(max(len(each.tokens_T) for each in known))
        engine = GivenAnswers(algorithm.engine, min(longest, self.max_tokens))
        changed = replace(algorithm, sample=engine, objective=self.objective, teacher=None)
        return replace(task, train=train, held_out=held_out), changed

    def _all_answered(self, examples: Sequence[Example], model: Model) -> list[Answered]:
        """The examples with the tokens to learn. Says how long it takes, once that is known, if it is long."""
        found, begun = [], time.monotonic()
        for n, example in enumerate(examples):
            found.append(self._answered(example, model, self.turns))
            left = (time.monotonic() - begun) / (n + 1) * (len(examples) - n - 1)
            if n == ENOUGH and left > SLOW:
                said = "encoding %s given answers takes about %d s"
                logging.getLogger("grpo_jax").info(said, f"{len(examples):,}", left)
        return found

    def _held_out(self, example: Example, model: Model) -> Example:
        """A held-out example with its answer, if it has one; the greedy answer to it is scored in any case."""
        return example if self._text(example) is None else self._answered(example, model, "last")

    def _answered(self, example: Example, model: Model, turns: str) -> Answered:
        """The example with the tokens to learn. An error names the place of the example."""
        text = self._text(example)
        if text is None:
            raise self._lacking(example)
        prompt, said = _divided(example.prompt, text, turns)
        try:
            found = answered(model.tokenizer, prompt, said)
        except ValueError as error:
            raise ValueError(f"{example.label}: its answer cannot be encoded: {sentence(error)}") from error
        count, known = self.max_tokens, {each.name: getattr(example, each.name) for each in fields(Example)}
        return Answered(
            **known | {"prompt": prompt},
            turns=tuple(said),
            tokens_T=np.array(found.ids[:count], np.int32),
            said_T=np.array(found.said[:count], bool),
            ended=len(found.ids) <= count,
        )

    def _text(self, example: Example) -> str | None:
        """The text that is learned; None where there is none."""
        text: Any = example.answer if self.answer is None else example.columns.get(self.answer)
        text = str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text
        return text if isinstance(text, str) and text.strip() else None

    def _lacking(self, example: Example) -> ValueError:
        what = "no answer" if self.answer is None else f"no text in column {self.answer!r}"
        others = ", ".join(name for name, value in example.columns.items() if isinstance(value, str)) or "none"
        return ValueError(
            f"{example.label}: there is {what} to learn. Name the column that has it in sft.answer (columns with text:"
            f" {others}), or leave the example out."
        )


def sft(
    model: Model,
    task: Task,
    algorithm: Algorithm,
    settings: Settings,
    *,
    answers: Task | None = None,
    supervised: Supervised | None = None,
    **how: Any,
) -> Trained:
    """Trains on given answers, and otherwise as `train`, which takes the same further arguments.

    Learned are the answers of the task, or of `answers`. The algorithm's sampler answers held-out prompts, and its
    rewards score them; its objective is not used.
    """
    chosen = Supervised() if supervised is None else supervised
    task, algorithm = chosen.parts(model, task, algorithm, answers)
    return train(model, task, algorithm, settings, **how)


def _divided(prompt: Any, text: str, turns: str) -> tuple[Any, list[Message]]:
    """What is asked, and the turns that follow: the answer, or everything from the assistant's first turn on."""
    answer: Message = {"role": "assistant", "content": text}
    if turns == "last" or isinstance(prompt, str):
        return prompt, [answer]
    roles = [message["role"] for message in prompt[:-1]]  # a last one of the assistant begins the answer
    first = roles.index("assistant") if "assistant" in roles else len(prompt)
    return list(prompt[:first]), [*map(dict, prompt[first:]), answer]


def _check_cut(examples: Sequence[Answered], max_tokens: int) -> None:
    """Says how many answers are cut off, and refuses if most are."""
    cut = [example for example in examples if not example.ended]
    if not cut:
        return
    first = f"{len(cut)} of {len(examples)} given answers have more than {max_tokens} tokens (sft.max_tokens)"
    if len(cut) > MOST_CUT * len(examples):
        raise ValueError(
            f"{first}, the first of them {cut[0].label}, and a policy that learns cut-off answers does not learn to end"
            " them. Raise sft.max_tokens, or leave out long examples."
        )
    logging.getLogger("grpo_jax").warning("%s and are cut off there, the first of them %s", first, cut[0].label)
