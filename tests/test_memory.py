"""Every parameter in little memory: bfloat16 weights that are rounded at random."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import rounding
from grpo_jax.models import tiny
from grpo_jax.optimizers import adafactor, adamw, first_state, stepped

KEY = jax.random.key(0)


def neighbours(x: float) -> tuple[float, float]:
    """The bfloat16 numbers below and above a number: eight bits of its mantissa are kept."""
    step = 2.0 ** (np.floor(np.log2(abs(x))) - 7)
    return np.floor(x / step) * step, np.ceil(x / step) * step


@pytest.mark.parametrize("x", [1.0 + 1e-3, -1.0 - 1e-3, 0.1, -3e-5, 1e-30, 7.7e20])
def test_a_rounded_number_is_a_neighbour_and_the_mean_is_the_number(x):
    count = 40_000
    x = float(np.float32(x))
    rounded = np.asarray(rounding.to_bfloat16(KEY, jnp.full(count, x, jnp.float32)), np.float64)
    below, above = neighbours(x)
    assert set(rounded) == {below, above}
    chance = (x - below) / (above - below)  # of rounding up, worked out in float64
    error = 4 * np.sqrt(chance * (1 - chance) / count) * (above - below)
    assert abs(rounded.mean() - x) < error


def test_what_bfloat16_can_hold_or_is_not_finite_stays_as_it_is():
    x = jnp.array([0.0, -0.0, 1.0, -2.5, 3.0e38, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    x = x.at[4].set(x[4].astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(np.asarray(rounding.to_bfloat16(KEY, x), np.float32), np.asarray(x))


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(1.0), adamw(1e-3, 0), adafactor(1e-3, 0)], ids=["sgd", "adamw", "factored"]
)
def test_steps_of_bfloat16_weights_have_the_mean_of_float32_steps(optimizer):
    wide = {"a_DF": jnp.full((64, 512), 0.5), "b_DF": jnp.full((64, 512), 0.5)}
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), wide)
    gradient = jax.tree.map(lambda a: jnp.full(a.shape, 1e-4), wide)
    expected, _ = stepped(optimizer, wide, first_state(optimizer, wide), gradient, KEY)
    state = first_state(optimizer, narrow)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(state) if a.ndim)
    found, _ = stepped(optimizer, narrow, state, jax.tree.map(lambda a: a.astype(jnp.bfloat16), gradient), KEY)
    move, size = float(expected["a_DF"][0, 0]) - 0.5, 2.0**-9  # of a step of bfloat16 below a half
    assert abs(move) < 0.6 * size  # to nearest, nothing or too much would happen
    mean = np.asarray(found["a_DF"], np.float64).mean() - 0.5
    assert mean == pytest.approx(move, abs=4 * size * np.sqrt(abs(move) / size / found["a_DF"].size))
    assert np.any(np.asarray(found["a_DF"] != found["b_DF"]))  # each array has random numbers of its own


def test_matrices_are_stored_in_bfloat16_and_norms_in_float32():
    policy = tiny(weights="bfloat16").policy
    params = policy.init(KEY)
    types = {jax.tree_util.keystr(path): a.dtype for path, a in jax.tree_util.tree_leaves_with_path(params)}
    assert {name for name, dtype in types.items() if dtype == jnp.float32} == {
        "['norm_D']",
        "['layers']['attention_norm_D']",
        "['layers']['feedforward_norm_D']",
    }
    wide = tiny().policy.init(KEY)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), params, wide)
