"""Learning from a batch: gradients are added up over microbatches, then the optimiser takes a step for each minibatch.

The gradients of microbatches add up to that of their minibatch, but for rounding, because the weight of each token was
computed from the whole batch before.

An update that is not finite is left out: if the loss, the gradient, a log-prob or a new weight or moment is a NaN or an
infinity, weights and optimiser stay as they were, and the metric `skipped_updates` counts it.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.programs import program
from grpo_jax.learner.by_layer import descend_by_layer
from grpo_jax.learner.finite import all_finite
from grpo_jax.learner.logprobs import head_names, token_logprobs
from grpo_jax.learner.losses import NONFINITE, loss_and_sums
from grpo_jax.learner.microbatches import Cut, arrange, check_cut, choose, cut, put
from grpo_jax.learner.packing import Microbatch
from grpo_jax.learner.room import choices_for, fitting, gradient_sums, with_policy
from grpo_jax.learner.states import Shardings, key_of_step, pinned, pinned_state, shardings_of
from grpo_jax.metrics import describe_mismatch
from grpo_jax.objectives import credit, next_coefficients
from grpo_jax.optimizers import LAYERS, FiniteSteps, has_moments_in_host, moved, stepped
from grpo_jax.structs import Batch, Metrics, Params, Policy, Rollouts, Scored, Summing, TrainState


def check_batch(algorithm: Algorithm, rollouts: Rollouts) -> None:
    """Refuses rollouts to learn from that are greedy, or that minibatches or devices do not divide."""
    if rollouts.distribution.temperature == 0:
        raise ValueError("Greedy responses have no log-probs to learn from: sample at a temperature above 0.")
    P, G, _ = rollouts.tokens_PGT.shape
    check_split(algorithm, P, G, mesh_of(rollouts))


def check_split(algorithm: Algorithm, P: int, G: int | None, mesh: Mesh | None) -> None:
    """Refuses minibatches that do not divide P prompts, and dividing groups that the loss needs whole."""
    check_cut(P, G, algorithm.minibatches, mesh)
    if G is not None and algorithm.gradients == "by_layer":
        _check_at_once(algorithm, choices_for(algorithm, P, G, mesh)[0])
    if G is None or not algorithm.compares_in_groups:
        return
    how = cut(P, G, algorithm.minibatches, algorithm.responses_at_once, mesh)
    if how.spread > 1:
        raise ValueError(
            f"This objective compares responses of a group in its loss, and each group is spread over {how.spread}"
            " devices: ask more prompts in a step, or use mesh.tensor."
        )
    if how.splits > 1:
        raise ValueError(
            "This objective compares responses of a group in its loss: algorithm.responses_at_once must be at least the"
            f" {G} responses of a group; got {algorithm.responses_at_once}."
        )


def _check_at_once(algorithm: Algorithm, all_of_them: int) -> None:
    if algorithm.responses_at_once is not None and algorithm.responses_at_once < all_of_them:
        raise ValueError(
            "Gradients that are applied layer by layer cannot be added up over microbatches:"
            f" algorithm.responses_at_once must be at least the {all_of_them} of a minibatch that each device learns"
            f" from; got {algorithm.responses_at_once}. Leave it out, or ask fewer prompts, or more"
            " algorithm.minibatches."
        )


@program(static_argnames="algorithm")
def compare(
    algorithm: Algorithm,
    rollouts: Rollouts,
    scored: Scored,
    key: Array,
    coefficients: dict[str, Array],
    fixed: dict[str, Array],
) -> Batch:
    """The batch that the objective makes of rollouts and rewards; `fixed` are log-probs by their names in a `Batch`."""
    return credit(algorithm.objective, rollouts, scored, key, coefficients=coefficients, **fixed)


def microbatches(algorithm: Algorithm, params: Params, rollouts: Rollouts) -> tuple[Cut, list[list[Microbatch]]]:
    """The microbatches of each minibatch of these rollouts, and how they are cut."""
    (P, G, _), mesh = rollouts.tokens_PGT.shape, mesh_of(params)
    how = cut(P, G, algorithm.minibatches, fitting(algorithm, params, rollouts).responses_at_once, mesh)
    return how, arrange(rollouts, algorithm.minibatches, how, mesh)


@dataclass
class _Record:
    """What the minibatches of a batch came to."""

    losses: list[Array] = field(default_factory=list)
    steps: list[Metrics] = field(default_factory=list)  # what `descend` says of each
    sums: list[Metrics] = field(default_factory=list)
    computed: int = 0  # positions, padding included


def learn(
    algorithm: Algorithm, state: TrainState, batch: Batch, largest_norm: float = math.inf
) -> tuple[TrainState, Metrics]:
    """The state after an optimiser step for each minibatch of prompts, sharded as it was. Donates the old state.

    A minibatch whose gradient has a norm above `largest_norm`, or that is not finite, is left out.
    """
    shardings, mesh, record = shardings_of(state), mesh_of(state.params), _Record()
    first_PGT = jnp.full_like(batch.rollouts.logprobs_PGT, jnp.nan)  # log-probs under the policy before any step
    how, cut_batch = microbatches(algorithm, state.params, batch.rollouts)
    remembering = with_policy(algorithm, fitting(algorithm, state.params, batch.rollouts).policy)
    by_layer = algorithm.gradients == "by_layer"  # then there is one microbatch, and learning from it is a step
    for index, minibatch in enumerate(cut_batch):
        total: Any = None
        step: Metrics = {}
        whole, of_step = (
            _of_minibatch(algorithm, batch, len(minibatch)),
            (int(index + 1 == len(cut_batch)), largest_norm, index),
        )
        for each in minibatch:
            chosen = choose(whole, each.index_p, each.index_pg, mesh)
            inputs = (chosen, each.slots_PBW)
            record.computed += each.slots_PBW.size + len(each.index_p) * batch.rollouts.prompts.tokens_PL.shape[1]
            if total is None and len(minibatch) > 1:  # or adding to nothing would be a second program to compile
                total = zeros(remembering, shardings, state.params, *inputs)
            if by_layer:
                state, step, total, logprobs_pgT = descend_by_layer(algorithm, shardings, state, *inputs, *of_step)
            else:
                total, logprobs_pgT = add_gradient(remembering, shardings, state.params, total, *inputs)
            if index == 0:
                first_PGT = put(first_PGT, each.index_p, each.index_pg, logprobs_pgT, mesh)
        if not by_layer:
            state, step = descend(algorithm, shardings, state, total, *of_step)
        record.losses.append(total[0])
        record.steps.append(step)
        record.sums.append(total[1])
    old_PGT = first_PGT if batch.old_logprobs_PGT is None else batch.old_logprobs_PGT
    old_PGT = old_PGT if algorithm.objective.needs_rewards else None  # given answers have no sampler to compare with
    reads = how.spread * how.splits  # how often each prompt is computed
    metrics = _summary(batch.rollouts, old_PGT, record.losses, record.steps, record.sums, record.computed, reads)
    return state, metrics


@program
def _summary(
    rollouts: Rollouts,
    old_PGT: Array | None,
    losses: list[Array],
    steps: list[Metrics],
    sums: list[Metrics],
    computed: int | Array,
    reads: int | Array,
) -> Metrics:
    """The metrics of an update. `computed` positions include padding; each prompt was read so many times."""
    tokens = jnp.maximum(jnp.sum(rollouts.action_PGT), 1)
    used = jnp.sum(rollouts.valid_PGT) + reads * jnp.sum(rollouts.prompts.valid_PL)
    metrics = {name: sum(each[name] for each in sums) / tokens for name in sums[0]}
    metrics |= {"loss": sum(losses) / len(losses), "grad_norm": sum(step["grad_norm"] for step in steps) / len(steps)}
    metrics |= {name: sum(step[name] for step in steps) for name in ("skipped_updates", "skipped_spikes")}
    mismatch = {} if old_PGT is None else describe_mismatch(old_PGT, rollouts)
    return metrics | mismatch | {"padding_frac": 1 - used / computed}


def _of_minibatch(algorithm: Algorithm, batch: Batch, microbatches: int) -> Batch:
    """The batch with its weights times the number of minibatches, so that their mean over minibatches is as before.

    A load-balancing loss is no sum over tokens: that of a minibatch is the mean over its microbatches.
    """
    parts = (batch.weights_PGT, batch.term_weights_PGT)
    weights_PGT, term_weights_PGT = jax.tree.map(lambda a_PGT: a_PGT * algorithm.minibatches, parts)
    balance = np.float32(algorithm.load_balancing / microbatches) if algorithm.load_balancing else None
    return replace(batch, weights_PGT=weights_PGT, term_weights_PGT=term_weights_PGT, balance=balance)


def follow(algorithm: Algorithm, state: TrainState, batch: Batch, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """The state with its adaptive coefficients and its reference moved on, and the metrics with what was in effect.

    Coefficients stay where they are if the batch had nothing to learn from.
    """
    objective = algorithm.objective
    used = {f"coefficient/{name}": pair[1] for name, pair in state.coefficients.items()}
    if state.coefficients:
        learned = jnp.any(batch.rollouts.action_PGT)
        moved = next_coefficients(objective, state.coefficients, metrics)
        coefficients = jax.tree.map(lambda new, old: jnp.where(learned, new, old), moved, state.coefficients)
        state = replace(state, coefficients=coefficients)
    moves = objective.kl.reference if objective.kl is not None else None
    if state.reference is not None and moves is not None and moves.every and int(state.step) % moves.every == 0:
        trained = algorithm.policy.trained(state.params)
        rounded = any(a.dtype == jnp.bfloat16 for a in jax.tree.leaves(state.reference))
        key = key_of_step(state, 0) if rounded else None
        state = replace(state, reference=closer(state.reference, trained, moves.share, key))
    return state, metrics | used


@program(donate_argnames="reference")
def closer(reference: Params, params: Params, share: float | Array, key: Array | None = None) -> Params:
    """A reference policy moved by `share` of the way to the present one. In bfloat16 it is rounded by a key."""
    if key is None:
        return jax.tree.map(lambda old, new: old + share * (new - old), reference, params)

    def way(old: Array, new: Array) -> Array:
        return share * (new.astype(jnp.float32) - old.astype(jnp.float32))

    return moved(reference, jax.tree.map(way, reference, params), key)


@program(static_argnames=("algorithm", "shardings"))
def zeros(
    algorithm: Algorithm, shardings: Shardings, params: Params, chosen: Batch, slots_PBW: Array | np.ndarray
) -> Any:
    """The loss, statistics and gradient that `add_gradient` adds the first microbatch to."""
    shapes, _ = jax.eval_shape(partial(add_gradient, algorithm, shardings), params, None, chosen, slots_PBW)
    value, sums, gradient = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (*shapes[:2], gradient_sums(shapes[2])))
    return value, sums, _sharded(algorithm, shardings, gradient)


@program(static_argnames=("algorithm", "shardings"), donate_argnames="total")
def add_gradient(
    algorithm: Algorithm, shardings: Shardings, params: Params, total: Any, chosen: Batch, slots_PBW: Array | np.ndarray
) -> tuple[Any, Array]:
    """The loss, statistics and gradient of a microbatch, added to `total` unless that is None; and its log-probs.
    Donates `total`.

    The gradients of layers and of the head are added in the backward pass, as soon as they are known: see `Summing`.
    """
    policy, trained = algorithm.policy, algorithm.policy.trained(params)
    names = [] if total is None else [LAYERS, *head_names(policy, params, chosen.rollouts.prompts)]
    summed = {name: total[2][name] for name in names if name in trained}

    def loss_of(learned: Params, summed: Params) -> tuple[Array, tuple[Metrics, Array]]:
        known = params | learned
        summing = {name: Summing(known[name], sums) for name, sums in summed.items()}
        return loss_and_sums(algorithm, policy, known | summing, chosen, slots_PBW)

    learned = {name: weights for name, weights in trained.items() if name != LAYERS or name not in summed}
    gradient_of = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (value, (sums, logprobs_PGT)), (gradient, summed) = gradient_of(learned, summed)
    if total is not None:
        before = total[2] | summed
        found = value, sums, gradient
        value, sums, added = jax.tree.map(jnp.add, (*total[:2], {name: before[name] for name in gradient}), found)
        gradient = summed | added
    return (value, sums, _sharded(algorithm, shardings, gradient)), logprobs_PGT


@program(static_argnames=("algorithm", "shardings"), donate_argnames="state")
def descend(
    algorithm: Algorithm,
    shardings: Shardings,
    state: TrainState,
    total: Any,
    steps: int | Array,
    largest_norm: float | Array,
    minibatch: int | Array = 0,
) -> tuple[TrainState, Metrics]:
    """The state after one optimiser step, with `steps` added to its step; the norm of the gradient, and whether the
    step was left out. `total` is the loss, statistics and gradient of `add_gradient`.

    Weights and optimiser are then as before, with every bit. A norm above `largest_norm` counts as a spike. The
    `minibatch` of the batch is counted from 0.
    """
    value, sums, gradient = total
    norm = optax.tree.norm(jax.tree.map(lambda a: a.astype(jnp.float32), gradient))
    key = key_of_step(state, minibatch)
    finite = jnp.isfinite(value) & jnp.isfinite(norm) & (sums[NONFINITE] == 0)
    finite &= _has_finite_step(algorithm, state, gradient, key)
    spike = finite & (norm > largest_norm)
    taken = finite & ~spike
    # A conditional updates in place, as no condition would; a choice between two states would hold both.
    before = algorithm.policy.trained(state.params), state.opt_state
    trained, opt_state = jax.lax.cond(taken, partial(stepped, algorithm.optimizer), _unchanged, *before, gradient, key)
    state = replace(state, step=state.step + steps, params=state.params | trained, opt_state=opt_state)
    skipped = {"skipped_updates": ~taken, "skipped_spikes": spike}
    return pinned_state(state, shardings), {"grad_norm": norm} | jax.tree.map(jnp.int32, skipped)


def _has_finite_step(algorithm: Algorithm, state: TrainState, gradient: Params, key: Array) -> Array:
    """Whether a step along a finite gradient leads to finite weights, whose squares are finite, and moments.

    Layers square what they are given, so weights from 1.8e19 on are as useless as infinity. To look takes as long as
    the step itself, so it is left out where the optimiser says that all its steps are like that. One with moments in
    the host's memory always does.
    """
    if has_moments_in_host(algorithm.optimizer):
        return jnp.array(True)
    found = (rate for _, rate in optax.tree_utils.tree_get_all_with_path(state.opt_state, "learning_rate"))
    rates = [rate for rate in found if isinstance(rate, Array)]
    bounded = bool(rates) and isinstance(algorithm.optimizer, FiniteSteps)
    certain = reduce(jnp.logical_and, (jnp.all(rate <= 1) for rate in rates), jnp.array(bounded))
    return jax.lax.cond(
        certain,
        lambda *inputs: jnp.array(True),
        partial(_leads_to_finite, algorithm.optimizer),
        algorithm.policy.trained(state.params),
        state.opt_state,
        gradient,
        key,
    )


@jax.named_scope("seldom")  # `plan --time` leaves out a branch of this name
def _leads_to_finite(optimizer: Any, trained: Params, opt_state: Any, gradient: Params, key: Array) -> Array:
    trained, opt_state = stepped(optimizer, trained, opt_state, gradient, key)
    return all_finite((jax.tree.map(jnp.square, trained), opt_state))


def _unchanged(trained: Params, opt_state: Any, gradient: Params, key: Array) -> tuple[Any, Any]:
    return trained, opt_state


def _sharded(algorithm: Algorithm, shardings: Shardings, gradient: Params) -> Params:
    """A gradient sharded like the parameters of the state: left alone, the compiler might choose otherwise."""
    return jax.tree.map(pinned, gradient, algorithm.policy.trained(jax.tree.unflatten(*shardings).params))


def fixed_logprobs(algorithm: Algorithm, state: TrainState, rollouts: Rollouts) -> dict[str, Float[Array, "P G T"]]:
    """Log-probs of the rollouts under the policies that no gradient flows through, by their names in a `Batch`.

    Of these only the policy that answered is given the experts that computed each token then.
    """
    return {
        name: logprobs_of(algorithm, policy, params, rollouts if params is state.params else rollouts.without_experts)
        for name, (policy, params) in algorithm.compared_with(state).items()
    }


def logprobs_of(algorithm: Algorithm, policy: Policy, params: Params, rollouts: Rollouts) -> Float[Array, "P G T"]:
    """The log-probs under one policy, a microbatch at a time."""
    mesh = mesh_of(params)
    found_PGT = jnp.zeros_like(rollouts.logprobs_PGT)
    for minibatch in microbatches(algorithm, params, rollouts)[1]:
        for each in minibatch:
            chosen = choose(rollouts, each.index_p, each.index_pg, mesh)
            logprobs_pgT = microbatch_logprobs(policy, params, chosen, each.slots_PBW)
            found_PGT = put(found_PGT, each.index_p, each.index_pg, logprobs_pgT, mesh)
    return found_PGT


@program(static_argnames="policy")
def microbatch_logprobs(
    policy: Policy, params: Params, rollouts: Rollouts, slots_PBW: Array | np.ndarray | None
) -> Array:
    """The log-probs of a microbatch, computed in packed rows if there are slots."""
    return token_logprobs(policy, params, rollouts, slots_PBW)[0]
