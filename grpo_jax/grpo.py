"""GRPO, top to bottom: sample a group of responses to each prompt, score them, move towards the better ones.

Read `step` first. Models, engines, rewards and objectives come in as arguments (`Algorithm`), so research code calls
the same functions with its own. Sampling, `update` and `fixed_logprobs` run on the devices, under `jit`; the rest is
glue in the order it happens.

Three things differ from the paper (DeepSeekMath, arXiv:2402.03300): (1) the weights of the tokens are fixed for the
whole global batch before the gradient, so microbatches, minibatches and devices change nothing but rounding;
(2) deviations are those of a sample (n-1), plus a small constant; (3) a response that could not be scored is left out
of its group's mean and gets no advantage.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding, Sharding
from jaxtyping import Float

from grpo_jax.advantages import weighted_total
from grpo_jax.logprobs import token_logprobs
from grpo_jax.objectives import Objective
from grpo_jax.rewards import Mix, as_mix, score
from grpo_jax.runtime.metrics import describe
from grpo_jax.structs import Batch, Params, Policy, Prompts, Rollouts, TrainState

Metrics = dict[str, Array | float]


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

    def __post_init__(self) -> None:
        if self.minibatches < 1 or (self.microbatch is not None and self.microbatch < 1):
            raise ValueError(
                f"minibatches and microbatch must be at least 1; got {self.minibatches} and {self.microbatch}."
            )


class Watch:
    """Someone who looks on during a step; this one looks away."""

    def phase(self, name: str) -> AbstractContextManager:
        """Entered around "sampling", "scoring" and "learning"."""
        return nullcontext()

    def answers(self, examples: Sequence, responses: Sequence[Sequence[str]], rewards_PGR, advantages_PG) -> None:
        """Called once the responses of a step have been scored."""


NOBODY = Watch()


@partial(jax.jit, static_argnames="algorithm")
def begin(algorithm: Algorithm, params: Params) -> TrainState:
    """The state before the first update. It takes the parameters over: a reference policy is a copy."""
    return TrainState(jnp.zeros((), jnp.int32), params, algorithm.optimizer.init(params))


def step(
    algorithm: Algorithm,
    state: TrainState,
    reference: Params | None,
    prompts: Prompts,
    examples: Sequence,
    key: Array,
    watch: Watch = NOBODY,
) -> tuple[TrainState, Metrics]:
    """The state after one step of GRPO, and its metrics. The old state is donated: do not use it again.

    `examples` are what the rewards see, one for each prompt. `reference` is a copy of the parameters to stay close to,
    or None when the objective has no KL term. Give every step its own key: `jax.random.fold_in(key, step)`.
    """
    with watch.phase("sampling"):
        rollouts = jax.block_until_ready(algorithm.sample(algorithm.policy, state.params, prompts, key))
    with watch.phase("scoring"):
        tokens = chosen_tokens(rollouts)
        responses = [[algorithm.decode(ids) for ids in group] for group in tokens]
        rewards_PGR = score(algorithm.reward, examples, responses, tokens, int(state.step))
    with watch.phase("learning"):
        batch = prepare(algorithm, state.params, reference, rollouts, rewards_PGR)
        watch.answers(examples, responses, rewards_PGR, batch.advantages)
        state, metrics = jax.block_until_ready(update(algorithm, state, batch))
    return state, describe(rollouts, rewards_PGR, as_mix(algorithm.reward)) | metrics


def chosen_tokens(rollouts: Rollouts) -> list[list[list[int]]]:
    """The ids the policy chose, response by response, their end tokens included."""
    tokens_PGT, action_PGT = np.asarray(rollouts.tokens_PGT), np.asarray(rollouts.action_PGT)
    P, G, _ = tokens_PGT.shape
    return [[tokens_PGT[p, g][action_PGT[p, g]].tolist() for g in range(G)] for p in range(P)]


def prepare(
    algorithm: Algorithm,
    params: Params,
    reference: Params | None,
    rollouts: Rollouts,
    rewards_PGR: Float[np.ndarray, "P G R"],
) -> Batch:
    """The batch to learn from: advantages, the weight of every token, and the log-probs that stay fixed.

    The old log-probs are computed only where they are not the current ones: for several minibatches, or a KL term in
    the reward. Otherwise the ratio is one at the only update.
    """
    check_split(algorithm, len(rewards_PGR))
    if rollouts.distribution.temperature == 0:
        raise ValueError("Greedy responses have no log-probs to learn from: sample at a temperature above 0.")
    objective = algorithm.objective
    old_PGT = ref_PGT = None
    rewards_PG = weighted_total(jnp.asarray(rewards_PGR), jnp.asarray(as_mix(algorithm.reward).weights_R))
    in_reward = objective.needs_reference and objective.kl.place == "reward"
    if algorithm.minibatches > 1 or in_reward:
        old_PGT = fixed_logprobs(algorithm, params, rollouts)
    if objective.needs_reference:
        if reference is None:
            raise ValueError("This objective has a KL term: pass a copy of the first parameters as the reference.")
        ref_PGT = fixed_logprobs(algorithm, reference, rollouts)
    if in_reward:
        rewards_PG = rewards_PG - objective.kl.coefficient * objective.kl.estimator(old_PGT, ref_PGT).sum(axis=2)
    weights_PGT = objective.weighting(rollouts.action_PGT)
    return Batch(rollouts, objective.advantage(rewards_PG), weights_PGT, old_PGT, ref_PGT)


def update(algorithm: Algorithm, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """The state after an optimiser step for each minibatch of prompts, laid out as it was. Donates the old state."""
    check_split(algorithm, batch.weights_PGT.shape[0])
    return update_on(algorithm, tuple(array.sharding for array in jax.tree.leaves(state)), state, batch)


@partial(jax.jit, static_argnames=("algorithm", "layout"), donate_argnames="state")
def update_on(
    algorithm: Algorithm, layout: tuple[Sharding, ...], state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """`update`, compiled for one layout of the state: left alone, the compiler would choose another for the result."""
    params, opt_state = state.params, state.opt_state
    scaled = replace(batch, weights_PGT=batch.weights_PGT * algorithm.minibatches)
    losses, norms, records = [], [], []
    for minibatch in _parts(scaled, algorithm.minibatches):
        loss, sums, gradient = _gradient(algorithm, params, minibatch)
        updates, opt_state = algorithm.optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
        norms.append(optax.tree.norm(gradient))
        records.append(sums)
    tokens = jnp.maximum(jnp.sum(batch.rollouts.action_PGT), 1)
    metrics = {name: sum(sums[name] for sums in records) / tokens for name in records[0]}
    metrics |= {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}
    leaves, tree = jax.tree.flatten(TrainState(state.step + 1, params, opt_state))
    pinned = [_pin(array, sharding) for array, sharding in zip(leaves, layout, strict=True)]
    return jax.tree.unflatten(tree, pinned), metrics


def _pin(array: Array, sharding: Sharding) -> Array:
    return jax.lax.with_sharding_constraint(array, sharding) if isinstance(sharding, NamedSharding) else array


@partial(jax.jit, static_argnames="algorithm")
def fixed_logprobs(algorithm: Algorithm, params: Params, rollouts: Rollouts) -> Float[Array, "P G T"]:
    """Log-probs of the rollouts that no gradient flows through, a microbatch at a time."""
    count = _microbatches(algorithm, rollouts.tokens_PGT.shape[0])
    parts = jax.lax.map(lambda part: token_logprobs(algorithm.policy, params, part)[0], _stacked(rollouts, count))
    return jnp.swapaxes(parts, 0, 1).reshape(rollouts.tokens_PGT.shape)


def _gradient(algorithm: Algorithm, params: Params, batch: Batch) -> tuple[Array, Metrics, Params]:
    """Loss, statistics and gradient, added up over microbatches."""

    def loss(params: Params, part: Batch) -> tuple[Array, Metrics]:
        logprobs_PGT, entropy_PGT = token_logprobs(algorithm.policy, params, part.rollouts)
        loss, sums = algorithm.objective(logprobs_PGT, part)
        trainer_PGT = logprobs_PGT if part.old_logprobs_PGT is None else part.old_logprobs_PGT
        gap = jnp.sum(jnp.abs(trainer_PGT - part.rollouts.logprobs_PGT))
        return loss, sums | {"entropy": jnp.sum(entropy_PGT), "sampling/sampling_logp_difference/mean": gap}

    measure = jax.value_and_grad(loss, has_aux=True)
    count = _microbatches(algorithm, batch.weights_PGT.shape[0])
    if count == 1:
        (value, sums), gradient = measure(params, batch)
        return value, sums, gradient
    parts = _stacked(batch, count)
    shapes = jax.eval_shape(measure, params, jax.tree.map(lambda a: a[0], parts))
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, measure(params, part)), None

    ((value, sums), gradient), _ = jax.lax.scan(add, nothing, parts)
    return value, sums, gradient


def check_split(algorithm: Algorithm, prompts: int) -> None:
    """Refuses minibatches and microbatches that do not divide the prompts of a step."""
    if prompts % algorithm.minibatches:
        raise ValueError(
            f"{prompts} prompts do not divide into {algorithm.minibatches} minibatches; choose {_divisors(prompts)}."
        )
    each = prompts // algorithm.minibatches
    if algorithm.microbatch is not None and each % algorithm.microbatch:
        raise ValueError(
            f"{each} prompts of a minibatch do not divide into microbatches of {algorithm.microbatch};"
            f" choose {_divisors(each)}."
        )


def _divisors(number: int) -> str:
    *some, last = (str(n) for n in range(1, number + 1) if number % n == 0)
    return f"{', '.join(some)} or {last}" if some else last


def _microbatches(algorithm: Algorithm, prompts: int) -> int:
    return 1 if algorithm.microbatch is None else max(1, prompts // algorithm.microbatch)


def _parts(tree: Any, count: int) -> list[Any]:
    stacked = _stacked(tree, count)
    return [jax.tree.map(lambda a, index=index: a[index], stacked) for index in range(count)]


def _stacked(tree: Any, count: int) -> Any:
    """`count` parts on a new first axis, dealt like cards, so that a part has prompts of every device."""
    return jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, count, *a.shape[1:]), 0, 1), tree)
