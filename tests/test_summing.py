"""Gradients that are added to sums within the backward pass are those that are added afterwards, bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import decoder_policy, tiny
from grpo_jax.structs import Prompts, Summing

MODEL = tiny()


@pytest.mark.parametrize(("dtype", "remat"), [("float32", "full"), ("bfloat16", "products"), ("float32", "none")])
def test_sums_of_layers_grow_by_the_gradient_of_the_weights(dtype, remat):
    policy, draw = decoder_policy(MODEL.shape, dtype, remat), np.random.default_rng(0)
    params = policy.init(jax.random.key(0))
    layers = params["layers"]
    prompts = Prompts(jnp.array(draw.integers(1, 200, (2, 16))), jnp.ones((2, 16), bool))
    tokens_PGT = jnp.array(draw.integers(1, 200, (2, 4, 24)))
    sums = jax.tree.map(lambda a: jnp.array(draw.normal(size=a.shape), jnp.float32), layers)

    def value(layers):
        states = policy.respond(params | {"layers": layers}, prompts, tokens_PGT, jnp.ones(tokens_PGT.shape, bool))
        return sum(jnp.sum(jnp.square(a.astype(jnp.float32))) for a in states)

    added = jax.jit(jax.grad(lambda sums: value(Summing(layers, sums))))(sums)
    expected = jax.tree.map(jnp.add, sums, jax.jit(jax.grad(value))(layers))
    jax.tree.map(np.testing.assert_array_equal, added, expected)
    assert all((new != old).any() for new, old in zip(jax.tree.leaves(added), jax.tree.leaves(sums), strict=True))
