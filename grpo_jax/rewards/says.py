"""Which answer a reward reads in a response, so that equal answers of several responses can vote together (maj@k).

A reward says it with `said(response)`: what the response answers (a number, a string, or a tuple of these), or None
where it answers nothing. A class has it as a method; a function gets it from `says`.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from grpo_jax.rewards.guarded import innermost
from grpo_jax.rewards.mixing import Reward, name

Said = Callable[[str], Hashable | None]
Function = TypeVar("Function", bound=Callable[..., Any])


def says(said: Said) -> Callable[[Function], Function]:
    """Gives a reward function the `said` of its responses: `@says(final_number)` above its definition."""

    def marked(function: Function) -> Function:
        function.__dict__["said"] = said
        return function

    return marked


def said_of(reward: Reward) -> Said | None:
    """What a response answers by this reward; None if the reward does not say it."""
    said, label = getattr(innermost(reward), "said", None), name(reward)
    if not callable(said):
        return None

    def told(response: str) -> Hashable | None:
        answer = said(response)
        try:
            hash(answer)
        except TypeError:
            raise ValueError(
                f"said of reward {label} gives the answer of a response, so that equal ones can be counted: a number, a"
                f" string, a tuple of these, or None; got {answer!r:.80}. Return one of them."
            ) from None
        return answer

    return told
