"""A weighted mix of rewards, and scoring a step's responses with it on the host.

A reward is a function of an example and a response. It returns a number, `Steps` if it scores single steps, or None if
it cannot score the response. Functions written for TRL are rewards too, unchanged (see `trl.py`). A reward that fails
or returns anything else stops the run: an error scored as zero would teach the model that the answer was wrong.
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from grpo_jax.hosts.signals import exits_refused
from grpo_jax.ranges import check_range
from grpo_jax.rewards import trl
from grpo_jax.rewards.deadline import Watch, watched
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.steps import Steps

Reward = Callable[..., "float | Steps | None"]
StepRewards = dict[tuple[int, int], list[tuple[int, float]]]  # by (prompt, response): (end, reward) of each step
LARGEST_REWARD = 1e12  # beyond it, float32 cannot hold the squares that deviations are made of
LARGEST_WEIGHT = 1e6


@dataclass(frozen=True)
class Mix:
    """Rewards, each with its weight in the sum; one with weight zero is only recorded."""

    parts: tuple[tuple[Reward, float], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("A Mix needs at least one (reward, weight); got none.")
        if not all(isinstance(part, tuple) and len(part) == 2 for part in self.parts):
            raise ValueError(f"A Mix is a tuple of pairs, such as ((exact, 1.0),); got {self.parts!r}.")
        for reward, weight in self.parts:
            check_range(f"The weight of {name(reward)}", weight, least=-LARGEST_WEIGHT, most=LARGEST_WEIGHT)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each reward in metrics; a name that occurs again gets a number."""
        names: list[str] = []
        for reward, _ in self.parts:
            names.append(_numbered(name(reward), names))
        return tuple(names)

    @property
    def weights_R(self) -> Float32[np.ndarray, " R"]:
        """The weight of each reward."""
        return np.array([weight for _, weight in self.parts], np.float32)


def as_mix(reward: Mix | Reward) -> Mix:
    """The mix itself, or a mix of a single reward with weight one."""
    return reward if isinstance(reward, Mix) else Mix(((reward, 1.0),))


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


@exits_refused()
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
    _check_groups(examples, responses)
    P, G = len(responses), len(responses[0])
    rewards_PGR = np.empty((P, G, len(mix.parts)), np.float32)
    step_rewards: StepRewards = {}
    with watched(seconds) as watch:
        for r, ((part, weight), label) in enumerate(zip(mix.parts, mix.names, strict=True)):
            if trl.is_trl(part):
                watch.at = f"reward {label}, with all {P * G} responses"
                values = trl.call(part, label, examples, responses, tokens, step)
            else:
                values = _call_each(part, label, examples, responses, watch)
            for n, value in enumerate(values):
                p, g = divmod(n, G)
                if isinstance(value, Steps):
                    if weight:
                        steps = zip(value.ends, value.rewards, strict=True)
                        step_rewards.setdefault((p, g), []).extend((end, weight * number) for end, number in steps)
                    value = value.total
                rewards_PGR[p, g, r] = _number(value, label, examples[p], p, g)
    return rewards_PGR, step_rewards


def name(reward: Reward) -> str:
    """The name of the function, or of the class of a callable object."""
    if isinstance(reward, functools.partial):
        return name(reward.func)
    return getattr(reward, "__name__", type(reward).__name__)


def _call_each(
    reward: Reward, label: str, examples: Sequence[Example], responses: Sequence[Sequence[str]], watch: Watch
) -> Iterator[object]:
    for p, (example, group) in enumerate(zip(examples, responses, strict=True)):
        for g, response in enumerate(group):
            watch.at = f"reward {label}, {_place(example, p, g)}"
            try:
                value = reward(example, response)
            except trl.FAILURES as error:
                text = f"{type(error).__name__}: {error}".rstrip(" .:")
                raise ValueError(
                    f"Reward {label} failed on {_place(example, p, g)}: {text}."
                    " A reward returns 0 for a response that it cannot read, and None for one that it cannot score."
                ) from error
            yield value


def _number(value: object, label: str, example: Example, p: int, g: int) -> float:
    if value is None:
        return math.nan
    if isinstance(value, numbers.Real | np.bool_) and abs(float(value)) <= LARGEST_REWARD:  # NaN fails every comparison
        return float(value)
    raise ValueError(
        f"Reward {label} must return a finite number of at most {LARGEST_REWARD:g}, or None for a response that it"
        f" cannot score; for {_place(example, p, g)} it returned {value!r}."
    )


def _place(example: Example, p: int, g: int) -> str:
    return f"example {p}, response {g}" + (f" ({example.source})" if example.source else "")


def _check_groups(examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> None:
    sizes = [len(group) for group in responses]
    if not examples or len(sizes) != len(examples) or len(set(sizes)) != 1 or sizes[0] == 0:
        raise ValueError(
            "Scoring needs at least one example and a group of responses for each, all of one size;"
            f" got {len(examples)} examples and groups of {sizes}."
        )


def _numbered(label: str, taken: Sequence[str]) -> str:
    candidates = (label if n == 1 else f"{label}_{n}" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)
