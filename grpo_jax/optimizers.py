"""The optimisers: optax's AdamW or Adafactor after gradient clipping, with a linear warm-up.

Whatever the type of the parameters, an optimiser computes in float32 (`first_state`, `stepped`). Parameters in bfloat16
are then rounded at random: to nearest, most updates would be lost.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rounding import Bytes, decode, encode, to_bfloat16
from grpo_jax.structs import Params

RATE = 1e-6  # for all weights
FEW = 4096  # an array of fewer numbers has moments in float32
PIECE = 1 << 24  # numbers whose moments are in float32 at once
LAYERS = "layers"  # the name of the parameters that are stacked by layer
LARGEST_SQUARED = 1e15  # the sum of squares of so large a gradient is far from the end of float32


class FiniteSteps(optax.GradientTransformationExtraArgs):
    """An optimiser whose steps are finite, as follows from its settings, if the gradient is and the rate is at most 1.

    The learner need not look at every weight and moment that these steps lead to. A gradient with a norm above
    `clip_norm` is scaled down to it; all else is done to each array by itself, so that a step may be taken in parts.
    """

    clip_norm: float = math.inf
    in_host: bool = False  # whether the moments are in the host's memory


def adamw(
    learning_rate: float | None = None,  # null: 1e-6, and ten times that where only adapters are trained
    warmup_steps: int = 10,  # optimiser steps over which the rate rises from near zero; constant afterwards
    clip_norm: float = 1.0,  # largest norm of the gradient, over all parameters; larger ones are scaled down
    b1: float = 0.9,
    b2: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    moments: Literal["float32", "bfloat16", "int8"] = "float32",  # bfloat16: of the mean gradient; int8: both moments
    moments_in: Literal["device", "host"] = "device",  # whose memory holds them; see docs/memory.md
    adapters: bool = False,  # whether only adapters are trained
) -> optax.GradientTransformation:
    """AdamW whose state carries the current rate as `learning_rate`, so that it can be logged."""
    if moments not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"optimizer.moments is float32, bfloat16 or int8; got {moments!r}.")
    check_range("optimizer.b1", b1, least=0, below=1)
    check_range("optimizer.b2", b2, least=0, below=1)
    check_range("optimizer.epsilon", epsilon, above=0, most=1)
    check_range("optimizer.weight_decay", weight_decay, least=0, most=1)
    plain = moments != "int8" and moments_in == "device"
    kinds = {} if plain else {"in_bytes": moments == "int8", "in_host": moments_in == "host"}
    static = ("b1", "b2", "eps", "weight_decay", "mu_dtype", *kinds)
    descend = optax.inject_hyperparams(optax.adamw if plain else _adamw_in_pieces, static_args=static)
    rate = _warmed_up(learning_rate, adapters, warmup_steps, clip_norm)
    kept = jnp.float32 if moments == "int8" else moments
    steps = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        descend(learning_rate=rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay, mu_dtype=kept, **kinds),
    )
    bounded = max(b1, b2) < 1 and min(b1, b2) >= 0 and epsilon >= 1e-20 and abs(weight_decay) <= 1e3
    if bounded and clip_norm <= LARGEST_SQUARED:
        return _finite(steps, clip_norm, moments_in == "host")
    if moments_in == "host":
        raise ValueError(
            "optimizer.moments_in host is for steps that are known to be finite before they are taken: that needs an"
            f" epsilon of at least 1e-20 and a clip_norm of at most {LARGEST_SQUARED:g}; got {epsilon} and {clip_norm}."
        )
    return steps


def adafactor(
    learning_rate: float | None = None,  # null: 1e-6, and ten times that where only adapters are trained
    warmup_steps: int = 10,  # optimiser steps over which the rate rises from near zero; constant afterwards
    clip_norm: float = 1.0,  # largest norm of the gradient, over all parameters; larger ones are scaled down
    decay: float = 0.8,  # how fast old squared gradients are forgotten: 1 - step^-decay
    adapters: bool = False,  # whether only adapters are trained
) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235): of the squared gradients of a matrix it keeps the sums of rows and columns.

    It has no momentum and no relative steps, so its state is small next to the weights.
    """
    check_range("optimizer.decay", decay, above=0, most=1)
    descend = optax.inject_hyperparams(
        optax.adafactor, static_args=("decay_rate", "multiply_by_parameter_scale", "min_dim_size_to_factor")
    )
    rate = _warmed_up(learning_rate, adapters, warmup_steps, clip_norm)
    steps = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        descend(learning_rate=rate, decay_rate=decay, multiply_by_parameter_scale=False, min_dim_size_to_factor=64),
    )
    return _finite(steps, clip_norm) if 0 <= decay < 1 and clip_norm <= LARGEST_SQUARED else steps


