"""Which responses share a row: every token stands somewhere once, and like goes with like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.devices.mesh import Layout
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.learner.packing import divide, pack, sizes
from grpo_jax.models import tiny
from grpo_jax.rollout import Sampler

MODEL = tiny(remat="none")
PARAMS = MODEL.params(Layout().mesh(jax.devices()[:1]))
PROMPTS = MODEL.tokenizer.encode_all(["a", "What is 2 + 2?", "Name three colours.", "Hi"], max_tokens=64)


@pytest.mark.parametrize("seed", range(5))
def test_every_token_has_one_slot_and_responses_stay_whole(seed):
    random = np.random.default_rng(seed)
    P, G, T = 4, 6, 256
    length_PG = np.minimum(random.geometric(1 / 60, (P, G)), T)
    slots_PBW = pack(length_PG, T)
    assert slots_PBW.shape[1:] in sizes(G, T)
    for p in range(P):
        used = [slot for slot in slots_PBW[p].reshape(-1).tolist() if slot < G * T]
        assert sorted(used) == [g * T + t for g in range(G) for t in range(length_PG[p, g])]
        for row_S in slots_PBW[p]:
            steps = np.diff(row_S)
            inside = (row_S[1:] < G * T) & (row_S[1:] % T != 0)
            assert (steps[inside] == 1).all()


def test_short_responses_need_few_slots_and_long_ones_all():
    T = 512
    assert pack(np.full((2, 8), 60), T).shape == (2, 4, 128)
    assert pack(np.full((2, 8), 128), T).shape == (2, 8, 128)
    assert pack(np.tile([500, 60, 60, 60, 60, 60, 60, 60], (2, 1)), T).shape == (2, 2, T)
    assert pack(np.full((2, 8), T), T).shape == (2, 8, T)
    assert pack(np.full((2, 8), 0), T).shape == (2, 2, 128)


def test_a_thousand_batches_need_a_dozen_programs():
    random = np.random.default_rng(0)
    shapes = {
        pack(np.minimum(random.geometric(1 / random.integers(10, 400), (8, 8)), 1024), 1024).shape for _ in range(1000)
    }
    assert len(shapes) <= len(sizes(8, 1024)) == 12


def test_parts_cover_every_response_once_and_put_like_with_like():
    random = np.random.default_rng(0)
    P, G, T = 8, 4, 256
    length_PG = np.minimum(random.geometric(1 / 60, (P, G)), T)
    parts = list(divide(length_PG, T, at_once=2, splits=2, shards=2))
    places = [(p, g) for part in parts for p, row in zip(part.index_p, part.index_pg, strict=True) for g in row]
    assert sorted(places) == sorted(np.ndindex(P, G))
    for part in parts:
        assert sorted(part.index_p // 4) == [0, 1]  # a prompt of each shard
    longest = [length_PG[part.index_p[:, None], part.index_pg].max() for part in parts]
    assert max(longest[4:]) <= max(longest[:4])


@pytest.mark.slow
def test_packed_rows_compute_the_log_probs_and_gradients_of_rows_of_their_own():
    sampler = Sampler(tuple(range(0, 256, 10)), responses=4, max_tokens=128)
    rollouts = jax.tree.map(jnp.asarray, sampler(MODEL.policy, PARAMS, PROMPTS, jax.random.key(0)))
    length_PG = np.asarray(rollouts.valid_PGT).sum(axis=2)
    slots_PBW = pack(length_PG, 128)
    assert slots_PBW.size < rollouts.tokens_PGT.size / 2

    def total(params, slots):
        logprobs_PGT, entropy_PGT = token_logprobs(MODEL.policy, params, rollouts, slots)
        weights_PGT = jnp.cos(jnp.arange(logprobs_PGT.size)).reshape(logprobs_PGT.shape)
        return jnp.sum(weights_PGT * (logprobs_PGT + 0.3 * entropy_PGT)), (logprobs_PGT, entropy_PGT)

    measure = jax.jit(jax.grad(total, has_aux=True))
    (apart, scores), (packed, packed_scores) = measure(PARAMS, None), measure(PARAMS, slots_PBW)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scores, packed_scores)
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(packed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())
