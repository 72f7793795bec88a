"""Short texts whose facts are to be written as JSON: easy to read, and the format has to be followed exactly."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.structured import follows_schema, same_json
from grpo_jax.tasks.drawing import draw_different
from grpo_jax.tasks.task import Task, messages

NAMES = (
    "Ada Bruno Chiara Dmitri Elif Farid Greta Hana Ines Jonas Kofi Leila Mateo Nadia Omar Priya Quentin Rosa".split()
)
CITIES = "Accra Bergen Cusco Dakar Espoo Fukuoka Ghent Hanoi Izmir Jaipur Kyoto Lima Malmo Nantes Oslo Porto".split()
GOODS = "bread cheese figs honey lentils olives pears plums rice salmon tea tomatoes walnuts yogurt".split()
THINGS = "backpack blender desk fan guitar heater kettle lamp mirror printer radio scooter shelf tent".split()

Text = tuple[str, dict[str, str], dict[str, Any]]  # the text, the keys with their types in words, the object


def json_format(
    train: int = 4096,  # examples
    held_out: int = 256,  # examples, whose texts are not in train
    instruction: str = "Reply with only the JSON object.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Texts about people, goods, orders and journeys, and the keys and types of the object to write.

    The object earns 1, and any other with the same keys and types 0.2: together at most 1.2.
    """

    def example(random: np.random.Generator) -> tuple[object, Example]:
        text, keys, value = TEXTS[random.integers(len(TEXTS))](random)
        wanted = ", ".join(f'"{key}" ({kind})' for key, kind in keys.items())
        question = f"{text}\nWrite this as a JSON object with the keys {wanted}."
        return text, Example(messages(question, instruction, system), json.dumps(value), {"text": text})

    return Task(*draw_different(example, train, held_out, seed), Mix(((same_json, 1.0), (follows_schema, 0.2))))


def person(random: np.random.Generator) -> Text:
    """Somebody's name, age and city."""
    value = {"name": _one(random, NAMES), "age": int(random.integers(18, 90)), "city": _one(random, CITIES)}
    text = f"{value['name']} is {value['age']} years old and lives in {value['city']}."
    return text, {"name": "a string", "age": "a whole number", "city": "a string"}, value


def product(random: np.random.Generator) -> Text:
    """A thing, its price, and whether it can be bought."""
    price, in_stock = int(random.integers(100, 20_000)) / 100, bool(random.integers(2))
    thing = _one(random, THINGS)
    text = f"The {thing} costs {price:.2f} euros and is {'in stock' if in_stock else 'sold out'}."
    keys = {"item": "a string", "price": "a number", "in_stock": "true or false"}
    return text, keys, {"item": thing, "price": price, "in_stock": in_stock}


def order(random: np.random.Generator) -> Text:
    """Somebody's purchases, in their order."""
    name, *goods = _one(random, NAMES), *(str(each) for each in random.choice(GOODS, size=3, replace=False))
    text = f"{name} bought {goods[0]}, {goods[1]} and {goods[2]}."
    return text, {"buyer": "a string", "items": "a list of strings, in this order"}, {"buyer": name, "items": goods}


def journey(random: np.random.Generator) -> Text:
    """A train, from where to where, and its delay, which may not be known."""
    start, end = (str(each) for each in random.choice(CITIES, size=2, replace=False))
    late = None if random.integers(4) == 0 else int(random.integers(1, 60))
    told = "it is not known how late it is" if late is None else f"it is {late} minutes late"
    text = f"The train goes from {start} to {end}, and {told}."
    keys = {"from": "a string", "to": "a string", "minutes_late": "a whole number, or null if it is not known"}
    return text, keys, {"from": start, "to": end, "minutes_late": late}


TEXTS: tuple[Callable[[np.random.Generator], Text], ...] = (person, product, order, journey)


def _one(random: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(random.integers(len(words)))]