def _finite(steps: optax.GradientTransformationExtraArgs, clip_norm: float, in_host: bool = False) -> FiniteSteps:
    found = FiniteSteps(*steps)
    found.clip_norm, found.in_host = clip_norm, in_host
    return found


def has_moments_in_host(optimizer: optax.GradientTransformation) -> bool:
    """Whether the optimiser keeps its moments in the host's memory."""
    return isinstance(optimizer, FiniteSteps) and optimizer.in_host


def on_device(optimizer: optax.GradientTransformation, opt_state: Any) -> Any:
    """The state without the moments that are in the host's memory."""
    if not has_moments_in_host(optimizer):
        return opt_state
    return jax.tree_util.tree_map_with_path(lambda path, a: None if is_moment(path) else a, opt_state)


def is_moment(path: tuple) -> bool:
    """Whether this is the path, in a state, of an array of Adam's moments: what `moments_in` is about."""
    return any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in ("mu", "nu") for key in path)


def first_state(optimizer: optax.GradientTransformation, trained: Params, gradients: str = "whole") -> Any:
    """The optimiser's state before its first step. By layer, there is a state for each layer, stacked as these are,
    and one for the other parameters.
    """
    if gradients == "whole":
        return optimizer.init(_in_float32(trained))
    others = {name: value for name, value in trained.items() if name != LAYERS}
    layers = jax.vmap(lambda layer: optimizer.init({LAYERS: layer}))(_in_float32(trained[LAYERS]))
    return {LAYERS: layers, "others": optimizer.init(_in_float32(others))}


@jax.named_scope("optimiser")
def stepped(
    optimizer: optax.GradientTransformation, trained: Params, opt_state: Any, gradient: Params, key: Array
) -> tuple[Params, Any]:
    """The parameters and the optimiser's state after a step. The key is for what is rounded at random."""
    moments_key, key = jax.random.split(key)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(_in_float32(gradient), opt_state, _in_float32(trained), key=moments_key)
    return moved(trained, updates, key), opt_state


def moved(params: Params, updates: Any, key: Array) -> Params:
    """Parameters plus float32 updates; those in bfloat16 are rounded at random."""
    leaves, tree = jax.tree.flatten(params)
    pairs = enumerate(zip(leaves, jax.tree.leaves(updates), strict=True))
    return jax.tree.unflatten(tree, [_moved(a, update, jax.random.fold_in(key, n)) for n, (a, update) in pairs])


def _moved(a: Array, update: Array, key: Array) -> Array:
    if a.dtype == jnp.bfloat16:
        return to_bfloat16(key, a.astype(jnp.float32) + update)
    return jnp.asarray(a + update).astype(a.dtype)  # as optax.apply_updates does


def _in_float32(tree: Any) -> Any:
    """The tree with float32 in place of bfloat16."""
    return jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, tree)


def _adamw_in_pieces(
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    mu_dtype: DTypeLike,
    in_bytes: bool,
    in_host: bool,
    eps_root: float | Array = 0.0,  # part of the state of optax's, too
) -> optax.GradientTransformationExtraArgs:
    """AdamW as optax's, with moments in 8 bits, in the host's memory, or both."""
    moments = _by_pieces(optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype), in_bytes, in_host)
    return optax.chain(moments, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))


