"""Learning layer by layer: no gradient of all layers ever exists.

The backward pass goes from the last layer to the first. As soon as a layer's gradient is there, the optimiser takes its
step for that layer, and the gradient is gone (LOMO, arXiv:2306.09782). Clipping needs the norm of the whole gradient,
and a step that is not finite must be left out before any weight has moved. So the backward pass runs twice: first only
the norm is kept, then the steps are taken. All else is as with a whole gradient, but for rounding: AdamW treats each
number by itself. Adafactor limits the step of an array, which is that of one layer here, and of all layers there.

Of each layer its input is kept, and the rest is computed again, twice: 14 FLOP for each weight and token instead of 8.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.programs import program
from grpo_jax.learner.logprobs import in_rows
from grpo_jax.learner.losses import NONFINITE, loss_and_sums
from grpo_jax.learner.states import Shardings, key_of_step, pinned, pinned_state
from grpo_jax.optimizers import LAYERS, stepped
from grpo_jax.structs import Batch, Layered, Metrics, Params, Policy, TrainState


@program(static_argnames=("algorithm", "shardings"), donate_argnames="state")
def descend_by_layer(
    algorithm: Algorithm,
    shardings: Shardings,
    state: TrainState,
    chosen: Batch,
    slots_PBW: Array | np.ndarray,
    steps: int | Array,
    largest_norm: float | Array,
    minibatch: int | Array,
) -> tuple[TrainState, Metrics, tuple[Array, Metrics], Array]:
    """The state after one optimiser step and what is said of the step, as of `update.descend`; the loss and statistics
    of the minibatch; and its log-probs.
    """
    slots_PBW = jnp.asarray(slots_PBW)
    layered, policy = _layered(algorithm.policy, chosen, slots_PBW)
    others = {name: value for name, value in state.params.items() if name != LAYERS}
    layers, key = state.params[LAYERS], key_of_step(state, minibatch)
    x, begin_back = jax.vjp(layered.begin, others)
    x, inputs_N = _forward(layered, layers, x)

    def loss_of(others: Params, x: Array) -> tuple[Array, tuple[Metrics, Array]]:
        return loss_and_sums(algorithm, policy(x), others, chosen, slots_PBW)

    found = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(others, x)
    (value, (sums, logprobs_PGT)), (gradient, grad) = found
    squares, first_grad = _squared_norm(layered, layers, inputs_N, grad)
    gradient = jax.tree.map(jnp.add, gradient, begin_back(first_grad)[0])
    norm = jnp.sqrt(squares + _squares(gradient))
    finite = jnp.isfinite(value) & jnp.isfinite(norm) & (sums[NONFINITE] == 0)
    spike = finite & (norm > largest_norm)
    taken = finite & ~spike
    factor = jnp.minimum(1.0, algorithm.clip_norm / jnp.maximum(norm, 1e-30))
    places = _places_in_layers(shardings)

    def step(params: Params, opt_state: Any) -> tuple[Params, Any]:
        scaled = jax.tree.map(partial(_scaled, factor), gradient)
        rest, rest_state = stepped(algorithm.optimizer, others, opt_state["others"], scaled, jax.random.fold_in(key, 0))
        moved = _descended(algorithm, layered, places, (params[LAYERS], opt_state[LAYERS]), inputs_N, grad, factor, key)
        return rest | {LAYERS: moved[0]}, {"others": rest_state, LAYERS: moved[1]}

    # A conditional updates in place, as no condition would; a choice between two states would hold both.
    params, opt_state = jax.lax.cond(taken, step, lambda *before: before, state.params, state.opt_state)
    state = replace(state, step=state.step + steps, params=params, opt_state=opt_state)
    said = {"grad_norm": norm} | jax.tree.map(jnp.int32, {"skipped_updates": ~taken, "skipped_spikes": spike})
    return pinned_state(state, shardings), said, (value, sums), logprobs_PGT


def _layered(policy: Policy, chosen: Batch, slots_PBW: Array) -> tuple[Layered, Any]:
    """The rows of a microbatch layer by layer; and, for the rows after all layers, a policy that begins with these."""
    if policy.layered is None:
        raise ValueError("The layers of this policy cannot be taken one at a time: set algorithm.gradients to whole.")
    rows = in_rows(chosen.rollouts, slots_PBW)
    layered = policy.layered(chosen.rollouts.prompts, rows.tokens_PBW, rows.valid_PBW, rows.start_PBW)
    return layered, lambda x: replace(policy, respond=lambda params, *inputs: layered.end(params, x))


def _forward(layered: Layered, layers: Params, x: Array) -> tuple[Array, Array]:
    """The rows after all layers, and before each."""

    def body(x: Array, given: tuple[Params, Array]) -> tuple[Array, Array]:
        weights, n = given
        return layered.layer(weights, n, x), x

    return jax.lax.scan(body, x, (layers, _numbers(layers)))


def _squared_norm(layered: Layered, layers: Params, inputs_N: Array, grad: Array) -> tuple[Array, Array]:
    """The sum of squares of the gradients of all layers, and the gradient of the rows before the first."""

    def body(carry: tuple[Array, Array], given: tuple[Params, Array, Array]) -> tuple[tuple[Array, Array], None]:
        squares, grad = carry
        of_weights, grad = _pulled(layered, *given, grad)
        return (squares + _squares(of_weights), grad), None

    given = (layers, _numbers(layers), inputs_N)
    return jax.lax.scan(body, (jnp.zeros(()), grad), given, reverse=True)[0]


def _descended(
    algorithm: Algorithm,
    layered: Layered,
    places: Params,
    held: tuple[Params, Any],
    inputs_N: Array,
    grad: Array,
    factor: Array,
    key: Array,
) -> tuple[Params, Any]:
    """The weights of all layers and the optimiser's states for them after the step; both are updated in place."""
    N = len(inputs_N)

    def body(index: Array, carry: tuple[Array, tuple[Params, Any]]) -> tuple[Array, tuple[Params, Any]]:
        n, (grad, held) = N - 1 - index, carry
        weights, opt_state = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, n, keepdims=False), held)
        of_weights, grad = _pulled(layered, weights, n, inputs_N[n], grad)
        of_weights = jax.tree.map(lambda a, place: pinned(_scaled(factor, a), place), of_weights, places)
        inputs = ({LAYERS: weights}, opt_state, {LAYERS: of_weights}, jax.random.fold_in(key, n + 1))
        moved, opt_state = stepped(algorithm.optimizer, *inputs)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=n, axis=0)
        return grad, jax.tree.map(put, held, (moved[LAYERS], opt_state))

    return jax.lax.fori_loop(0, N, body, (grad, held))[1]


def _pulled(layered: Layered, weights: Params, n: Array, x: Array, grad: Array) -> tuple[Params, Array]:
    """The gradients of a layer's weights and of the rows before it, given that of the rows after it."""
    _, back = jax.vjp(lambda weights, x: layered.layer(weights, n, x), weights, x)
    return back(grad)


def _numbers(layers: Params) -> Array:
    return jnp.arange(len(jax.tree.leaves(layers)[0]))


def _squares(gradient: Params) -> Array:
    return optax.tree.norm(jax.tree.map(lambda a: a.astype(jnp.float32), gradient), squared=True)


def _scaled(factor: Array, a: Array) -> Array:
    return a.astype(jnp.float32) * factor


def _places_in_layers(shardings: Shardings) -> Params:
    """The sharding of each weight of a single layer."""

    def of_one(sharding: Sharding) -> Sharding:
        if isinstance(sharding, NamedSharding):
            return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        return sharding

    return jax.tree.map(of_one, jax.tree.unflatten(*shardings).params[LAYERS])
