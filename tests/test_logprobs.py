"""Scoring in chunks: the same numbers and gradients as all at once, in memory that grows with the chunk alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.learner import logprobs
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import Shape, decoder_policy
from grpo_jax.models.decoder import Rope
from grpo_jax.structs import Prompts, Rollouts

V = 32768
SHAPE = Shape(V, 16, 32, 1, 2, 1, 8, Rope(10000.0), 1e-5, 4096, tied=True)


def random_rollouts(P: int, G: int, T: int, V: int) -> Rollouts:
    random = np.random.default_rng(0)
    tokens_PL = jnp.asarray(random.integers(0, V, (P, 4)), jnp.int32)
    prompts = Prompts(tokens_PL, jnp.ones((P, 4), bool))
    tokens_PGT = jnp.asarray(random.integers(0, V, (P, G, T)), jnp.int32)
    all_PGT, zeros_PGT = jnp.ones((P, G, T), bool), jnp.zeros((P, G, T))
    return Rollouts(prompts, tokens_PGT, all_PGT, all_PGT, zeros_PGT, zeros_PGT, all_PGT[..., 0], Distribution())


def temporary_bytes(T: int, chunk: int, monkeypatch) -> int:
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
    policy, rollouts = decoder_policy(SHAPE), random_rollouts(1, 8, T, V)

    def total(params):
        logprobs_PGT, entropy_PGT = token_logprobs(policy, params, rollouts)
        return jnp.sum(logprobs_PGT) + jnp.sum(entropy_PGT)

    params = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.jit(jax.grad(total)).lower(params).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_grows_with_the_chunk_and_not_with_vocabulary_times_tokens(monkeypatch):
    chunk, T = 256, 256
    whole, row = 4 * V * 8 * T, 4 * V * chunk  # bytes of all logits, and of a chunk's
    small, large = temporary_bytes(T, chunk, monkeypatch), temporary_bytes(T, 2 * chunk, monkeypatch)
    assert small < whole
    assert large - small > row
    assert temporary_bytes(2 * T, chunk, monkeypatch) - small < whole / 4  # attention of longer rows


def received_bytes(chunk: int, monkeypatch) -> int:
    """What each of eight devices receives for the gradient of scores."""
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
    policy, mesh = decoder_policy(SHAPE), Layout(data=2, fsdp=4, tensor=1).mesh()
    rollouts = place_prompts(random_rollouts(8, 2, 32, V), mesh)

    def total(params, rollouts):
        logprobs_PGT, entropy_PGT = token_logprobs(policy, params, rollouts)
        return jnp.sum(logprobs_PGT) + jnp.sum(entropy_PGT)

    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    layout = weight_shardings(shapes, mesh)
    params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, layout)
    with jax.set_mesh(mesh):
        return collective_bytes(
            jax.jit(jax.grad(total), out_shardings=layout).lower(params, rollouts).compile().as_text()
        )


@pytest.mark.slow
def test_devices_receive_the_head_and_its_gradient_once_however_many_chunks_there_are(monkeypatch):
    once, often = received_bytes(64, monkeypatch), received_bytes(8, monkeypatch)
    assert once > 4 * V * SHAPE.width  # the head
    assert often < 1.01 * once


def test_gradients_are_those_of_scoring_everything_at_once_in_float64(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 12)
    random = np.random.default_rng(0)
    hidden_PGTD, head_VD = random.normal(size=(2, 3, 7, 5)), random.normal(size=(11, 5))
    tokens_PGT = random.integers(0, 11, (2, 3, 7))
    weights = random.normal(size=(2, 2, 3, 7))

    def plain(head_VD, hidden_PGTD):
        all_PGTV = jax.nn.log_softmax(hidden_PGTD @ head_VD.T)
        entropy_PGT = -jnp.sum(jnp.exp(all_PGTV) * all_PGTV, axis=-1)
        logprobs_PGT = jnp.take_along_axis(all_PGTV, tokens_PGT[..., None], axis=-1)[..., 0]
        return jnp.sum(weights[0] * logprobs_PGT + weights[1] * entropy_PGT)

    def chunked(head_VD, hidden_PGTD):
        rows = logprobs.Rows(*(jnp.asarray(tokens_PGT),) * 4)
        chunks = jax.tree.map(partial(logprobs._slices, 4), (hidden_PGTD, rows))
        scores = logprobs._score(lambda heads, hidden, *_: hidden @ heads[0].T, [head_VD], [None], *chunks, None)
        both = [jnp.moveaxis(a, 0, 2).reshape(2, 3, -1)[:, :, :7] for a in scores]
        return jnp.sum(weights[0] * both[0] + weights[1] * both[1])

    tokens_PGT = jnp.asarray(tokens_PGT)
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # before jax 0.8
    with enable_x64(True):
        expected = jax.grad(plain, (0, 1))(jnp.asarray(head_VD), jnp.asarray(hidden_PGTD))
    found = jax.grad(chunked, (0, 1))(jnp.asarray(head_VD, jnp.float32), jnp.asarray(hidden_PGTD, jnp.float32))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
