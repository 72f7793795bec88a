"""Everything that a step of GRPO is made of, and the checks that need more than one of its parts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import optax

from grpo_jax.objectives import Objective
from grpo_jax.optimizers import FiniteSteps
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rewards import Mix, as_mix
from grpo_jax.rollout import Engine, as_engine
from grpo_jax.structs import Params, Policy, Rollouts, TrainState


@dataclass(frozen=True, eq=False)
class Algorithm:
    """Everything GRPO is made of, and nothing that changes while it runs."""

    policy: Policy
    sample: Engine | Callable[..., Rollouts]  # a Sampler, or any function (policy, params, prompts, key) -> Rollouts
    decode: Callable[[Sequence[int]], str]
    reward: Mix | Callable[..., Any]
    objective: Objective
    optimizer: optax.GradientTransformation
    minibatches: int = 1  # optimiser steps for each batch of rollouts
    responses_at_once: int | None = None  # that each device learns from at once; null: as many as its memory holds
    gradients: Literal["whole", "by_layer"] = "whole"  # by_layer: none is ever whole; see docs/memory.md
    reward_seconds: float | None = 600.0  # that scoring a step's responses may take; null: no limit
    load_balancing: float = 0.0  # coefficient of the load-balancing loss of a model with experts, e.g. 0.001
    teacher: tuple[Policy, Params] | None = None  # whose log-probs an objective with distillation follows
    judge: tuple[Policy, Params] | None = None  # that a reward asks, and whose weights take memory, too

    def __post_init__(self) -> None:
        if self.objective.greedy_baseline and self.engine.greedy() is None:
            raise ValueError(
                "This objective compares with greedy answers, which this engine cannot give: use the native sampler,"
                " or an engine with a method `greedy`."
            )
        if self.objective.distillation and self.teacher is None:
            raise ValueError(
                "This objective follows a teacher: give the algorithm its policy and params (in a config, a section"
                " teacher: {name: ...})."
            )
        for name in ("minibatches", "responses_at_once"):
            if getattr(self, name) is not None:
                check_range(f"algorithm.{name}", getattr(self, name), least=1, most=WHOLE)
        check_range("algorithm.load_balancing", self.load_balancing, least=0)
        if self.load_balancing and self.policy.balanced is None:
            raise ValueError(
                f"algorithm.load_balancing is {self.load_balancing}, and this model has no experts to balance: leave it"
                " out, or use a model with experts."
            )
        if self.gradients not in ("whole", "by_layer"):
            raise ValueError(f"algorithm.gradients is whole or by_layer; got {self.gradients!r}.")
        if self.gradients == "by_layer":
            self._check_by_layer()
        if self.reward_seconds is not None:
            check_range("algorithm.reward_seconds", self.reward_seconds, above=0, most=WHOLE)

    def _check_by_layer(self) -> None:
        """Refuses what does not go together with gradients that are applied layer by layer."""
        if self.policy.frozen:
            raise ValueError(
                "algorithm.gradients by_layer saves the gradient of all weights, which adapters (model.lora) do not"
                " have: leave it out (algorithm.gradients=whole)."
            )
        if self.policy.layered is None:
            raise ValueError(
                "algorithm.gradients by_layer is not for models with experts: leave it out (algorithm.gradients=whole)."
            )
        if not isinstance(self.optimizer, FiniteSteps):
            raise ValueError(
                "algorithm.gradients by_layer is for an optimizer whose steps are known to be finite before they are"
                " taken: adamw or adafactor of grpo_jax, with the usual settings. Use algorithm.gradients=whole with"
                " another."
            )

    @cached_property
    def engine(self) -> Engine:
        """What answers the prompts."""
        return as_engine(self.sample)

    @cached_property
    def mix(self) -> Mix:
        """The rewards with their weights. It learns once which criteria they have, so there is one for all steps."""
        return as_mix(self.reward)

    @property
    def clip_norm(self) -> float:
        """The norm that a gradient is scaled down to, where the optimiser tells; infinity where it does not."""
        return self.optimizer.clip_norm if isinstance(self.optimizer, FiniteSteps) else math.inf

    @property
    def compares_in_groups(self) -> bool:
        """Whether the loss of a response depends on the others of its group, so that groups must not be divided."""
        return getattr(self.objective.surrogate, "sees_groups", False)

    def compared_with(self, state: TrainState) -> dict[str, tuple[Policy, Params]]:
        """The policies whose log-probs have to be known before the gradient, by their names in a `Batch`.

        The log-probs of the policy itself are computed only for a KL term in the reward, or for several minibatches if
        the objective compares with them. Otherwise those of the gradient's own pass are used.
        """
        objective, compared = self.objective, {}
        if objective.needs_old_logprobs or (self.minibatches > 1 and objective.compares_with_old):
            compared["old_logprobs_PGT"] = self.policy, state.params
        if objective.needs_reference:
            compared["ref_logprobs_PGT"] = self.policy, state.params | (state.reference or {})
        if objective.distillation:
            compared["teacher_logprobs_PGT"] = self.teacher
        return compared
