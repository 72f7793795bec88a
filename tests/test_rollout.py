"""The sampler: what it resteps is what it did, and rows, steps and seeds are as independent as they should be."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.distribution import Distribution
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import tiny
from grpo_jax.rollout import Sampler, native, sizes, stages
from grpo_jax.structs import Prompts, Rollouts

ONE = Layout().mesh(jax.devices()[:1])
MODEL = tiny(remat="none")
PARAMS = MODEL.params(ONE)
PROMPTS = MODEL.tokenizer.encode_all(["a", "What is 2 + 2?", "Name three colours of the rainbow."], max_tokens=64)
ENDS = (10, 32, 101, 256)  # some letters end a response too, so that rows of a random model end early
score = jax.jit(token_logprobs, static_argnums=0)


def sample(sampler: Sampler, seed: int = 0, prompts: Prompts = PROMPTS, params=PARAMS) -> Rollouts:
    return sampler(MODEL.policy, params, prompts, jax.random.key(seed))


@pytest.fixture(scope="module", params=[0.7, 1.0])
def rollouts(request) -> Rollouts:
    return sample(Sampler(ENDS, responses=6, max_tokens=40, temperature=request.param))


@pytest.mark.slow
def test_sampler_and_trainer_agree_on_log_probs_and_entropies(rollouts):
    logprobs_PGT, entropy_PGT = score(MODEL.policy, PARAMS, rollouts)
    np.testing.assert_allclose(logprobs_PGT, rollouts.logprobs_PGT, atol=2e-4)
    np.testing.assert_allclose(entropy_PGT, rollouts.entropy_PGT, atol=2e-4)
    assert np.abs(rollouts.logprobs_PGT).max() > 1


def test_a_row_acts_up_to_and_including_its_first_end_token(rollouts):
    tokens_PGT, action_PGT = np.asarray(rollouts.tokens_PGT), np.asarray(rollouts.action_PGT)
    ended = []
    for tokens_T, action_T in zip(tokens_PGT.reshape(-1, 40), action_PGT.reshape(-1, 40), strict=True):
        ends = [t for t in range(40) if tokens_T[t] in ENDS]
        length = ends[0] + 1 if ends else 40
        np.testing.assert_array_equal(action_T, np.arange(40) < length)
        ended.append(bool(ends))
    np.testing.assert_array_equal(np.asarray(rollouts.ended_PG).ravel(), ended)
    assert 0 < sum(ended) < len(ended)
    assert len({int(n) for n in action_PGT.sum(axis=2).ravel()}) > 3


def test_nothing_is_reported_where_there_is_no_action(rollouts):
    silent_PGT = ~np.asarray(rollouts.action_PGT)
    assert silent_PGT.any()
    assert not np.asarray(rollouts.logprobs_PGT)[silent_PGT].any()
    assert not np.asarray(rollouts.entropy_PGT)[silent_PGT].any()
    np.testing.assert_array_equal(rollouts.valid_PGT, rollouts.action_PGT)


def test_responses_of_a_group_differ(rollouts):
    for tokens_GT in np.asarray(rollouts.tokens_PGT):
        assert len({tuple(tokens_T) for tokens_T in tokens_GT.tolist()}) == 6


def test_the_same_key_gives_the_same_tokens_and_another_key_others():
    sampler = Sampler(ENDS, responses=4, max_tokens=16)
    first, again, other = sample(sampler, 1), sample(sampler, 1), sample(sampler, 2)
    np.testing.assert_array_equal(first.tokens_PGT, again.tokens_PGT)
    assert (np.asarray(first.tokens_PGT[:, :, 0]) != np.asarray(other.tokens_PGT[:, :, 0])).any()


def test_padding_and_neighbours_do_not_change_a_row():
    wider = Prompts(np.pad(PROMPTS.tokens_PL, ((0, 0), (7, 0))), np.pad(PROMPTS.valid_PL, ((0, 0), (7, 0))))
    strangers = Prompts(wider.tokens_PL.copy(), wider.valid_PL)
    strangers.tokens_PL[1] = strangers.tokens_PL[1] // 2
    sampler = Sampler(ENDS, responses=4, max_tokens=16)
    first, padded, beside = (sample(sampler, prompts=prompts) for prompts in (PROMPTS, wider, strangers))
    np.testing.assert_array_equal(first.tokens_PGT, padded.tokens_PGT)
    np.testing.assert_array_equal(first.tokens_PGT[::2], beside.tokens_PGT[::2])
    assert (np.asarray(first.tokens_PGT[1]) != np.asarray(beside.tokens_PGT[1])).any()


def test_greedy_takes_the_likeliest_token_and_is_certain_of_it():
    rollouts = sample(Sampler((256,), responses=1, max_tokens=8, temperature=0.0))
    assert not np.asarray(rollouts.logprobs_PGT).any()
    last_PD, _ = jax.jit(MODEL.policy.read)(PARAMS, PROMPTS)
    best_P = MODEL.policy.unembed(PARAMS, last_PD).argmax(axis=1)
    np.testing.assert_array_equal(rollouts.tokens_PGT[:, 0, 0], best_P)
    scored_PGT, _ = score(MODEL.policy, PARAMS, replace(rollouts, distribution=Distribution(temperature=0.01)))
    np.testing.assert_array_less(-0.7, scored_PGT)  # each one has at least half of a cold distribution


def test_sampling_stops_when_every_row_has_ended():
    steps = []

    def extend(*inputs):
        jax.debug.callback(lambda: steps.append(1))
        return MODEL.policy.extend(*inputs)

    spied = replace(MODEL.policy, extend=extend)
    many_ends = Sampler(tuple(range(0, 259, 2)), responses=2, max_tokens=200)
    rollouts = jax.block_until_ready(many_ends(spied, PARAMS, PROMPTS, jax.random.key(0)))
    jax.effects_barrier()
    assert np.asarray(rollouts.ended_PG).all()
    assert len(steps) == np.asarray(rollouts.action_PGT).sum(axis=2).max() - 1 < 100


@pytest.mark.parametrize("at_once", [None, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.slow
def test_eight_devices_sample_the_tokens_of_one(at_once, monkeypatch):
    monkeypatch.setattr(sizes, "SHORTEST_RING", 4)
    mesh = Layout(data=2, fsdp=2, tensor=2).mesh()
    prompts = MODEL.tokenizer.encode_all([f"number {n}" for n in range(8)], max_tokens=64)
    sampler = Sampler(tuple(range(0, 256, 10)), responses=4, max_tokens=60, repetition_penalty=1.2)
    alone = sample(sampler, prompts=prompts)
    shared = sample(replace(sampler, at_once=at_once), prompts=place_prompts(prompts, mesh), params=MODEL.params(mesh))
    for name in ("tokens_PGT", "action_PGT", "ended_PG"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(shared, name))
    np.testing.assert_allclose(alone.logprobs_PGT, shared.logprobs_PGT, atol=1e-5)


@pytest.mark.slow
def test_row_counts_ring_lengths_and_waiting_change_no_token(monkeypatch):
    sampler = Sampler(tuple(range(0, 256, 10)), responses=4, max_tokens=60)
    prompts = MODEL.tokenizer.encode_all([f"number {n}" for n in range(8)], max_tokens=64)
    for seed in range(20):  # until a later prompt has a longer answer than the first, so that a ring grows late
        whole = sample(sampler, seed, prompts)
        length_P = np.asarray(whole.action_PGT).sum(axis=2).max(axis=1)
        if length_P[0] < 15 < length_P.max():
            break
    monkeypatch.setattr(sizes, "SHORTEST_RING", 4)
    grown = []  # to how many positions, and whether the cursor had wrapped around
    monkeypatch.setattr(native.stages, "grow", lambda *a, grow=stages.grow: grown.append(a[1:3]) or grow(*a))
    for changes in ({}, {"at_once": 3}, {"at_once": 1}):
        staged = sample(replace(sampler, **changes), seed, prompts)
        for name in ("tokens_PGT", "action_PGT", "ended_PG"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(staged, name))
        np.testing.assert_allclose(whole.logprobs_PGT, staged.logprobs_PGT, atol=1e-5)
        np.testing.assert_allclose(whole.entropy_PGT, staged.entropy_PGT, atol=1e-5)
    assert {ring for ring, _ in grown} >= {15, 30}
    assert any(wrapped for _, wrapped in grown)


@pytest.mark.slow
def test_a_thousand_steps_of_random_lengths_need_a_handful_of_programs():
    """The host's decisions, without the devices; `next_ring` and `next_shape` are what the sampler calls."""
    random = np.random.default_rng(0)
    programs = {"decode": set(), "grow": set(), "compact": set()}
    P, G, T = 8, 8, 512
    rings, shapes = sizes.ring_lengths(T), sizes.row_shapes(P, G, 1)
    for _ in range(1000):
        L = sizes.prefix_length(int(random.integers(100, 250)))
        length_PG = np.minimum(random.geometric(1 / random.integers(20, 200), (P, G)), T)
        shape, S = (P, G), rings[0]
        for t in range(1, T):
            active_PG = length_PG > t
            programs["decode"].add((L, *shape, S))
            while active_PG.any() and (smaller := sizes.next_shape(shapes, shape, active_PG, 1)) != shape:
                programs["compact"].add((L, *shape, S))
                length_PG = np.sort(length_PG.reshape(-1))[::-1][: math.prod(smaller)].reshape(smaller)
                shape, active_PG = smaller, length_PG > t
            if active_PG.any() and (ring := sizes.next_ring(rings, S, t)) != S:
                programs["grow"].add((L, *shape, S))
                S = ring
    assert {name: len(found) for name, found in programs.items()} == {"decode": 2 * 12, "grow": 2 * 9, "compact": 2 * 8}


