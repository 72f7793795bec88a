"""Gradients that are added to sums within the backward pass are those that are added afterwards, bit by bit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.distribution import Distribution
from grpo_jax.learner import logprobs
from grpo_jax.models import decoder_policy, tiny
from grpo_jax.structs import Prompts, Rollouts, Summing

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


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_the_head_is_added_to_its_sums(tied, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 40)
    policy = decoder_policy(replace(MODEL.shape, tied=tied), jnp.float32)
    params, draw = policy.init(jax.random.key(0)), np.random.default_rng(0)
    head = "embed_VD" if tied else "head_VD"
    prompts = Prompts(jnp.array(draw.integers(1, 200, (2, 16))), jnp.ones((2, 16), bool))
    assert logprobs.head_names(policy, params, prompts) == [head]
    tokens_PGT, mask_PGT = jnp.array(draw.integers(1, 200, (2, 4, 24))), jnp.ones((2, 4, 24), bool)
    numbers_PGT = jnp.array(draw.normal(size=mask_PGT.shape), jnp.float32)
    rollouts = Rollouts(
        prompts, tokens_PGT, mask_PGT, mask_PGT, numbers_PGT, numbers_PGT, mask_PGT[:, :, 0], Distribution()
    )
    sums_VD = jnp.array(draw.normal(size=params[head].shape), jnp.float32)

    def value(params):
        logprobs_PGT, entropy_PGT = logprobs.token_logprobs(policy, params, rollouts)
        return jnp.sum(numbers_PGT * logprobs_PGT + entropy_PGT)

    def summing(weights_VD, sums_VD):
        return value(params | {head: Summing(weights_VD, sums_VD)})

    rest_VD, added_VD = jax.jit(jax.grad(summing, (0, 1)))(params[head], sums_VD)
    expected_VD = jax.jit(jax.grad(value))(params)[head]
    np.testing.assert_allclose(rest_VD + added_VD, sums_VD + expected_VD, atol=2e-5)
    if not tied:  # nothing else uses it
        np.testing.assert_array_equal(rest_VD, 0)
