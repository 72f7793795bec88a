"""Several tokens of a row read at once leave the caches as the same tokens do when they are decoded one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import SHAPES, decoder_policy
from grpo_jax.models.attention import paired, unpaired
from grpo_jax.models.decoder import Experts, Span
from grpo_jax.models.rope import Rope
from grpo_jax.structs import Prompts

TINY = replace(SHAPES["tiny"], kv_heads=2, heads=4, vocabulary=64)
WINDOWS = (Span(6, Rope(100.0)), Span(None, Rope(500.0)))
SHAPES_OF = {
    "plain": TINY,
    "windows and a softcap": replace(TINY, pattern=(WINDOWS * TINY.layers)[: TINY.layers], softcap=5.0),
    "experts": replace(TINY, experts=Experts(4, 2, 24, True)),
}
P, G, S, T = 2, 2, 32, 9
COUNT_PG, INDEX_PG = np.array([[9, 3], [0, 1]]), np.array([[4, 0], [5, 11]])
START_PG = np.array([[-10, 25], [0, 20]])  # the first has positions 22 to 30, the last ends at 0


def drawn_caches(policy, params, int8):
    """The caches of prompts, and those of responses, filled with other numbers than zero."""
    tokens_PL = jnp.arange(P * 12).reshape(P, 12) % 60
    valid_PL = jnp.arange(12)[None] >= jnp.array([[0], [5]])
    prefix = policy.read(params, Prompts(tokens_PL, valid_PL))[1]
    shared, own = policy.cache(prefix, 16, G, S, int8)
    draw = np.random.default_rng(0)
    return shared, jax.tree.map(lambda a: jnp.asarray(draw.integers(0, 3, a.shape), a.dtype), own)


@pytest.mark.parametrize(
    ("name", "int8"), [("plain", False), ("plain", True), ("windows and a softcap", False), ("experts", False)]
)
def test_a_block_leaves_the_caches_as_tokens_one_by_one_do(name, int8):
    shape = SHAPES_OF[name]
    policy = decoder_policy(shape, platform="cpu", replay_experts=shape.experts is not None)
    params = policy.init(jax.random.key(0))
    served, (shared, own) = policy.serve(params), drawn_caches(policy, params, int8)
    tokens_PGT = np.random.default_rng(1).integers(0, 64, (P, G, T)).astype(np.int32)
    found = jax.jit(policy.extend_block)(served, shared, own, tokens_PGT, COUNT_PG, INDEX_PG, START_PG)
    expected, extend = own, jax.jit(policy.extend)
    for t in range(T):  # each row's token by itself, as they stand at other positions of their rings
        for p, g in np.argwhere(t < COUNT_PG):
            cursor = START_PG[p, g] + INDEX_PG[p, g] + t
            _, extended = extend(served, shared, expected, tokens_PGT[..., t], cursor, START_PG)
            expected = jax.tree.map(lambda a, b, at=(p, g): a.at[at].set(b[at]), expected, extended)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, atol=2e-5)
        else:  # int8 may be rounded to the next, experts are the same
            assert np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32)).max() <= int(int8)
    changed_PG = [np.asarray(a != b).any(axis=(2, 3, 4)) for a, b in zip(key_of(found), key_of(own), strict=True)]
    np.testing.assert_array_equal(changed_PG, [COUNT_PG > 0] * shape.layers)


def key_of(own):
    return [layer.key for layer in own]


def test_heads_side_by_side_are_read_and_written_as_heads_by_themselves():
    policy = decoder_policy(replace(TINY, channels=64), platform="cpu")
    params = policy.init(jax.random.key(0))
    shared, own = drawn_caches(policy, params, int8=False)
    beside = [layer._replace(key=paired(layer.key), value=paired(layer.value)) for layer in own]
    tokens_PGT = np.arange(P * G * T, dtype=np.int32).reshape(P, G, T)
    expected, found = (
        jax.jit(policy.extend_block)(policy.serve(params), shared, rings, tokens_PGT, COUNT_PG, INDEX_PG, START_PG)
        for rings in (own, beside)
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(paired(one.key), other.key)
        np.testing.assert_array_equal(one.value, unpaired(other.value))
