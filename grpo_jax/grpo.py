"""GRPO, top to bottom: sample a group of responses to each prompt, score them, move towards the better ones.

Read `step` first. Models, engines, rewards and objectives come in as arguments (`Algorithm`), so research code calls
the same functions with its own. Sampling, `add_gradient`, `descend` and `part_logprobs` run on the devices, under
`jit`; the rest is glue in the order it happens.

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
from jax.sharding import Mesh, NamedSharding, Sharding
from jaxtyping import Float

from grpo_jax.advantages import weighted_total
from grpo_jax.logprobs import token_logprobs
from grpo_jax.microbatches import arrange, choose, put
from grpo_jax.objectives import Objective
from grpo_jax.packing import Part
from grpo_jax.rewards import Mix, as_mix, score
from grpo_jax.runtime.metrics import describe
from grpo_jax.runtime.sharding import mesh_of, on
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
    group_parts: int = 1  # into how many parts the responses of a prompt are divided, when one group is too large

    def __post_init__(self) -> None:
        for name in ("minibatches", "microbatch", "group_parts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


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
    check_split(algorithm, *rewards_PGR.shape[:2])
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
    """The state after an optimiser step for each minibatch of prompts, laid out as it was. Donates the old state.

    A gradient is added up over parts of similar length (`packing`), because the weights of the tokens already know
    the whole batch.
    """
    check_split(algorithm, *batch.rollouts.tokens_PGT.shape[:2])
    layout = layout_of(state)
    mesh = mesh_of(state.params)
    batch = replace(batch, weights_PGT=batch.weights_PGT * algorithm.minibatches)
    losses, norms, records, positions = [], [], [], 0
    for index, parts in enumerate(_parts(algorithm, batch.rollouts, mesh)):
        total = None
        for part in parts:
            chosen = choose(batch, part.place_p, part.place_pg, mesh)
            positions += part.slots_PRS.size + len(part.place_p) * batch.rollouts.prompts.tokens_PL.shape[1]
            with on(mesh):
                if total is None and len(parts) > 1:  # or adding to nothing would be a second program to compile
                    total = nothing(algorithm, layout, state.params, chosen, part.slots_PRS)
                total = add_gradient(algorithm, layout, state.params, total, chosen, part.slots_PRS)
        loss, sums, gradient = total
        last = index + 1 == algorithm.minibatches
        state, norm = descend(algorithm, layout, state, gradient, int(last))
        losses.append(loss)
        norms.append(norm)
        records.append(sums)
    tokens = jnp.maximum(jnp.sum(batch.rollouts.action_PGT), 1)
    live = jnp.sum(batch.rollouts.valid_PGT) + algorithm.group_parts * jnp.sum(batch.rollouts.prompts.valid_PL)
    metrics = {name: sum(sums[name] for sums in records) / tokens for name in records[0]}
    metrics |= {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}
    return state, metrics | {"padding_frac": 1 - live / positions}


def _parts(algorithm: Algorithm, rollouts: Rollouts, mesh: Mesh | None) -> list[list[Part]]:
    return arrange(rollouts, algorithm.minibatches, algorithm.microbatch, algorithm.group_parts, mesh)


def layout_of(state: TrainState) -> tuple[Any, tuple[Sharding, ...]]:
    """How a state is laid out, in a form that programs can be compiled for."""
    leaves, tree = jax.tree.flatten(state)
    return tree, tuple(array.sharding for array in leaves)


@partial(jax.jit, static_argnames=("algorithm", "layout"))
def nothing(algorithm: Algorithm, layout: Any, params: Params, part: Batch, slots_PRS: Array) -> Any:
    """What `add_gradient` starts from."""
    shapes = jax.eval_shape(partial(add_gradient, algorithm, layout), params, None, part, slots_PRS)
    loss, sums, gradient = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return loss, sums, _laid_out(layout, gradient)


@partial(jax.jit, static_argnames=("algorithm", "layout"), donate_argnames="total")
def add_gradient(algorithm: Algorithm, layout: Any, params: Params, total: Any, part: Batch, slots_PRS: Array) -> Any:
    """Loss, statistics and gradient of a part, added to those in `total` if that is not None. Donates `total`."""

    def loss(params: Params) -> tuple[Array, Metrics]:
        logprobs_PGT, entropy_PGT = token_logprobs(algorithm.policy, params, part.rollouts, slots_PRS)
        loss, sums = algorithm.objective(logprobs_PGT, part)
        trainer_PGT = logprobs_PGT if part.old_logprobs_PGT is None else part.old_logprobs_PGT
        gap = jnp.sum(jnp.abs(trainer_PGT - part.rollouts.logprobs_PGT))
        return loss, sums | {"entropy": jnp.sum(entropy_PGT), "sampling/sampling_logp_difference/mean": gap}

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    found = value, sums, gradient
    value, sums, gradient = found if total is None else jax.tree.map(jnp.add, total, found)
    return value, sums, _laid_out(layout, gradient)


@partial(jax.jit, static_argnames=("algorithm", "layout"), donate_argnames="state")
def descend(algorithm: Algorithm, layout: Any, state: TrainState, gradient: Params, steps: int | Array) -> Any:
    """The state after one optimiser step, which counts as so many steps, and the norm of the gradient."""
    updates, opt_state = algorithm.optimizer.update(gradient, state.opt_state, state.params)
    state = TrainState(state.step + steps, optax.apply_updates(state.params, updates), opt_state)
    leaves, tree = jax.tree.flatten(state)
    pinned = [_pin(array, sharding) for array, sharding in zip(leaves, layout[1], strict=True)]
    return jax.tree.unflatten(tree, pinned), optax.tree.norm(gradient)


def _laid_out(layout: Any, gradient: Params) -> Params:
    """A gradient laid out like the parameters of the state: left alone, the compiler might choose otherwise."""
    return jax.tree.map(_pin, gradient, jax.tree.unflatten(*layout).params)


def _pin(array: Array, sharding: Sharding) -> Array:
    return jax.lax.with_sharding_constraint(array, sharding) if isinstance(sharding, NamedSharding) else array


def fixed_logprobs(algorithm: Algorithm, params: Params, rollouts: Rollouts) -> Float[Array, "P G T"]:
    """Log-probs of the rollouts that no gradient flows through, a part at a time."""
    mesh = mesh_of(params)
    found_PGT = jnp.zeros_like(rollouts.logprobs_PGT)
    for parts in _parts(algorithm, rollouts, mesh):
        for part in parts:
            chosen = choose(rollouts, part.place_p, part.place_pg, mesh)
            with on(mesh):
                logprobs_pgT = part_logprobs(algorithm.policy, params, chosen, part.slots_PRS)
            found_PGT = put(found_PGT, part.place_p, part.place_pg, logprobs_pgT)
    return found_PGT


@partial(jax.jit, static_argnames="policy")
def part_logprobs(policy: Policy, params: Params, rollouts: Rollouts, slots_PRS: Array) -> Array:
    """Log-probs of a part."""
    return token_logprobs(policy, params, rollouts, slots_PRS)[0]


def check_split(algorithm: Algorithm, prompts: int, responses: int | None = None) -> None:
    """Refuses minibatches, microbatches and parts of groups that do not divide what they are made of."""
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
    if responses is not None and responses % algorithm.group_parts:
        raise ValueError(
            f"{responses} responses do not divide into group_parts of {algorithm.group_parts};"
            f" choose {_divisors(responses)}."
        )


def _divisors(number: int) -> str:
    *some, last = (str(n) for n in range(1, number + 1) if number % n == 0)
    return f"{', '.join(some)} or {last}" if some else last
