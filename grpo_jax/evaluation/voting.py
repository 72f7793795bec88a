"""Which responses give the same answer, for the majority of several. Rewards say it, as they know what an answer is.

A reward says it with `said(response)`: what the response answers, as something that can be compared (a number, a
string), or None where it answers nothing. A class has it as a method, a function as an attribute.
"""

from collections.abc import Callable, Hashable
from typing import Any

from grpo_jax.rewards import MathEqual, Mix, boxed_number, exact, last_number
from grpo_jax.rewards.answers import final_mark, final_number
from grpo_jax.rewards.guarded import innermost
from grpo_jax.rewards.mixing import Reward
from grpo_jax.rewards.numbers import read_number, read_quantity

Said = Callable[[str], Hashable | None]


def said_by(mix: Mix, right: str | None = None) -> Said | None:
    """What a response answers, as the reward named `right` tells it, or else the one with the largest weight that does;
    None if no reward does.
    """
    named = [reward for (reward, _), label in zip(mix.parts, mix.labels, strict=True) if label == right]
    counting = sorted((part for part in mix.parts if part[1] > 0), key=lambda part: -part[1])
    found = [said_of(reward) for reward in named or [reward for reward, _ in counting]]
    return next((said for said in found if said is not None), None)


def said_of(reward: Reward) -> Said | None:
    """What a response answers by this reward; None if the reward does not say it."""
    written = innermost(reward)
    own = getattr(written, "said", None)
    if callable(own):
        return own
    if written is last_number:
        return final_number
    if written is exact:
        return whole_answer
    return marked_answer if written is boxed_number or isinstance(written, MathEqual) else None


def whole_answer(response: str) -> Hashable | None:
    """The whole response as a number, or as text without a final full stop; None for an empty one."""
    text = response.strip().removesuffix(".").rstrip()
    return None if not text else _number_or(read_number(response), text)


def marked_answer(response: str) -> Hashable | None:
    """What a response marks as its answer, as a number or else as text without spaces; None without a mark."""
    mark = final_mark(response)
    text = "" if mark is None else "".join(mark.text.split())
    return None if mark is None or not text else _number_or(read_quantity(mark.text), text)


def _number_or(number: Any, text: str) -> Hashable:
    return text if number is None else number
