"""What a reward is called with, by the names of its parameters.

    (example, response)      one response, the last reply if it has several turns; returns its reward
    (example, conversation)  one response, with all of its turns; returns its reward
    (example, responses)     the responses of one group; returns a list with the reward of each
    (examples, responses)    all groups of this host, each a list; returns a list of such lists
    completions, ...         all responses, as TRL calls it (trl.py); returns a list with the reward of each
    completion, ...          one response, as verifiers calls it (trl.py); returns its reward

Each may be `async def`. Parameters with these names may stand in any order. In place of a list, None is a group, or all
groups, that could not be judged.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from grpo_jax.rewards import trl
from grpo_jax.rewards.batch import Batch, place_of
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.guarded import Guarded, judge_of, unguarded
from grpo_jax.rewards.mixing import Mix

BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Kind(Enum):
    """Whose convention a reward follows, and how much one call of it judges."""

    RESPONSE = "one value"
    CONVERSATION = "one value of its conversation"
    GROUP = "a list with one value per response"
    ALL = "a list of lists, one per group, with one value per response"
    TRL = "a list with one value per completion"
    VERIFIERS = "one value of its completion"


@dataclass(frozen=True)
class Request:
    """One call of a reward: the responses that it judges, counted over all groups, and its arguments."""

    responses: range
    place: str
    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)


def kind_of(reward: Callable[..., Any], columns: Collection[str] = ()) -> Kind:
    """Whose convention a reward follows. `columns` are those of the data: TRL passes them by name."""
    parameters = inspect.signature(unguarded(reward)).parameters
    names, kinds = set(parameters), {parameter.kind for parameter in parameters.values()}
    if "responses" in names:
        return Kind.ALL if "examples" in names else Kind.GROUP
    if "examples" in names:
        raise ValueError(
            f"A reward of (examples, responses) judges all groups, one of (example, response) a single response; got"
            f" ({', '.join(parameters)}). Rename a parameter."
        )
    if trl.TELLING & names:
        return Kind.TRL
    if "conversation" in names and "conversation" not in columns:
        return Kind.CONVERSATION
    if "example" not in names and trl.TELLING_VERIFIERS & names:
        return Kind.VERIFIERS
    needed = {name for name, each in parameters.items() if each.default is each.empty and each.kind in NAMED}
    if trl.PASSED & names and needed <= trl.PASSED | {*columns}:
        return Kind.TRL
    if inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        fixed = {name: each for name, each in parameters.items() if each.kind in POSITIONAL}
        required = {name for name, each in fixed.items() if each.default is each.empty}
        if trl.PASSED & names or len(fixed) < 2 or (required and required <= {*columns}):
            return Kind.TRL
    if trl.PASSED_BY_VERIFIERS & names and needed <= trl.OFFERED_BY_VERIFIERS | {*columns}:
        return Kind.VERIFIERS
    return Kind.RESPONSE


def may_log(mix: Mix) -> bool:
    """Whether scoring with this mix may give numbers of the step beside the rewards."""
    signatures = [inspect.signature(unguarded(reward)).parameters for reward, _ in mix.parts]
    takes_all = [any(each.kind is each.VAR_KEYWORD for each in parameters.values()) for parameters in signatures]
    logs = any(every or "log_metric" in names for every, names in zip(takes_all, signatures, strict=True))
    return logs or any(isinstance(reward, Guarded) or judge_of(reward) is not None for reward, _ in mix.parts)


def requests(reward: Callable[..., Any], label: str, kind: Kind, batch: Batch, notes: trl.Notes) -> Iterator[Request]:
    """The calls with which a reward judges all responses."""
    if kind is Kind.TRL:
        offered = trl.offered(batch, notes)
        every = f"a batch of {batch.count} responses to {len(batch.examples)} examples"
        yield Request(range(batch.count), every, (), trl.accepted(unguarded(reward), label, offered))
    elif kind is Kind.ALL:
        every = f"all {len(batch.examples)} groups of responses"
        groups = [list(group) for group in batch.responses]
        arguments = _by_name(reward, {"examples": list(batch.examples), "responses": groups})
        yield Request(range(batch.count), every, *arguments)
    elif kind is Kind.CONVERSATION:
        yield from _of_conversations(reward, batch)
    else:
        for p, (example, group) in enumerate(zip(batch.examples, batch.responses, strict=True)):
            yield from requests_of_group(reward, label, kind, example, group, p)


def _of_conversations(reward: Callable[..., Any], batch: Batch) -> Iterator[Request]:
    """A call for each response, with its conversation."""
    G = len(batch.responses[0])
    for n, (example, _) in enumerate(batch.pairs()):
        values = {"example": example, "conversation": batch.conversation(*divmod(n, G))}
        yield Request(range(n, n + 1), batch.place(n), *_by_name(reward, values))


def requests_of_group(
    reward: Callable[..., Any], label: str, kind: Kind, example: Example, responses: Sequence[str], p: int
) -> Iterator[Request]:
    """The calls with which a reward judges the group with this index; not for a reward that judges all groups at once.

    All groups have the same number of calls.
    """
    first = p * len(responses)
    if kind is Kind.GROUP:
        arguments = _by_name(reward, {"example": example, "responses": list(responses)})
        yield Request(range(first, first + len(responses)), place_of(example, p), *arguments)
        return
    for g, response in enumerate(responses):
        only, place = range(first + g, first + g + 1), place_of(example, p, g)
        if kind is Kind.RESPONSE:
            yield Request(only, place, *_by_name(reward, {"example": example, "response": response}))
        else:
            offered = trl.offered_to_verifiers(example, response)
            yield Request(only, place, (), trl.accepted(unguarded(reward), label, offered))


def _by_name(reward: Callable[..., Any], values: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Arguments by name, if the reward has all of these names; else by position, in this order or the other one."""
    parameters = inspect.signature(unguarded(reward)).parameters
    given = {name for name, each in parameters.items() if each.kind in BY_KEYWORD}
    if given >= {*values}:
        return (), values
    fixed, (first, second) = [name for name, each in parameters.items() if each.kind in POSITIONAL], values
    swapped = fixed[:1] == [second] or fixed[1:2] == [first]
    ordered = tuple(values.values())
    return ordered[::-1] if swapped else ordered, {}


