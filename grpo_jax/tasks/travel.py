"""Open questions about cities: where to eat on the street, and when. There is no one right answer, so a rubric judges.

What is known of each city stands in `cities.toml`, and what a good answer has in `travel.toml`. Everything is judged by
rule; for a judge, copy that file, leave out the rules, and name it in `rewards`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.rubrics import Rubric
from grpo_jax.rewards.rubrics.wording import plain
from grpo_jax.tasks.task import Task, messages

CITIES, RUBRIC = (Path(__file__).with_name(name) for name in ("cities.toml", "travel.toml"))
QUESTIONS = (
    "Which neighbourhood of {city} should I visit for street food, and when?",
    "Where in {city} do people eat on the street, and at what time of day is it best?",
    "I love street food and have one day in {city}. Where do I go, and when?",
    "A friend flies to {city} next week. Which part of it would you send her to for street food, and at which hour?",
    "What is the best street food area of {city}, and when are its stalls busy?",
    "We want to eat what locals eat on the street in {city}. Which area do you recommend, and when should we be there?",
    "When and where should I go in {city} to try its street food?",
    "Name a place in {city} for a first taste of its street food, and say when to go.",
)
MOMENTS = {"night": "at night", "midday": "at midday", "noon": "at noon", "lunch": "at lunch", "sunset": "at sunset"}


def travel(
    held_out: int = 6,  # cities, none of which is trained on, Osaka first
    instruction: str = "Answer in two or three sentences.",
    system: str | None = None,
) -> Task:
    """Where to eat on the street in 39 cities, and when: 8 questions about each, judged by a rubric of rules.

    A good answer names a place, dishes and a time of day, is as long as asked for, and stays in the city. A perfect one
    earns 1.
    """
    cities = tomllib.loads(CITIES.read_text(encoding="utf-8"))["city"]
    check_range("task.held_out", held_out, least=0, below=len(cities), note="(cities)")
    rows = [
        [_example(city, _elsewhere(city, cities), question, instruction, system) for question in QUESTIONS]
        for city in cities
    ]
    training = tuple(example for examples in rows[held_out:] for example in examples)
    return Task(
        training, tuple(e for examples in rows[:held_out] for e in examples), Mix(((Rubric(str(RUBRIC)), 1.0),))
    )


def _example(
    city: Mapping[str, Any], elsewhere: Sequence[str], question: str, instruction: str, system: str | None
) -> Example:
    name, asked = city["name"], question.format(city=city["name"])
    columns = {"city": name, **{key: city[key] for key in ("places", "dishes", "times")}, "elsewhere": list(elsewhere)}
    source = f"travel, {name}, question {QUESTIONS.index(question) + 1}"
    return Example(messages(asked, instruction, system), _answer(city), {"question": asked, **columns}, source)


def _answer(city: Mapping[str, Any]) -> str:
    """An answer that has all that is asked for."""
    place, (first, second) = _spellings(city["places"][0])[0], (_spellings(dish)[0] for dish in city["dishes"][:2])
    time = city["times"][0]
    return (
        f"Go to {place} in {city['name']} {MOMENTS.get(time, f'in the {time}')}. The stalls there sell {first} and"
        f" {second}, and you can eat them as you walk from one to the next with everyone else."
    )


def _elsewhere(city: Mapping[str, Any], cities: Sequence[Mapping[str, Any]]) -> list[str]:
    """The other cities and their places, without names that this city has, too."""
    own = {plain(each) for item in [city["name"], *city["places"]] for each in _spellings(item)}
    names = [_spellings(item)[0] for other in cities if other is not city for item in [other["name"], *other["places"]]]
    return [name for name in dict.fromkeys(names) if plain(name) not in own]


def _spellings(item: str | Sequence[str]) -> Sequence[str]:
    return (item,) if isinstance(item, str) else item
