"""Scores the responses of a step on the host: what rewards say becomes the columns of an array.

A reward that fails, or returns something that is no reward, ends the run unless its `on_error` is mask: an error scored
as zero would teach the model that the answer was wrong.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float32

from grpo_jax.hosts.signals import exits_refused
from grpo_jax.rewards.batch import Batch
from grpo_jax.rewards.calling import Begun, Part, call_all, said, warn, with_calls
from grpo_jax.rewards.criteria import Criteria, checked
from grpo_jax.rewards.deadline import watched
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import LARGEST_REWARD, Mix, Reward, as_mix
from grpo_jax.rewards.steps import Steps
from grpo_jax.rewards.trl import Notes, as_number

StepRewards = dict[tuple[int, int], list[tuple[int, float]]]  # by (prompt, response): (end, reward) of each step


@dataclass(frozen=True)
class Answers:
    """What all rewards of a mix said of a batch. `found` are the criteria that undecided rewards returned."""

    batch: Batch
    parts: Sequence[Part]
    values: Sequence[Sequence[Any]]  # of each part, for each response
    notes: Notes
    found: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class Judged:
    """The rewards of a batch, NaN where there is none, and the weighted rewards of single steps where there are such.

    `metrics` are numbers of the whole batch; `extras` have a value for each response, in the order of the rows of P G.
    """

    rewards_PGR: Float32[np.ndarray, "P G R"]
    steps: StepRewards
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def score(
    reward: Mix | Reward,
    examples: Sequence[Example],
    responses: Sequence[Sequence[str]],
    tokens: Sequence[Sequence[Sequence[int]]] | None = None,
    step: int | None = None,
    seconds: float | None = None,
) -> Float32[np.ndarray, "P G R"]:
    """The R rewards of G responses to each of P examples, without weights; NaN where a reward returned None.

    `tokens`, nested like `responses`, and `step` are passed to TRL functions that have a parameter for them. After
    `seconds`, scoring ends with a TimeoutError that names the reward; None is no limit.
    """
    return judge(reward, examples, responses, tokens, step, seconds)[0]


def judge(
    reward: Mix | Reward,
    examples: Sequence[Example],
    responses: Sequence[Sequence[str]],
    tokens: Sequence[Sequence[Sequence[int]]] | None = None,
    step: int | None = None,
    seconds: float | None = None,
) -> tuple[Float32[np.ndarray, "P G R"], StepRewards]:
    """What `score` returns, and the weighted rewards of single steps where a reward returned `Steps`."""
    mix = as_mix(reward)
    answers = ask(mix, Batch(examples, responses, tokens, step), seconds)
    mix.learn(answers.found)
    judged = arrange(mix, answers)
    return judged.rewards_PGR, judged.steps


@exits_refused()
def ask(mix: Mix, batch: Batch, seconds: float | None = None, begun: Begun = MappingProxyType({})) -> Answers:
    """What all rewards say of all responses. `begun` are calls that have been made already."""
    notes = Notes(batch.count)
    with watched(seconds) as watch:
        parts = with_calls(mix, batch, notes)
        call_all(parts, watch, begun)
    values = [said(part, batch) for part in parts]
    found = {r: names for r in mix.undecided if (names := _criteria(values[r], parts[r].label)) is not None}
    return Answers(batch, parts, values, notes, found)


def arrange(mix: Mix, answers: Answers) -> Judged:
    """The array of rewards, once it is known which columns it has."""
    batch, P, G = answers.batch, len(answers.batch.responses), len(answers.batch.responses[0])
    columns, steps = [], {}
    for part, values, criteria, (_, weight) in zip(answers.parts, answers.values, mix.criteria, mix.parts, strict=True):
        columns.append([_row(part, criteria, value, n, batch) for n, value in enumerate(values)])
        for n, value in enumerate(values):
            if isinstance(value, Steps) and weight:
                pairs = zip(value.ends, value.rewards, strict=True)
                steps.setdefault(divmod(n, G), []).extend((end, weight * number) for end, number in pairs)
    warn(answers.parts, batch)
    rewards_PGR = np.concatenate([np.array(column, np.float32) for column in columns], axis=1).reshape(P, G, -1)
    return Judged(rewards_PGR, steps, _metrics(answers), answers.notes.extras)


def _metrics(answers: Answers) -> dict[str, float]:
    """What rewards logged, and the share of responses that were late, failed or got no verdict, where they may."""
    found, count = answers.notes.means(), answers.batch.count
    timed = [len(part.late) for part in answers.parts if part.guard.workers]
    unjudged = [
        sum(map(_is_unjudged, values)) for values, part in zip(answers.values, answers.parts, strict=True) if part.judge
    ]
    masked = [len(part.faults) for part in answers.parts if part.guard.on_error == "mask"]
    found |= {"rewards/late_frac": sum(timed) / len(timed) / count} if timed else {}
    found |= {"rewards/unjudged_frac": sum(unjudged) / len(unjudged) / count} if unjudged else {}
    return found | ({"rewards/failed_frac": sum(masked) / len(masked) / count} if masked else {})


def _is_unjudged(value: Any) -> bool:
    """Whether anything is missing from what a reward said of a response."""
    return value is None or (isinstance(value, Mapping) and None in value.values())


def _criteria(values: Sequence[Any], label: str) -> tuple[str, ...] | None:
    """The criteria of the first answer that was judged: none if it is a number. None if there is no such answer."""
    first = next((value for value in values if value is not None), None)
    if first is None:
        return None
    return checked(tuple(first), label) if isinstance(first, Mapping) else ()


def _row(part: Part, criteria: Criteria, value: Any, n: int, batch: Batch) -> list[float]:
    """The columns of a reward for one response."""
    count = max(len(criteria.names), 1)
    if value is None:
        return [math.nan] * count
    try:
        return _numbers(part.label, criteria, value, batch.place(n))
    except ValueError as error:
        part.fail(range(n, n + 1), error, str(error))
    return [math.nan] * count


def _numbers(label: str, criteria: Criteria, value: Any, place: str) -> list[float]:
    if isinstance(value, Mapping):
        _check_names(label, criteria, value, place)
        named = [(f"{label}/{name}", value[name], name in criteria.gates) for name in criteria.names]
        return [_number(each, number, place, is_gate) for each, number, is_gate in named]
    if criteria.names:
        raise ValueError(
            f"Reward {label} returned {value!r:.80} for {place}, and it has the criteria {', '.join(criteria.names)}:"
            " it must return a mapping from these to numbers each time, or None for a response that it cannot score."
        )
    return [_number(label, value.total if isinstance(value, Steps) else value, place)]


def _check_names(label: str, criteria: Criteria, value: Mapping[str, Any], place: str) -> None:
    """Refuses other criteria than those that the reward has."""
    if {*value} == {*criteria.names}:
        return
    if not criteria.names:
        raise ValueError(
            f"Reward {label} returned a mapping of {', '.join(map(str, value))} for {place}, and a number before."
            " Which of both it returns must not change: declare its criteria, or return a mapping each time."
        )
    strays, missing = ({*value} - {*criteria.names}), ({*criteria.names} - {*value})
    wrong = f"the criterion {min(map(str, strays))}" if strays else f"nothing for the criterion {min(missing)}"
    raise ValueError(
        f"Reward {label} returned {wrong} for {place}; its criteria are {', '.join(criteria.names)}. They never change,"
        " as each is a column of its own: return all of them each time, with None for one that cannot be judged."
    )


def _number(label: str, value: Any, place: str, is_gate: bool = False) -> float:
    if value is None:
        return math.nan
    number = as_number(value)
    if isinstance(number, numbers.Real) and abs(_as_float(number)) <= LARGEST_REWARD:  # NaN fails every comparison
        if is_gate and not 0 <= float(number) <= 1:
            raise ValueError(f"{label} is a gate, so it must be between 0 and 1; for {place} it is {number}.")
        return float(number)
    raise ValueError(
        f"Reward {label} must return a finite number of at most {LARGEST_REWARD:g}, or None for a response that it"
        f" cannot score; for {place} it returned {_shown(value)}."
    )


def _shown(value: Any) -> str:
    """The beginning of what a reward returned."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # a whole number with thousands of digits
        return f"a {type(value).__name__} that is too large"


def _as_float(number: numbers.Real) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number that is too large
        return math.inf
