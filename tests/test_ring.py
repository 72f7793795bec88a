"""The TPU's decoding kernel, run by an interpreter, against attention written out in NumPy; and a sampler with it."""

import itertools
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from grpo_jax.models import SHAPES, decoder_policy
from grpo_jax.models.attention import KeyValues, attend_ring, live_positions
from grpo_jax.models.attention.ring import BLOCK, block_size, paired
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Prompts

# Of three rows, and the position of the newest in the ring of two blocks of 128: rows that have ended, that are full,
# that wrap. Where blocks are larger, there are as many more of each.
COUNTS = {
    "short": ([1, 0, 71], 70),
    "wrapped": ([200, 256, 3], 70),
    "end of a block": ([129, 0, 128], 127),
    "newest and oldest in a block": ([255, 254, 256], 200),
    "first": ([1, 256, 130], 0),
    "last": ([256, 0, 130], 255),
    "none": ([0, 0, 0], 17),
}
HEADS = {
    "grouped": (2, 2, 128),
    "pairs of 64": (2, 3, 64),
    "of 256": (1, 2, 256),
    "each its own": (4, 1, 128),
    "many": (8, 1, 128),
}


def by_hand(query_GKQC, key_GKSC, value_GKSC, count_G, index, softcap):
    """Attention of each row to its newest positions, one at a time, in float64; and the logarithm of the sum."""
    output_GKQC, logsum_GKQ = np.zeros(query_GKQC.shape), np.zeros(query_GKQC.shape[:3])
    S = key_GKSC.shape[2]
    for g, k, q in np.ndindex(*query_GKQC.shape[:3]):
        if count_G[g] == 0:
            continue
        seen = [(index - age) % S for age in range(count_G[g])]
        scores = key_GKSC[g, k, seen] @ query_GKQC[g, k, q]
        scores = scores if softcap is None else np.tanh(scores / softcap) * softcap
        weights = np.exp(scores - scores.max())
        output_GKQC[g, k, q] = weights @ value_GKSC[g, k, seen] / weights.sum()
        logsum_GKQ[g, k, q] = scores.max() + np.log(weights.sum())
    return output_GKQC, logsum_GKQ


def check(heads, counts, softcap, dtype, S=None):
    (K, Q, C), (count_G, index) = HEADS[heads], COUNTS[counts]
    pairs = max(128 // C, 1)
    if S is None:
        times = block_size(K // pairs, 4 * BLOCK, C * pairs) // BLOCK
        count_G, index, S = [times * count for count in count_G], times * (index + 1) - 1, 2 * times * BLOCK
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), dtype)

    query_PGKQC = draw(1, 3, K, Q, C) * C**-0.5
    new, old = (KeyValues(draw(1, 3, K, n, C), draw(1, 3, K, n, C)) for n in (1, S))
    cached = old if C >= 128 else KeyValues(paired(old.key), paired(old.value))

    @jax.jit
    def attend(count_PG, index):
        live = live_positions(count_PG, index, cached.key)
        return attend_ring(query_PGKQC, new, cached, live, index, softcap)

    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        found, written = attend(jnp.array([count_G]), jnp.int32(index))
    active_G = np.array(count_G) > 0
    rings = []
    for a, b, ring in zip(old[:2], new[:2], written[:2], strict=True):
        expected = np.array(a)
        expected[0, active_G, :, index] = np.asarray(b)[0, active_G, :, 0]
        as_cached = expected if C >= 128 else paired(jnp.asarray(expected))
        np.testing.assert_array_equal(np.asarray(ring, np.float32), np.asarray(as_cached, np.float32))
        rings.append(expected[0].astype(float))
    output, logsum = by_hand(np.asarray(query_PGKQC[0], float), *rings, count_G, index, softcap)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(found.output[0], output, atol=tolerance)
    np.testing.assert_allclose(np.asarray(found.logsum)[0, active_G, :, :, 0], logsum[active_G], atol=tolerance)


