"""Questions about short documents. The document is the only source: what it does not say is not to be answered.

A few documents are written by hand (`documents.toml`), the others are made from a template, and all are made up, so
that nothing a model knows helps it. Held-out documents are not trained on.
"""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.rubrics import Rubric
from grpo_jax.tasks.task import Task, messages

DOCUMENTS, RUBRIC = (Path(__file__).with_name(name) for name in ("documents.toml", "grounded.toml"))
HAND_HELD_OUT = 2  # of the documents in the file, the first ones
UNSAID = "The document does not say."
INSTRUCTION = f"Answer in one sentence, from the document alone. If it has no answer, write: {UNSAID}"
DECLINES = [
    "does not say",
    "doesn't say",
    "not mentioned",
    "does not mention",
    "not say",
    "not stated",
    "no information",
]

NAMES = (
    "Amber Birch Copper Drift Ember Fallow Granite Hollow Indigo Juniper Kestrel Lantern Marble Nettle Orchard".split()
)
KINDS = {
    "Museum": "a ticket",
    "Baths": "a swim",
    "Observatory": "a visit",
    "Gardens": "a walk",
    "Library": "a reader's card",
}
TOWNS = ("Aldermoor", "Brennick", "Corvale", "Dunmere", "Eskford", "Farrow", "Gellan", "Hathersea")
STREETS = ("Mill Street", "Harbour Road", "Castle Lane", "Station Square", "Orchard Row", "Bridge Street")
FIRST = ("Ada", "Bruno", "Clara", "Dario", "Edith", "Felix", "Greta", "Hugo", "Irma", "Jonas")
LAST = ("Abbot", "Brandt", "Castell", "Dorn", "Ekholm", "Farkas", "Grieg", "Halloran", "Ivers", "Jansen")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
FREE = ("children", "students", "teachers", "residents", "pensioners")
UNKNOWN = (
    "How many people work at the {name}?",
    "Who designed the building of the {name}?",
    "What is the telephone number of the {name}?",
    "How many visitors does the {name} have in a year?",
    "In which year was the {name} last painted?",
)
MOST_TEMPLATED = len(NAMES) * len(KINDS)


@dataclass(frozen=True)
class _Question:
    """A question about a document; without `says`, the document does not answer it."""

    ask: str
    answer: str
    says: Sequence[str]


def grounded(
    documents: int = 60,  # made from a template, beside 10 that are written by hand
    held_out: int = 10,  # of those from the template, beside 2 of the others
    instruction: str = INSTRUCTION,
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Questions that a short document answers or does not, four about each, judged by a rubric of rules.

    A good answer is right, short and complete; a number or a name that is not in the document costs its share of the
    whole. A perfect one earns 1.
    """
    check_range("task.seed", seed, least=0)
    check_range("task.documents", documents, least=0, most=MOST_TEMPLATED)
    check_range("task.held_out", held_out, least=0, most=documents)
    by_hand = [
        (f"documents.toml, document {number}", each["text"], [_Question(**question) for question in each["questions"]])
        for number, each in enumerate(tomllib.loads(DOCUMENTS.read_text(encoding="utf-8"))["document"], 1)
    ]
    made = list(_made(documents, np.random.default_rng(seed)))
    kept = [*by_hand[:HAND_HELD_OUT], *made[:held_out]] if held_out else []
    trained = [*by_hand[HAND_HELD_OUT if held_out else 0 :], *made[held_out:]]
    training, testing = (
        tuple(_example(*document, question, instruction, system) for document in part for question in document[2])
        for part in (trained, kept)
    )
    return Task(training, testing, Mix(((Rubric(str(RUBRIC)), 1.0),)))


def _example(
    source: str, text: str, _: Sequence[_Question], asked: _Question, instruction: str, system: str | None
) -> Example:
    columns = {
        "document": text,
        "question": asked.ask,
        "answer": asked.answer,
        "accepted": list(asked.says) if asked.says else DECLINES,
        "refusals": DECLINES if asked.says else [],
    }
    prompt = messages(f"Document:\n{text}\n\nQuestion: {asked.ask}", instruction, system)
    return Example(prompt, asked.answer, columns, source)


def _made(count: int, random: np.random.Generator) -> Iterator[tuple[str, str, list[_Question]]]:
    """Documents from the template, each about another place."""
    for number, index in enumerate(random.permutation(MOST_TEMPLATED)[:count], 1):
        kind = list(KINDS)[index % len(KINDS)]
        name = f"{NAMES[index // len(KINDS)]} {kind}"
        town, street, first, last, day, free = (
            str(random.choice(words)) for words in (TOWNS, STREETS, FIRST, LAST, DAYS, FREE)
        )
        year, price = int(random.integers(1790, 1990)), int(random.integers(25, 99))
        opens, closes = int(random.integers(7, 12)), int(random.integers(16, 22))
        text = (
            f"The {name} is on {street} in {town}. {first} {last} founded it in {year}. It opens at {opens} and closes"
            f" at {closes}, except on {day}, when it stays closed all day. The price of {KINDS[kind]} is {price}"
            f" crowns; {free} pay nothing."
        )
        known = [
            _Question(f"Who founded the {name}?", f"{first} {last} founded it.", [f"{first} {last}", last]),
            _Question(f"In which year was the {name} founded?", f"It was founded in {year}.", [str(year)]),
            _Question(f"On which day is the {name} closed?", f"It is closed on {day}.", [day]),
            _Question(f"What is the price of {KINDS[kind]} at the {name}?", f"It is {price} crowns.", [str(price)]),
            _Question(f"Who pays nothing at the {name}?", f"The {free} pay nothing.", [free]),
            _Question(f"On which street is the {name}?", f"It is on {street}.", [street]),
        ]
        chosen = [known[n] for n in random.permutation(len(known))[:3]]
        unknown = _Question(str(random.choice(UNKNOWN)).format(name=name), UNSAID, [])
        yield f"grounded, document {number}", text, [*chosen, unknown]
