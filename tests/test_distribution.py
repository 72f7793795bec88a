"""Distributions against a plain NumPy reference, and draws against their probabilities."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.distribution import (
    EXCLUDED,
    ONE_BITS,
    Distribution,
    _find_by_products,
    _find_in_order,
    _likeliest,
    draw,
    greedy,
)
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import tiny
from grpo_jax.rollout import Sampler

V = 300
ENDS = (7, 8)
DISTRIBUTIONS = {
    "temperature": Distribution(temperature=0.7),
    "top-k": Distribution(top_k=12),
    "top-p": Distribution(top_p=0.8),
    "min-p": Distribution(min_p=0.1),
    "all": Distribution(
        temperature=1.3, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.4, min_tokens=3, ends=ENDS
    ),
    "penalty": Distribution(repetition_penalty=2.0),
    "minimum": Distribution(min_tokens=3, ends=ENDS),
}


def reference(distribution: Distribution, logits_V, position: int, seen_V):
    """Probabilities by sorting, in float64, one rule after the other as transformers has them."""
    logits_V = np.array(logits_V, np.float64)
    penalty = distribution.repetition_penalty
    for v in np.flatnonzero(seen_V):
        logits_V[v] = logits_V[v] / penalty if logits_V[v] > 0 else logits_V[v] * penalty
    if position < distribution.min_tokens:
        logits_V[list(distribution.ends)] = -np.inf
    logits_V /= distribution.temperature
    order = np.argsort(-logits_V)
    if distribution.top_k:
        logits_V[order[distribution.top_k :]] = -np.inf
    probs_V = np.exp(logits_V - logits_V.max())
    probs_V /= probs_V.sum()
    before = np.cumsum(probs_V[order]) - probs_V[order]
    probs_V[order[before >= distribution.top_p]] = 0
    probs_V[probs_V < distribution.min_p * probs_V.max()] = 0
    return probs_V / probs_V.sum()


def random_case(seed: int):
    random = np.random.default_rng(seed)
    return random.normal(size=V).astype(np.float32) * 2, random.random(V) < 0.3


@pytest.mark.parametrize("position", [0, 5])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.slow
def test_probabilities_equal_those_of_sorting(name, position):
    for seed in range(20):
        logits_V, seen_V = random_case(seed)
        shaped_V = DISTRIBUTIONS[name](jnp.asarray(logits_V), jnp.int32(position), jnp.asarray(seen_V))
        expected_V = reference(
            DISTRIBUTIONS[name], logits_V, position, seen_V if "pen" in name or name == "all" else []
        )
        np.testing.assert_allclose(jax.nn.softmax(shaped_V), expected_V, atol=2e-6)


def test_a_penalty_without_a_mask_of_earlier_tokens_is_refused():
    with pytest.raises(ValueError, match="needs `seen`"):
        DISTRIBUTIONS["penalty"](jnp.zeros(V), jnp.int32(0))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.slow
def test_draws_pass_a_chi_square_test(name):
    logits_V, seen_V = random_case(1)
    distribution, n = DISTRIBUTIONS[name], 200_000
    shaped_V = distribution(jnp.asarray(logits_V), jnp.int32(5), jnp.asarray(seen_V))
    uniform_1n2 = jax.random.uniform(jax.random.key(0), (1, n, 2))
    token_1n, logprob_1n, entropy_1n = draw(uniform_1n2, jnp.broadcast_to(shaped_V[None, None], (1, n, V)))
    expected_V = reference(distribution, logits_V, 5, seen_V if distribution.penalizes else [])
    count_V = np.bincount(np.asarray(token_1n)[0], minlength=V)
    assert not count_V[expected_V == 0].any()
    large_V = expected_V * n > 5
    rest = [count_V[~large_V].sum()], [expected_V[~large_V].sum() * n]
    observed, hoped = np.append(count_V[large_V], rest[0]), np.append(expected_V[large_V] * n, rest[1])
    assert chisquare(observed[hoped > 0], hoped[hoped > 0]).pvalue > 1e-3
    np.testing.assert_allclose(np.exp(logprob_1n[0]), expected_V[np.asarray(token_1n)[0]], rtol=1e-4)
    possible = expected_V[expected_V > 0]
    np.testing.assert_allclose(entropy_1n[0], -(possible * np.log(possible)).sum(), rtol=1e-4)


@pytest.mark.parametrize("size", [5, 128, 300])
@pytest.mark.slow
def test_an_even_grid_of_uniform_numbers_gives_the_probabilities(size):
    logits_V = np.random.default_rng(size).normal(size=size) * 2
    probs_V = np.exp(logits_V - np.log(np.exp(logits_V).sum()))
    probs_V[size // 2] = 0
    probs_V /= probs_V.sum()
    side = (jnp.arange(400, dtype=jnp.float32) + 0.5) / 400
    uniform_1n2 = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(1, -1, 2)
    logits_V = jnp.asarray(np.where(probs_V > 0, logits_V, EXCLUDED), jnp.float32)
    token_1n, _, _ = draw(uniform_1n2, jnp.broadcast_to(logits_V[None, None], (1, 400 * 400, size)))
    frequency_V = np.bincount(np.asarray(token_1n)[0], minlength=size) / (400 * 400)
    np.testing.assert_allclose(frequency_V, probs_V, atol=4e-3)
    assert frequency_V[size // 2] == 0


def test_tokens_of_a_rare_block_are_drawn_in_proportion():
    logits_V = jnp.full(256, EXCLUDED).at[0].set(0.0).at[jnp.array([130, 140, 150])].set(jnp.log(2e-8))
    second = (jnp.arange(300, dtype=jnp.float32) + 0.5) / 300
    uniform_1n2 = jnp.stack([jnp.full(300, 1 - 2**-24), second], axis=-1)[None]
    token_1n, _, _ = draw(uniform_1n2, jnp.broadcast_to(logits_V[None, None], (1, 300, 256)))
    assert np.unique(np.asarray(token_1n), return_counts=True)[1].tolist() in ([300], [100, 100, 100])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_a_token_with_probability_zero_is_never_drawn(uniform):
    logits_11V = jnp.full((1, 1, V), EXCLUDED).at[0, 0, jnp.array([7, 200])].set(jnp.log(0.5))
    assert int(draw(jnp.full((1, 1, 2), uniform), logits_11V)[0][0, 0]) == (7 if uniform == 0 else 200)


@pytest.mark.parametrize("size", [128, 300, 1187])
def test_a_product_finds_what_a_cumulative_sum_finds(size):
    random = np.random.default_rng(size)
    mass_PGn = random.exponential(size=(4, 8, size)).astype(np.float32) * (random.random((4, 8, size)) < 0.5)
    mass_PGn[..., -3:] = 0  # nothing is found there
    uniform_PG = random.random((4, 8)).astype(np.float32)
    uniform_PG[0] = [0, 0.999999, 0.5, 0.25, 1e-7, 0.1, 0.9, 0.75]
    inputs = jnp.asarray(mass_PGn), jnp.asarray(uniform_PG)
    found_PG = _find_by_products(*inputs)
    np.testing.assert_array_equal(found_PG, _find_in_order(*inputs))
    assert (np.take_along_axis(mass_PGn, np.asarray(found_PG)[..., None], axis=2) > 0).all()


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 5.0])
def test_a_bisection_that_ends_early_finds_the_same_tokens_as_one_that_does_not(spread):
    logits_PGV = jax.random.normal(jax.random.key(3), (2, 4, V)) * spread
    relative_PGV = jnp.exp(logits_PGV - logits_PGV.max(axis=2, keepdims=True))
    mass_PG = 0.9 * relative_PGV.sum(axis=2)

    def enough(mask_PGV):
        return jnp.where(mask_PGV, relative_PGV, 0.0).sum(axis=2) >= mass_PG

    bits_PGV = relative_PGV.view(jnp.int32)
    low_PG, high_PG = jnp.zeros((2, 4), jnp.int32), jnp.full((2, 4), ONE_BITS + 1)
    for _ in range(30):
        middle_PG = (low_PG + high_PG) // 2
        fits_PG = enough(bits_PGV >= middle_PG[..., None])
        low_PG, high_PG = jnp.where(fits_PG, middle_PG, low_PG), jnp.where(fits_PG, high_PG, middle_PG)
    np.testing.assert_array_equal(_likeliest(relative_PGV, enough), bits_PGV >= low_PG[..., None])


def test_greedy_takes_the_first_of_equally_likely_tokens():
    logits_11V = jnp.zeros((1, 1, V)).at[0, 0, jnp.array([9, 40])].set(3.0)
    assert int(greedy(logits_11V)[0][0, 0]) == 9


def test_top_k_keeps_all_tokens_that_are_as_likely_as_the_last():
    logits_V = jnp.asarray([1.0, 2.0, 1.0, 0.0, 1.0])
    kept_V = np.asarray(Distribution(top_k=2)(logits_V, jnp.int32(0))) > EXCLUDED / 2
    assert kept_V.tolist() == [True, True, True, False, True]


def test_top_p_keeps_all_tokens_that_are_as_likely_as_the_last_it_needs():
    probs_V = np.array([0.2, 0.4, 0.2, 0.2])  # 0.4 and one of 0.2 would be enough
    kept_V = np.asarray(Distribution(top_p=0.55)(jnp.log(jnp.asarray(probs_V)), jnp.int32(0))) > EXCLUDED / 2
    assert kept_V.tolist() == [True] * 4


def test_the_order_of_equally_likely_tokens_does_not_matter():
    logits_V = np.round(np.random.default_rng(0).normal(size=V), 1).astype(np.float32)  # many ties
    order = np.random.default_rng(1).permutation(V)
    for distribution in (Distribution(top_k=12), Distribution(top_p=0.8)):
        shaped_V, permuted_V = (distribution(jnp.asarray(each), jnp.int32(0)) for each in (logits_V, logits_V[order]))
        np.testing.assert_array_equal(shaped_V[order], permuted_V)


def test_a_chosen_token_stays_possible_when_rounding_would_exclude_it():
    logits_V = jnp.asarray([2.0, 1.0, 1.0 - 1e-6, 0.0])
    shaped_V = Distribution(top_k=2)(logits_V, jnp.int32(0), None, jnp.int32(2))
    assert (np.asarray(shaped_V) > EXCLUDED / 2).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2, "temperature": 0.8},
        {"repetition_penalty": 1.5},
        {"min_tokens": 12},
        {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3, "min_tokens": 5},
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.slow
def test_the_trainer_scores_under_the_distribution_that_was_sampled(settings):
    model = tiny(remat="none")
    params = model.params(Layout().mesh(jax.devices()[:1]))
    params = jax.tree.map(lambda a: a * 3 if a.ndim > 1 else a, params)  # far from an even distribution
    prompts = model.tokenizer.encode_all(["a", "What is 2 + 2?", "Name three colours."], max_tokens=64)
    sampler = Sampler((10, 32, 101, 256), responses=6, max_tokens=40, **settings)
    rollouts = sampler(model.policy, params, prompts, jax.random.key(0))
    score = jax.jit(token_logprobs, static_argnums=0)
    logprobs_PGT, entropy_PGT = score(model.policy, params, rollouts)
    np.testing.assert_allclose(logprobs_PGT, rollouts.logprobs_PGT, atol=5e-4)
    np.testing.assert_allclose(entropy_PGT, rollouts.entropy_PGT, atol=5e-4)
    plain_PGT, _ = score(model.policy, params, replace(rollouts, distribution=Distribution()))
    assert np.abs(plain_PGT - rollouts.logprobs_PGT).max() > 0.05
    length_PG = np.asarray(rollouts.action_PGT).sum(axis=2)
    assert length_PG.min() > settings.get("min_tokens", 0)


# 6 prompts do not divide over the 4 devices that hold prompts.
@pytest.mark.parametrize("prompts", [pytest.param(8, marks=pytest.mark.long), 6])
@pytest.mark.slow
def test_scores_under_a_penalty_and_their_gradients_do_not_depend_on_the_mesh(prompts):
    model, mesh = tiny(), Layout(data=2, fsdp=2, tensor=2).mesh()
    one = model.params(Layout().mesh(jax.devices()[:1]))
    asked = model.tokenizer.encode_all([f"Say {'so ' * n}" for n in range(prompts)], max_tokens=64)
    sampler = Sampler((10, 32, 101, 256), responses=4, max_tokens=24, repetition_penalty=1.5, top_k=40)
    rollouts = jax.tree.map(np.asarray, sampler(model.policy, one, asked, jax.random.key(0)))
    some_PGT = np.random.default_rng(0).normal(size=rollouts.tokens_PGT.shape).astype(np.float32)

    def total(params, rollouts, some_PGT):
        logprobs_PGT, entropy_PGT = token_logprobs(model.policy, params, rollouts)
        return jnp.sum(some_PGT * (logprobs_PGT + 0.1 * entropy_PGT)), logprobs_PGT

    grad = jax.jit(jax.grad(total, has_aux=True))
    expected = grad(one, rollouts, some_PGT)
    many = jax.tree.map(jax.device_put, jax.tree.map(np.asarray, one), weight_shardings(one, mesh))
    with jax.set_mesh(mesh):
        found = grad(many, *place_prompts((rollouts, some_PGT), mesh))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=2e-4)
