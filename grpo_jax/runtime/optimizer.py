"""The optimiser: optax's AdamW behind gradient clipping, with a linear warm-up."""

import optax


def adamw(
    learning_rate: float = 1e-6,
    warmup_steps: int = 10,  # optimiser steps over which the rate climbs from nothing; constant afterwards
    clip_norm: float = 1.0,  # longest gradient, over all parameters
    b1: float = 0.9,
    b2: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW whose state carries the current rate as `learning_rate`, so that it can be logged."""
    if learning_rate <= 0 or clip_norm <= 0:
        raise ValueError(f"learning_rate and clip_norm must be above 0; got {learning_rate} and {clip_norm}.")
    steps = max(warmup_steps, 1)
    rate = optax.linear_schedule(learning_rate / steps, learning_rate, steps - 1)
    descend = optax.inject_hyperparams(optax.adamw, static_args=("b1", "b2", "eps", "weight_decay"))
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        descend(learning_rate=rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay),
    )
