"""The optimisers: optax's AdamW or Adafactor after gradient clipping, with a linear warm-up."""

from typing import Literal

import jax.numpy as jnp
import optax

from grpo_jax.ranges import WHOLE, check_range

LARGEST_SQUARED = 1e15  # the sum of squares of so large a gradient is far from the end of float32


class FiniteSteps(optax.GradientTransformation):
    """An optimiser whose steps are finite, as follows from its settings, if the gradient is and the rate is at most 1.

    The learner need not look at every weight and moment that these steps lead to.
    """


def adamw(
    learning_rate: float = 1e-6,
    warmup_steps: int = 10,  # optimiser steps over which the rate rises from near zero; constant afterwards
    clip_norm: float = 1.0,  # largest norm of the gradient, over all parameters; larger ones are scaled down
    b1: float = 0.9,
    b2: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    moments: Literal[
        "float32", "bfloat16"
    ] = "float32",  # type of the mean gradient; bfloat16 saves 2 bytes a parameter
) -> optax.GradientTransformation:
    """AdamW whose state carries the current rate as `learning_rate`, so that it can be logged."""
    check_range("optimizer.b1", b1, least=0, below=1)
    check_range("optimizer.b2", b2, least=0, below=1)
    check_range("optimizer.epsilon", epsilon, above=0, most=1)
    check_range("optimizer.weight_decay", weight_decay, least=0, most=1)
    descend = optax.inject_hyperparams(optax.adamw, static_args=("b1", "b2", "eps", "weight_decay", "mu_dtype"))
    rate = _warmed_up(learning_rate, warmup_steps, clip_norm)
    steps = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        descend(learning_rate=rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay, mu_dtype=jnp.dtype(moments)),
    )
    bounded = max(b1, b2) < 1 and min(b1, b2) >= 0 and epsilon >= 1e-20 and abs(weight_decay) <= 1e3
    return FiniteSteps(*steps) if bounded and clip_norm <= LARGEST_SQUARED else steps


def adafactor(
    learning_rate: float = 1e-6,
    warmup_steps: int = 10,  # optimiser steps over which the rate rises from near zero; constant afterwards
    clip_norm: float = 1.0,  # largest norm of the gradient, over all parameters; larger ones are scaled down
    decay: float = 0.8,  # how fast old squared gradients are forgotten: 1 - step^-decay
) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235): of the squared gradients of a matrix it keeps the sums of rows and columns.

    It has no momentum and no relative steps, so its state is small next to the weights.
    """
    check_range("optimizer.decay", decay, above=0, most=1)
    descend = optax.inject_hyperparams(
        optax.adafactor, static_args=("decay_rate", "multiply_by_parameter_scale", "min_dim_size_to_factor")
    )
    rate = _warmed_up(learning_rate, warmup_steps, clip_norm)
    steps = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        descend(learning_rate=rate, decay_rate=decay, multiply_by_parameter_scale=False, min_dim_size_to_factor=64),
    )
    return FiniteSteps(*steps) if 0 <= decay < 1 and clip_norm <= LARGEST_SQUARED else steps


def _warmed_up(learning_rate: float, warmup_steps: int, clip_norm: float) -> optax.Schedule:
    check_range("optimizer.learning_rate", learning_rate, above=0, most=1)
    check_range("optimizer.clip_norm", clip_norm, above=0)
    check_range("optimizer.warmup_steps", warmup_steps, least=0, most=WHOLE)
    steps = max(warmup_steps, 1)
    return optax.linear_schedule(learning_rate / steps, learning_rate, steps - 1)
