"""Everything that a step of GRPO is made of, and the checks that need more than one of its parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optax
from jax import Array

from grpo_jax.objectives import Objective
from grpo_jax.rewards import Mix
from grpo_jax.structs import Params, Policy, Prompts, Rollouts


@dataclass(frozen=True, eq=False)
class Algorithm:
    """Everything GRPO is made of, and nothing that changes while it runs."""

    policy: Policy
    sample: Callable[[Policy, Params, Prompts, Array], Rollouts]
    decode: Callable[[Sequence[int]], str]
    reward: Mix | Callable[..., Any]
    objective: Objective
    optimizer: optax.GradientTransformation
    minibatches: int = 1  # optimiser steps for each batch of rollouts
    microbatch: int | None = None  # prompts whose gradient is computed at once; null: all of a minibatch
    group_parts: int = 1  # into how many parts the responses of a prompt are divided, when one group is too large
    sample_greedy: Callable[[Policy, Params, Prompts, Array], Rollouts] | None = None  # one answer, as a baseline
    teacher: tuple[Policy, Params] | None = None  # whose log-probs an objective with distillation follows

    def __post_init__(self) -> None:
        if self.objective.greedy_baseline and self.sample_greedy is None:
            raise ValueError(
                "This objective compares with greedy answers: give the algorithm sample_greedy (a config does, if the"
                " sampler is the native one)."
            )
        if self.objective.distillation and self.teacher is None:
            raise ValueError(
                "This objective follows a teacher: give the algorithm its policy and params (in a config, a section"
                " teacher: {name: ...})."
            )
        if self.group_parts > 1 and getattr(self.objective.surrogate, "sees_groups", False):
            raise ValueError("This objective compares responses of a group in its loss: use group_parts 1.")
        for name in ("minibatches", "microbatch", "group_parts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
