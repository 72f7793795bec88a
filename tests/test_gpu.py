"""What only an NVIDIA GPU can show: JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_gpu.py. Skipped elsewhere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import SHAPES, decoder_policy
from grpo_jax.models.attention import KeyValues, Scope, attend, cudnn_rows, masks
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Prompts

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")

P, G, H, K, T, L, C = 2, 3, 8, 4, 201, 67, 64
EXACT = partial(jax.default_matmul_precision, "highest")  # a GPU rounds factors to TF32 if it may
SHAPE = SHAPES["smollm2-135m"]


def close(found, expected, error: float) -> None:
    """Arrays differ by a share of their length, as rounding to bfloat16 makes them."""
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) < error * np.linalg.norm(b)


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 6)
    query_PGHTC = jax.random.normal(keys[0], (P, G, H, T, C), jnp.bfloat16)
    own = KeyValues(*(jax.random.normal(key, (P, G, K, T, C), jnp.bfloat16) for key in keys[1:3]))
    prefix = KeyValues(*(jax.random.normal(key, (P, K, L, C), jnp.bfloat16) for key in keys[3:5]))
    grad_PGHTC = jax.random.normal(keys[5], (P, G, H, T, C), jnp.bfloat16)
    return query_PGHTC, own, prefix, grad_PGHTC


def scope_of(with_prompt: bool) -> Scope:
    start_PGT, valid_PGT = np.zeros((P, G, T), np.int32), np.ones((P, G, T), bool)
    start_PGT[:, 0, 90:], start_PGT[0, 1, 77:] = 90, 77
    valid_PGT[1, 1, 120:] = False
    prompt_PL = np.arange(L)[None] >= np.array([[5], [11]])
    return jax.tree.map(jnp.asarray, Scope(start_PGT, valid_PGT, prompt_PL if with_prompt else None))


@pytest.mark.parametrize(("with_prompt", "window"), [(True, None), (False, None), (True, 64)])
def test_cudnn_gives_the_values_and_gradients_of_the_formula(arrays, with_prompt, window):
    query_PGHTC, own, prefix, grad_PGHTC = arrays
    scope = scope_of(with_prompt)
    grad_PGHTC = grad_PGHTC * scope.valid_PGT[:, :, None, :, None]

    def by_kernel(query_PGHTC, own, prefix):
        return cudnn_rows(query_PGHTC, own, scope, prefix if with_prompt else None, window, None)

    def by_formula(query_PGHTC, own, prefix):
        own_PGTS, prompt_PGTL = masks(scope, window)
        return attend(query_PGHTC, own, own_PGTS, prefix if with_prompt else None, prompt_PGTL)

    def measure(attention, *inputs):
        output_PGHTC, pull = jax.vjp(attention, *inputs)
        return output_PGHTC * scope.valid_PGT[:, :, None, :, None], pull(grad_PGHTC.astype(output_PGHTC.dtype))[:2]

    found = jax.jit(partial(measure, by_kernel))
    assert "__cudnn$fmha" in found.lower(query_PGHTC, own, prefix).compile().as_text()
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (query_PGHTC, own, prefix))
    with EXACT():
        expected = jax.jit(partial(measure, by_formula))(*wide)
    close(found(query_PGHTC, own, prefix), expected, 1e-2)


@pytest.fixture(scope="module")
def params():
    return decoder_policy(SHAPE).init(jax.random.key(0))


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    tokens_PL = np.random.default_rng(0).integers(3, SHAPE.vocabulary, (P, 48)).astype(np.int32)
    return Prompts(tokens_PL, np.arange(48)[None] >= np.array([[0], [19]]))


@pytest.mark.parametrize(("activations", "error"), [("float32", 5e-3), ("bfloat16", 3e-2)])
def test_sampler_and_trainer_agree_on_log_probs(params, prompts, activations, error):
    policy = decoder_policy(SHAPE, activations)
    rollouts = Sampler((0, 2), responses=G, max_tokens=64)(policy, params, prompts, jax.random.key(1))
    logprobs_PGT, _ = jax.jit(token_logprobs, static_argnums=0)(policy, params, rollouts)
    close(rollouts.logprobs_PGT, logprobs_PGT, error)


def test_a_gradient_is_that_of_a_cpu(params, prompts):
    """In bfloat16 by cuDNN, and in float32 by the formula."""
    rollouts = Sampler((0, 2), responses=G, max_tokens=64)(decoder_policy(SHAPE), params, prompts, jax.random.key(1))

    def gradient(activations, platform, *inputs):
        policy = decoder_policy(SHAPE, activations, platform=platform)

        def total(params, rollouts):
            logprobs_PGT, entropy_PGT = token_logprobs(policy, params, rollouts)
            return jnp.sum(jnp.where(rollouts.action_PGT, logprobs_PGT + entropy_PGT, 0.0))

        return jax.jit(jax.grad(total))(*inputs)

    expected = gradient("float32", "cpu", *jax.device_put((params, rollouts), jax.devices("cpu")[0]))
    with EXACT():
        close(gradient("float32", "gpu", params, rollouts), expected, 1e-4)
    close(gradient("bfloat16", "gpu", params, rollouts), expected, 0.1)