def _by_pieces(
    adam: optax.GradientTransformation, in_bytes: bool, in_host: bool
) -> optax.GradientTransformationExtraArgs:
    """The transformation with both moments in the host's memory, those of arrays of at least `FEW` numbers in 8 bits,
    or both: a step moves them to the device and decodes them, and puts those that it leads to where these were. An
    array is taken in pieces, so that the device holds no more moments in float32 than those of a piece.
    """

    def init(params: Any) -> Any:
        state: Any = adam.init(params)
        if in_bytes:
            state = state._replace(mu=_zeros_in_bytes(state.mu, True), nu=_zeros_in_bytes(state.nu, False))
        return state._replace(mu=_to_host(state.mu), nu=_to_host(state.nu)) if in_host else state

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        leaves, tree = jax.tree.flatten(updates)
        moments = zip(leaves, tree.flatten_up_to(state.mu), tree.flatten_up_to(state.nu), strict=True)
        move = partial(_through_host if in_host else _adam_of, adam, state)
        found = [
            _in_pieces(move, jax.random.fold_in(extra_args["key"], index), each) for index, each in enumerate(moments)
        ]
        step, mu, nu = map(tree.unflatten, zip(*found, strict=True))
        return step, state._replace(count=optax.safe_increment(state.count), mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _adam_of(adam: optax.GradientTransformation, state: Any, key: Array, given: Any) -> Any:
    """The update of an array and its moments after it."""
    gradient, mu, nu = given
    state = state._replace(mu=decode(mu) if _is_stored(mu) else mu, nu=decode(nu) if _is_stored(nu) else nu)
    moved: Any = adam.update(gradient, state)
    update, after = moved
    if not _is_stored(mu):
        return update, after.mu, after.nu
    keys = jax.random.split(key)
    return update, encode(keys[0], after.mu, signed=True), encode(keys[1], after.nu, signed=False)


def _through_host(adam: optax.GradientTransformation, state: Any, key: Array, given: Any) -> Any:
    """As `_adam_of`, of moments that are in the host's memory, and stay there."""
    gradient, *moments = given
    update, *moments = _adam_of(adam, state, key, (gradient, *jax.device_put(moments, jax.memory.Space.Device)))
    return update, *_to_host(moments)


def _to_host(tree: Any) -> Any:
    return jax.device_put(tree, jax.memory.Space.Host)


def _in_pieces(move: Callable[[Array, Any], Any], key: Array, given: Any) -> Any:
    """`move` of pieces of arrays, one after the other and in place. A piece is every n-th slice along the first axis:
    if devices divide this axis, each has a part of every piece.
    """
    shape = given[0].shape
    if math.prod(shape) <= PIECE:
        return move(key, given)
    pieces = min(
        n for n in range(1, shape[0] + 1) if shape[0] % n == 0 and (n * PIECE >= math.prod(shape) or n == shape[0])
    )
    if pieces == 1:
        return move(key, given)

    def body(index: Array, whole: Any) -> Any:
        piece = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 1, keepdims=False), whole)
        moved = move(jax.random.fold_in(key, index), piece)
        return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, index, 1), whole, moved)

    divided = jax.tree.map(lambda a: a.reshape(-1, pieces, *a.shape[1:]), given)
    moved = jax.lax.fori_loop(0, pieces, body, divided)
    return jax.tree.map(lambda a, b: a.reshape(b.shape), moved, given)


def _zeros_in_bytes(moments: Params, signed: bool) -> Params:
    """Moments of zero, stored as they stay."""

    def zeros(a: Array) -> Array | Bytes:
        if a.size < FEW:
            return a
        stored = jax.eval_shape(partial(encode, signed=signed), jax.random.key(0), a)
        return jax.tree.map(lambda b: jnp.zeros(b.shape, b.dtype), stored)

    return jax.tree.map(zeros, moments)


def _is_stored(node: Any) -> bool:
    return isinstance(node, Bytes)


def _warmed_up(learning_rate: float | None, adapters: bool, warmup_steps: int, clip_norm: float) -> optax.Schedule:
    """The rate of each step. Adapters usually take ten times that of all weights (Schulman et al. 2025, LoRA Without
    Regret).
    """
    if learning_rate is None:
        learning_rate = 10 * RATE if adapters else RATE
    check_range("optimizer.learning_rate", learning_rate, above=0, most=1)
    check_range("optimizer.clip_norm", clip_norm, above=0)
    check_range("optimizer.warmup_steps", warmup_steps, least=0, most=WHOLE)
    steps = max(warmup_steps, 1)
    return optax.linear_schedule(learning_rate / steps, learning_rate, steps - 1)
