"""GRPO on one page: sample a group of responses to each prompt, score them, move towards the better ones.

Read `step` first: it calls the four functions below it, in their order. What is minimised is

    loss = -sum over tokens of weight * (min(r A, clip(r) A) - beta KL)

    A        how much better than its group a response was                      objectives/advantages.py
    weight   how much each token counts, fixed before the gradient              objectives/weightings.py
    r        probability of the token now, over that when the batch was made    objectives/ratios.py
    clip     how far r may move a token: the surrogate                          objectives/surrogates.py
    KL       the distance from a reference policy, if there is one              objectives/kl.py

Engines sample (`rollout/`), plain Python scores (`scoring.py`, `rewards/`), an objective decides what is learned
(`objectives/`), and gradients are added up over microbatches (`learner/`). All of them are arguments (`Algorithm`), so
research code calls these functions with its own.

Three things differ from the paper (DeepSeekMath, arXiv:2402.03300): (1) the weights of the tokens are computed from
the whole global batch before any gradient, so microbatches and devices change nothing but rounding; (2) deviations are
those of a sample (n-1), plus a small constant; (3) a response that could not be scored is left out of its group's mean
and gets no advantage.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithm import Algorithm
from grpo_jax.learner import check_batch, compare, fixed_logprobs, follow, learn
from grpo_jax.metrics import describe, describe_given, with_logged
from grpo_jax.objectives import first_coefficients
from grpo_jax.optimizers import first_state
from grpo_jax.rollout import answer
from grpo_jax.scoring import EarlyScoring, Rewards, score_rollouts, scored, unscored
from grpo_jax.structs import Batch, Metrics, Params, Prompts, Rollouts, TrainState

Phase = Callable[[str], AbstractContextManager]  # entered around "sampling", "scoring" and "learning", to time them


@partial(jax.jit, static_argnames="algorithm")
def init(algorithm: Algorithm, params: Params) -> TrainState:
    """The state before the first update, which frees `params`; a reference policy is a copy of them."""
    trained = algorithm.policy.trained(params)
    reference = jax.tree.map(jnp.copy, trained) if algorithm.objective.needs_reference else None
    opt_state = first_state(algorithm.optimizer, trained, algorithm.gradients)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, reference, first_coefficients(algorithm.objective))


def step(
    algorithm: Algorithm,
    state: TrainState,
    prompts: Prompts,
    examples: Sequence[Any],
    key: Array,
    phase: Phase = nullcontext,
) -> tuple[TrainState, Metrics]:
    """The state after one step of GRPO, and its metrics. The old state is donated: do not use it again.

    `examples` are what the rewards see, one for each prompt. Give every step its own key:
    `jax.random.fold_in(key, step)`.
    """
    with EarlyScoring(algorithm, prompts, examples) as early:
        rollouts = sample(algorithm, state, prompts, examples, key, phase, early)
        rewards = score(algorithm, rollouts, examples, phase, int(state.step), early)
    batch = prepare(algorithm, state, rollouts, rewards, key, phase)
    return update(algorithm, state, batch, phase)


def sample(
    algorithm: Algorithm,
    state: TrainState,
    prompts: Prompts,
    examples: Sequence[Any],
    key: Array,
    phase: Phase = nullcontext,
    early: EarlyScoring | None = None,
) -> Rollouts:
    """G responses to each prompt, with what the sampler knew when it chose their tokens.

    Rewards that wait for something are asked for each group as soon as it is there, if `score` then gets `early`, too.
    """
    inputs = (algorithm.policy, state.params, prompts, key, examples)
    with phase("sampling"):
        rollouts = jax.block_until_ready(answer(algorithm.engine, *inputs, **({} if early is None else early.talks)))
        greedy = algorithm.engine.greedy() if algorithm.objective.greedy_baseline else None
        return rollouts if greedy is None else replace(rollouts, greedy=jax.block_until_ready(greedy(*inputs)))


def score(
    algorithm: Algorithm,
    rollouts: Rollouts,
    examples: Sequence[Any],
    phase: Phase = nullcontext,
    step: int = 0,
    early: EarlyScoring | None = None,
) -> Rewards:
    """What each response earned, by every reward. `step` is for reward functions written for TRL that ask for it."""
    if not algorithm.objective.needs_rewards:
        return unscored(algorithm, rollouts)
    with phase("scoring"):
        return score_rollouts(algorithm, rollouts, examples, step, early)


def prepare(
    algorithm: Algorithm,
    state: TrainState,
    rollouts: Rollouts,
    rewards: Rewards,
    key: Array,
    phase: Phase = nullcontext,
) -> Batch:
    """The batch to learn from: advantages, the weight of every token, and the log-probs that stay fixed."""
    check_batch(algorithm, rollouts)
    rollouts = replace(rollouts, greedy=None)
    with phase("learning"):
        fixed = fixed_logprobs(algorithm, state, rollouts)
        batch = compare(algorithm, rollouts, scored(algorithm, rollouts, rewards), key, state.coefficients, fixed)
        if not algorithm.objective.needs_rewards:
            return replace(batch, metrics=describe_given(rollouts))
        described = describe(rollouts, rewards.parts_PGR, algorithm.mix)
        return replace(batch, metrics=with_logged(described, rewards.metrics))


def update(
    algorithm: Algorithm, state: TrainState, batch: Batch, phase: Phase = nullcontext, largest_norm: float = math.inf
) -> tuple[TrainState, Metrics]:
    """The state after an optimiser step for each minibatch, and the metrics of the batch. Donates the old state.

    Minibatches that are not finite, or whose gradient has a larger norm, are left out: `skipped_updates` counts them.
    """
    with phase("learning"):
        state, measured = learn(algorithm, state, replace(batch, metrics={}), largest_norm)
        metrics = batch.metrics | measured
        return jax.block_until_ready(follow(algorithm, state, batch, metrics))
