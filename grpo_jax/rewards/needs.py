"""What a reward needs of an example, checked for every example before training.

A reward says it with `check(example)`, which raises a ValueError where the reward could score no response at all. A
class has it as a method; a function gets it from `needs`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from grpo_jax.rewards.example import Example
from grpo_jax.rewards.guarded import innermost
from grpo_jax.rewards.mixing import Mix, Reward, as_mix

Function = TypeVar("Function", bound=Callable[..., Any])


def needs(check: Callable[[Example], object]) -> Callable[[Function], Function]:
    """Gives a reward function the `check` of its examples: `@needs(has_answer)` above its definition."""

    def marked(function: Function) -> Function:
        function.__dict__["check"] = check
        return function

    return marked


def check_of(reward: Reward) -> Callable[[Example], object] | None:
    """The check of a reward; None if it has none."""
    check = getattr(innermost(reward), "check", None)
    return check if callable(check) else None


def check_examples(reward: Mix | Reward, examples: Sequence[Example], kind: str) -> None:
    """Shows every example to the check of every reward; names the first one that is refused. `kind` is training or
    held-out.
    """
    mix = as_mix(reward)
    for (part, _), label in zip(mix.parts, mix.labels, strict=True):
        check = check_of(part)
        if check is not None:
            _check_each(check, label, examples, kind)


def _check_each(check: Callable[[Example], object], label: str, examples: Sequence[Example], kind: str) -> None:
    for index, example in enumerate(examples):
        try:
            check(example)
        except Exception as error:
            place = example.source if example.source else f"{kind} example {index}"
            raise ValueError(f"{place}: reward {label} cannot score any response to it: {error}") from error
