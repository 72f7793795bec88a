"""Tasks about the letters of words, which a model sees only as tokens: reversing a text, and counting a letter."""

from typing import Any

import numpy as np

from grpo_jax.ranges import check_range
from grpo_jax.rewards.answers import exact, last_number
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.text import alike
from grpo_jax.tasks.drawing import draw_different
from grpo_jax.tasks.task import Task, messages

WORDS = (
    "almond apple autumn balloon banana basket blanket blossom bottle breeze bridge butter cabbage candle canyon carpet"
    " castle cellar cherry chimney cinnamon circle cloud coffee copper cotton cradle cricket crystal curtain daffodil"
    " dinner dragon drawer eleven engine evening falcon feather fiddle flannel forest fountain garden ginger glacier"
    " goggles granite guitar hammer harbor hazelnut hollow honey iceberg island jigsaw jungle kettle kitten ladder"
    " lantern lemon letter lettuce lizard lobster magnet meadow mirror mississippi mitten monsoon mosquito muffin"
    " mushroom needle noodle nutmeg oatmeal onion orchard oyster paddle pebble pepper piccolo pillow planet pocket"
    " poppy possum potato puddle puppet quarrel rabbit raccoon ribbon river saddle saffron sailor seesaw shadow shell"
    " shovel silver spinach spoon squirrel strawberry summer sunset tambourine teapot tennis thistle thunder tomorrow"
    " tunnel turnip umbrella valley vanilla velvet village violin voyage waffle walnut weather whistle willow window"
    " winter wobble yellow zipper zucchini"
).split()


def reverse_text(
    train: int = 4096,  # examples
    held_out: int = 256,  # examples, whose texts are not in train
    words: int = 2,  # in a text
    instruction: str = "Reply with only the reversed text.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Texts such as `river spoon`, to be written backwards letter by letter: `noops revir`.

    The exact answer earns 1, and any other as much of 0.2 as it has in common with it.
    """
    check_range("words", words, least=1, most=20)

    def example(random: np.random.Generator) -> tuple[object, Example]:
        text = _text(random, words)
        columns = {"text": text}
        question = f'Write the text "{text}" backwards, letter by letter.'
        return _family(text), Example(messages(question, instruction, system), text[::-1], columns)

    return Task(*draw_different(example, train, held_out, seed), Mix(((exact, 1.0), (alike, 0.2))))


def letter_counting(
    train: int = 4096,  # examples
    held_out: int = 256,  # examples, whose texts are not in train
    words: int = 2,  # in a text
    instruction: str = "Reply with only the number.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Questions such as `How many times does the letter "r" occur in "river spoon"?`

    A response that is only the answer earns 1, and one whose final number is the answer 0.1: together at most 1.1.
    """
    check_range("words", words, least=1, most=20)

    def example(random: np.random.Generator) -> tuple[object, Example]:
        text = _text(random, words)
        letter = _letter(random, text)
        answer = str(text.count(letter))
        columns: dict[str, Any] = {"text": text, "letter": letter, "answer": answer}
        question = f'How many times does the letter "{letter}" occur in "{text}"?'
        return _family(text), Example(messages(question, instruction, system), answer, columns)

    return Task(*draw_different(example, train, held_out, seed), Mix(((exact, 1.0), (last_number, 0.1))))


def _text(random: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[index] for index in random.integers(len(WORDS), size=words))


def _family(text: str) -> tuple[str, ...]:
    """What texts with the same words have in common: no two of them are drawn."""
    return tuple(sorted(text.split()))


def _letter(random: np.random.Generator, text: str) -> str:
    """A letter of the text, or in one of eight cases one that may not be in it."""
    letters = "abcdefghijklmnopqrstuvwxyz" if random.integers(8) == 0 else text.replace(" ", "")
    return letters[random.integers(len(letters))]