def entries(value: Any, kind: Kind, label: str, batch: Batch, request: Request) -> Sequence[Any]:
    """What a call said of each of its responses."""
    if kind in (Kind.RESPONSE, Kind.CONVERSATION, Kind.VERIFIERS):
        return (value,)
    count = len(request.responses)
    if value is None and kind is not Kind.TRL:  # none of them was judged
        return [None] * count
    values = _listed(value, label, kind, most=2 if kind is Kind.ALL else 1)
    if kind is Kind.ALL:
        if len(values) != len(batch.examples):
            raise ValueError(f"Reward {label} must return {kind.value}: {len(batch.examples)}; got {len(values)}.")
        G = len(batch.responses[0])
        groups = [[None] * G if group is None else _listed(group, label, kind) for group in values]
        short = next((n for n, group in enumerate(groups) if len(group) != G), None)
        if short is not None:
            raise ValueError(
                f"Reward {label} must return {kind.value}: {G}; got {len(groups[short])} for"
                f" {place_of(batch.examples[short], short)}."
            )
        return [each for group in groups for each in group]
    if len(values) != count:
        at = "" if kind is Kind.TRL else f" for {request.place}"
        raise ValueError(
            f"Reward {label} must return {kind.value.removeprefix('a list with ')}: {count}; got {len(values)}{at}."
        )
    return values


def _listed(value: Any, label: str, kind: Kind, most: int = 1) -> list[Any]:
    """A list, tuple or array with one axis, or as many as `most`, of NumPy, JAX or torch, as a list."""
    if isinstance(value, list | tuple):
        return list(value)
    if 1 <= getattr(value, "ndim", 0) <= most and hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"Reward {label} must return {kind.value}; got a {type(value).__name__}.")
