"""What an answer is judged by: criteria, each with a question, its possible answers, and a weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from grpo_jax.rewards.rubrics.rules import Rule

NO_YES = ("no", "yes")


@dataclass(frozen=True)
class Criterion:
    """One question about an answer. The value is between 0, for the worst of `answers`, and 1, for the best.

    With a `rule` it is computed from the text; without, a judge is asked. A `gate` multiplies what the other criteria
    give; a `negative` one is subtracted, as it asks for a fault. `place` is where it was written.
    """

    name: str
    text: str
    weight: float = 1.0
    answers: tuple[str, ...] = NO_YES
    gate: bool = False
    negative: bool = False
    rule: Rule | None = None
    place: str = ""

    @property
    def signed_weight(self) -> float:
        """The weight in the sum, negative for a fault."""
        return -self.weight if self.negative else self.weight


@dataclass(frozen=True)
class Asked:
    """A criterion as a judge is asked it: its question, and the answers from the worst to the best."""

    name: str
    text: str
    answers: tuple[str, ...] = NO_YES


@dataclass(frozen=True)
class Sheet:
    """One response, with everything that a judge is asked about it. Equal sheets are judged once."""

    instructions: str
    prompt: str
    response: str
    criteria: tuple[Asked, ...]


@runtime_checkable
class Judge(Protocol):
    """What answers questions about responses."""

    def check(self, sheet: Sheet) -> None:
        """Raises a ValueError if the questions of a sheet cannot be asked at all."""

    def judge(self, sheets: Sequence[Sheet]) -> list[list[float | None]]:
        """For each sheet the value of each criterion, from 0 to 1; None where there is no verdict."""


@runtime_checkable
class AsyncJudge(Judge, Protocol):
    """A judge that waits for something, such as a server, and meanwhile lets others go on."""

    async def verdict(self, sheet: Sheet) -> list[float | None]:
        """The value of each criterion of one sheet, from 0 to 1; None where there is no verdict."""
        ...


def value_of(place: float, answers: int) -> float:
    """The value of an answer by its place, 0 for the worst. Between two answers it is a number between their values."""
    return place / (answers - 1)