def test_the_sampler_says_how_many_programs_it_has_needed():
    before = native.programs()
    for seed in range(2):
        sample(Sampler(ENDS, responses=3, max_tokens=7), seed)
    assert native.programs() == before + 2  # one reads, one decodes


def test_compaction_keeps_every_active_row_with_its_prompt_and_shard():
    random = np.random.default_rng(0)
    for _ in range(200):
        active_PG = random.random((8, 4)) < random.random()
        for P, width in sizes.row_shapes(8, 4, 2):
            if sizes.prompts_needed(active_PG, width, 2) > P // 2:
                continue
            moved = sizes.compact(active_PG, (P, width), 2)
            shard_p = np.repeat([0, 1], P // 2) * 4
            found = [
                (int(shard_p[p] + moved.source_p[p]), int(moved.row_pg[p, g]))
                for p, g in zip(*np.nonzero(moved.active_pg), strict=True)
            ]
            assert sorted(found) == list(zip(*(i.tolist() for i in np.nonzero(active_PG)), strict=True))


def test_a_stop_string_ends_a_response_at_the_token_that_completes_it():
    decode = MODEL.tokenizer.decode
    free = sample(Sampler((256,), responses=6, max_tokens=50))
    texts = "".join(decode(tokens_T.tolist()) for tokens_T in np.asarray(free.tokens_PGT).reshape(-1, 50))
    stop = max(filter(str.isascii, set(texts)), key=texts.count)
    stopped = sample(Sampler((256,), responses=6, max_tokens=50, stop=(stop,), decode=decode))
    cut = 0
    for p, g in np.ndindex(3, 6):
        all_T = np.asarray(free.tokens_PGT)[p, g].tolist()
        length = next((n for n in range(1, 51) if stop in decode(all_T[:n])), None)
        whole = int(np.asarray(free.action_PGT)[p, g].sum())
        expected = whole if length is None else min(length, whole)
        assert int(np.asarray(stopped.action_PGT)[p, g].sum()) == expected
        assert np.asarray(stopped.tokens_PGT)[p, g, :expected].tolist() == all_T[:expected]
        assert bool(stopped.ended_PG[p, g]) == (bool(free.ended_PG[p, g]) or length is not None)
        cut += length is not None
    assert cut > 1


def test_an_int8_cache_moves_log_probs_little():
    sampler = Sampler(ENDS, responses=6, max_tokens=40)
    rollouts = sample(replace(sampler, int8_cache=True))
    exact_PGT, _ = score(MODEL.policy, PARAMS, rollouts)
    gap_PGT = np.abs(np.asarray(exact_PGT - rollouts.logprobs_PGT))
    assert 1e-6 < gap_PGT.max() < 0.05


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"min_p": 1.0}, "min_p must be"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be at least 0.01"),
        ({"min_tokens": 300}, "min_tokens is 300, but max_tokens only 256"),
        ({"stop": ("x",)}, "the tokenizer's `decode`"),
        ({"at_once": 0}, "at_once must be at least 1"),
        ({"responses": 10**9}, r"need \d+\.\d GB; there are"),
    ],
)
def test_an_impossible_sampler_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        sample(Sampler(**({"ends": (256,)} | changes)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ends": ()}, "No end token"),
        ({"temperature": -1.0}, "at least 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 1000}, r"need 10\d\d positions; the model has 1024"),
    ],
)
def test_an_impossible_request_is_refused_with_numbers(changes, words):
    with pytest.raises(ValueError, match=words):
        sample(Sampler(**({"ends": (256,)} | changes)))
