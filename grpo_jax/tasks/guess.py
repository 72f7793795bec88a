"""Guessing a number: the model says one, and is told whether the number is higher or lower."""

import re
from collections.abc import Sequence

import numpy as np

from grpo_jax.environments.environment import Bounded, Turn
from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.of_environment import environment
from grpo_jax.tasks.task import Task, check_sizes, messages

MOST = 1_000_000
SENSIBLE = 0.1  # what a guess earns that the answers before it allow


class Guessing:
    """Keeps a number from 1 to `largest`, and what its answers have told of it."""

    def __init__(self, largest: int):
        self.largest = largest

    def reset(self, example: Example, seed: int) -> Sequence[Message]:
        """Draws the number."""
        self.number = int(np.random.default_rng(seed).integers(1, self.largest, endpoint=True))
        self.low, self.high = 1, self.largest
        return ()

    def step(self, reply: Message) -> Turn:
        """Whether the number is higher or lower than the first one in the reply. The right one earns 1."""
        found = re.search(r"\d{1,9}", reply["content"])
        if found is None:
            return self._said(f"Say a number from 1 to {self.largest}.", 0.0, guesses=0.0)
        guess = int(found[0])
        if guess == self.number:
            return Turn([{"role": "user", "content": "right"}], 1.0, done=True, metrics={"guesses": 1.0, "found": 1.0})
        reward = SENSIBLE if self.low <= guess <= self.high else 0.0
        if guess < self.number:
            self.low = max(self.low, guess + 1)
            return self._said("higher", reward)
        self.high = min(self.high, guess - 1)
        return self._said("lower", reward)

    def _said(self, text: str, reward: float, guesses: float = 1.0) -> Turn:
        return Turn([{"role": "user", "content": text}], reward, metrics={"guesses": guesses})


def guess(
    train: int = 1024,  # games
    held_out: int = 64,  # games
    largest: int = 15,  # of the numbers, which start at 1
    turns: int = 4,  # guesses, at most; halving the range each time, 4 find a number up to 15
    worked: bool = False,  # each prompt has a game up to its last guess, for `grpo-jax sft` with turns: all
    instruction: str = "",
    system: str | None = "Answer with a number.",
) -> Task:
    """Games in which the model guesses a number, and is told `higher` or `lower`.

    The right guess earns 1, and any other that the answers before it allow 0.1: rewards of turns. The number is drawn
    from the seed of the run, the step and the game, and is the same for all responses to a prompt.
    """
    check_sizes(train, held_out)
    check_range("task.largest", largest, least=2, most=MOST)
    asked = messages(f"Guess my number from 1 to {largest}.", instruction, system)
    examples = [_game(number, asked, largest, turns, worked) for number in range(train + held_out)]
    played = Bounded(Guessing(largest), turns=turns)
    return Task(examples[:train], examples[train:], Mix(((environment, 1.0),)), played)


def _game(number: int, asked: list[Message], largest: int, turns: int, worked: bool) -> Example:
    if not worked:
        return Example(asked, "", {"game": number})
    *before, last = played(number, largest, turns)
    return Example([*asked, *before], last["content"], {"game": number})


def played(seed: int, largest: int, turns: int) -> list[Message]:
    """A game up to its last guess, in which each guess is drawn from the numbers that the answers before it allow."""
    game, random, said = Guessing(largest), np.random.default_rng([seed, 1]), list[Message]()
    game.reset(Example("?"), seed)
    while True:
        guessed = {"role": "assistant", "content": str(random.integers(game.low, game.high, endpoint=True))}
        turn = game.step(guessed)
        said.append(guessed)
        if turn.done or len(said) == 2 * turns - 1:
            return said
        said += turn.messages