@pytest.mark.parametrize(
    ("heads", "counts", "softcap", "dtype"),
    [
        ("grouped", "wrapped", None, jnp.float32),
        ("pairs of 64", "newest and oldest in a block", 5.0, jnp.float32),
        ("of 256", "end of a block", None, jnp.bfloat16),
        ("many", "wrapped", None, jnp.bfloat16),
    ],
)
def test_the_kernel_reads_and_writes_what_the_formula_does(heads, counts, softcap, dtype):
    check(heads, counts, softcap, dtype)


@pytest.mark.parametrize(("counts", "S"), [("wrapped", 256), ("newest and oldest in a block", 384)])
def test_a_ring_buffer_may_be_one_block_or_three_smaller_ones(counts, S):
    assert [block_size(2, S, 128) for S in (256, 384, 512)] == [256, 128, 256]
    check("grouped", counts, None, jnp.float32, S)


def test_blocks_are_larger_where_a_device_has_few_heads():
    assert [block_size(K, 1024, 128) for K in (1, 2, 4, 8)] == [256, 256, 256, 128]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("heads", "counts", "softcap"), list(itertools.product(HEADS, COUNTS, [None, 5.0])))
def test_the_kernel_does_so_for_all_heads_and_counts(heads, counts, softcap, dtype):
    check(heads, counts, softcap, dtype)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("chip", ["v5e-1", "v6e-1"])
def test_the_kernel_takes_at_most_a_tenth_longer_than_its_bytes(chip):
    """By the compiler's own code, in a process of its own, as libtpu reads its options only once."""
    pytest.importorskip("libtpu", reason="libtpu is large, and only tests of TPUs need it")
    command = [sys.executable, "docs/measure_ring.py", chip, "8x2x128", "2x6x128", "1x4x256"]
    printed = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    ratios = [float(line.split("|")[5]) for line in printed.stdout.splitlines()]
    assert len(ratios) == 3 and max(ratios) <= 1.1


SHAPE = replace(SHAPES["tiny"], kv_heads=2, heads=4, channels=64, layers=1, vocabulary=64)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, pytest.param(6, marks=pytest.mark.long)])
def test_a_sampler_with_the_kernel_draws_the_tokens_of_one_without(window):
    shape = replace(SHAPE, window=window)
    plain, on_tpu = (decoder_policy(shape, platform=platform) for platform in ("cpu", "tpu"))
    fast = replace(plain, cache=on_tpu.cache, extend=on_tpu.extend, live_block=on_tpu.live_block)  # reads on a CPU
    params = plain.init(jax.random.key(0))
    prompts = Prompts(jnp.arange(4 * 16).reshape(4, 16), jnp.ones((4, 16), bool))
    sampler = Sampler(ends=tuple(range(0, 64, 9)), responses=2, max_tokens=20, at_once=2)
    expected = sampler(plain, params, prompts, jax.random.key(1))
    with pltpu.force_tpu_interpret_mode():
        found = sampler(fast, params, prompts, jax.random.key(1))
    np.testing.assert_array_equal(found.tokens_PGT, expected.tokens_PGT)
    np.testing.assert_array_equal(found.ended_PG, expected.ended_PG)
    np.testing.assert_allclose(found.logprobs_PGT, expected.logprobs_PGT, atol=2e-5)


def test_a_cache_that_the_kernel_does_not_take_is_named_once(caplog):
    policy = decoder_policy(replace(SHAPE, channels=48), platform="tpu")
    prompts = Prompts(jnp.zeros((1, 16), int), jnp.ones((1, 16), bool))
    assert policy.live_block is None

    def decode(params):
        prefix = policy.read(params, prompts)[1]
        shared, own = policy.cache(prefix, 64, 2, 128, False)
        nothing_PG = jnp.zeros((1, 2), jnp.int32)
        return policy.extend(policy.serve(params), shared, own, nothing_PG, jnp.int32(0), nothing_PG)

    with caplog.at_level(logging.INFO, "grpo_jax"):
        jax.eval_shape(decode, policy.shapes)
        jax.eval_shape(lambda params: decode(params), policy.shapes)
    assert [line for line in caplog.messages if "kernel does not take" in line] == [
        "decoding reads whole ring buffers: its TPU kernel does not take a cache [1, 2, 2, 128, 48] of float32"
    ]
