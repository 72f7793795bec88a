"""The sampler: what it returns is what it did, and rows, steps and seeds are as independent as they should be."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.logprobs import token_logprobs
from grpo_jax.models import tiny
from grpo_jax.rollout import Sampler
from grpo_jax.rollout.distributions import draw
from grpo_jax.runtime.sharding import Layout
from grpo_jax.structs import Prompts, Rollouts

ONE = Layout().mesh(jax.devices()[:1])
MODEL = tiny(remat=False)
PARAMS = MODEL.params(ONE)
PROMPTS = MODEL.tokenizer.encode_all(["a", "What is 2 + 2?", "Name three colours of the rainbow."], max_tokens=64)
ENDS = (10, 32, 101, 256)  # some letters end a response too, so that rows of a random model end early
score = jax.jit(token_logprobs, static_argnums=0)


def sample(sampler: Sampler, seed: int = 0, prompts: Prompts = PROMPTS, params=PARAMS) -> Rollouts:
    return sampler(MODEL.policy, params, prompts, jax.random.key(seed))


@pytest.fixture(scope="module", params=[0.7, 1.0])
def rollouts(request) -> Rollouts:
    return sample(Sampler(ENDS, responses=6, max_tokens=40, temperature=request.param))


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
    scored_PGT, _ = score(MODEL.policy, PARAMS, replace(rollouts, temperature=0.01))
    np.testing.assert_array_less(-0.7, scored_PGT)  # each one has at least half of a cold distribution


def test_sampling_stops_when_every_row_has_ended():
    turns = []

    def extend(*inputs):
        jax.debug.callback(lambda: turns.append(1))
        return MODEL.policy.extend(*inputs)

    spied = replace(MODEL.policy, extend=extend)
    many_ends = Sampler(tuple(range(0, 259, 2)), responses=2, max_tokens=200)
    rollouts = jax.block_until_ready(many_ends(spied, PARAMS, PROMPTS, jax.random.key(0)))
    jax.effects_barrier()
    assert np.asarray(rollouts.ended_PG).all()
    assert len(turns) == np.asarray(rollouts.action_PGT).sum(axis=2).max() - 1 < 100


def test_eight_devices_sample_the_tokens_of_one():
    mesh = Layout(data=2, fsdp=2, tensor=2).mesh()
    prompts = MODEL.tokenizer.encode_all(["one", "two", "three", "fourteen"], max_tokens=64)
    sampler = Sampler(ENDS, responses=4, max_tokens=16)
    alone = sample(sampler, prompts=prompts)
    shared = sample(sampler, prompts=prompts, params=MODEL.params(mesh))
    np.testing.assert_array_equal(alone.tokens_PGT, shared.tokens_PGT)
    np.testing.assert_allclose(alone.logprobs_PGT, shared.logprobs_PGT, atol=1e-5)


@pytest.mark.parametrize("V", [5, 128, 300])
def test_draws_have_the_given_probabilities(V):
    logits_V = np.random.default_rng(V).normal(size=V) * 2
    probs_V = np.exp(logits_V - np.log(np.exp(logits_V).sum()))
    probs_V[V // 2] = 0
    probs_V /= probs_V.sum()
    side = (jnp.arange(400, dtype=jnp.float32) + 0.5) / 400  # an even grid in place of noise
    uniform_1n2 = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(1, -1, 2)
    logprobs_V = jnp.log(jnp.asarray(probs_V, jnp.float32))
    token_1n = draw(uniform_1n2, jnp.broadcast_to(logprobs_V[None, None], (1, 400 * 400, V)))
    share_V = np.bincount(np.asarray(token_1n)[0], minlength=V) / (400 * 400)
    np.testing.assert_allclose(share_V, probs_V, atol=4e-3)
    assert share_V[V // 2] == 0


def test_tokens_of_a_rare_block_are_drawn_in_proportion():
    logprobs_V = jnp.full(256, -jnp.inf).at[0].set(0.0).at[jnp.array([130, 140, 150])].set(jnp.log(2e-8))
    second = (jnp.arange(300, dtype=jnp.float32) + 0.5) / 300
    uniform_1n2 = jnp.stack([jnp.full(300, 1 - 2**-24), second], axis=-1)[None]
    token_1n = draw(uniform_1n2, jnp.broadcast_to(logprobs_V[None, None], (1, 300, 256)))
    assert np.unique(np.asarray(token_1n), return_counts=True)[1].tolist() in ([300], [100, 100, 100])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_no_draw_falls_on_a_token_without_probability(uniform):
    logprobs_11V = jnp.full((1, 1, 300), -jnp.inf).at[0, 0, jnp.array([7, 200])].set(jnp.log(0.5))
    assert int(draw(jnp.full((1, 1, 2), uniform), logprobs_11V)[0, 0]) == (7 if uniform == 0 else 200)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ends": ()}, "No end token"),
        ({"temperature": -1.0}, "at least 0"),
        ({"max_tokens": 0}, "Nothing to sample"),
        ({"max_tokens": 1000}, r"need 10\d\d positions; the model has 1024"),
    ],
)
def test_an_impossible_request_is_refused_with_numbers(changes, words):
    with pytest.raises(ValueError, match=words):
        sample(Sampler(**({"ends": (256,)} | changes)))
