"""The kernels of TPU and GPU against attention written out, and all of them against a float64 loop."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import decoder_policy
from grpo_jax.models.attention import KeyValues, Scope, attend, cudnn_rows, kernel, masks, plain_rows, splash_rows
from grpo_jax.models.remat import Remat

P, G, H, K, T, L, C = 2, 2, 4, 2, 150, 37, 32
KERNELS = {
    "plain": plain_rows,
    "splash": partial(splash_rows, interpret=True),  # the TPU's kernel, run by an interpreter
    "cudnn": partial(cudnn_rows, implementation="xla"),  # what cuDNN is given, computed by XLA
}


def inputs():
    keys = jax.random.split(jax.random.key(0), 6)
    query_PGHTC = jax.random.normal(keys[0], (P, G, H, T, C))
    own = KeyValues(*(jax.random.normal(key, (P, G, K, T, C)) for key in keys[1:3]))
    prefix = KeyValues(*(jax.random.normal(key, (P, K, L, C)) for key in keys[3:5]))
    start_PGT = np.zeros((P, G, T), np.int32)
    start_PGT[:, 0, 40:], start_PGT[:, 0, 90:], start_PGT[0, 1, 77:] = 40, 90, 77
    valid_PGT = np.ones((P, G, T), bool)
    valid_PGT[1, 1, 120:] = False
    prompt_PL = np.arange(L)[None] >= np.array([[5], [11]])
    return query_PGHTC, own, prefix, start_PGT, valid_PGT, prompt_PL


def by_hand(query_PGHTC, own, scope: Scope, prefix, window, softcap) -> np.ndarray:
    """One query at a time, in float64."""
    query_PGHTC, own, scope, prefix = jax.tree.map(np.asarray, (query_PGHTC, own, scope, prefix))
    output_PGHTC = np.zeros(query_PGHTC.shape)
    for p, g, h, t in np.ndindex(P, G, H, T):
        start = int(scope.start_PGT[p, g, t])
        seen = [(own, (p, g), s, t - s) for s in range(start, t + 1) if scope.valid_PGT[p, g, s]]
        if prefix is not None:
            seen += [(prefix, (p,), s, t - start + L - s) for s in range(L) if scope.prompt_valid_PL[p, s]]
        seen = [(source, at, s) for source, at, s, distance in seen if window is None or distance < window]
        if not seen:
            continue
        key = np.stack([np.asarray(source.key[at][h // (H // K), s], float) for source, at, s in seen])
        value = np.stack([np.asarray(source.value[at][h // (H // K), s], float) for source, at, s in seen])
        scores = key @ np.asarray(query_PGHTC[p, g, h, t], float) * C**-0.5
        scores = scores if softcap is None else np.tanh(scores / softcap) * softcap
        weights = np.exp(scores - scores.max())
        output_PGHTC[p, g, h, t] = weights @ value / weights.sum()
    return output_PGHTC


def formula(query_PGHTC, own, scope: Scope, prefix, window, softcap) -> jax.Array:
    """What decoding computes; its gradient is JAX's own."""
    own_PGTS, prompt_PGTL = masks(scope, window)
    return attend(query_PGHTC, own, own_PGTS, prefix, prompt_PGTL, softcap)


@pytest.fixture(scope="module")
def arrays():
    return jax.tree.map(jnp.asarray, inputs())


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (30, None), (64, 5.0)])
@pytest.mark.slow
def test_plain_attention_equals_a_float64_loop(arrays, window, softcap):
    query_PGHTC, own, prefix, *scope = arrays
    output_PGHTC = plain_rows(query_PGHTC, own, Scope(*scope), prefix, window, softcap)
    valid_PG1T1 = scope[1][:, :, None, :, None]
    expected_PGHTC = by_hand(query_PGHTC, own, Scope(*scope), prefix, window, softcap)
    np.testing.assert_allclose(output_PGHTC * valid_PG1T1, expected_PGHTC * valid_PG1T1, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (64, 5.0)])
@pytest.mark.slow
def test_kernels_have_the_values_and_gradients_of_the_formula(arrays, name, with_prompt, window, softcap):
    query_PGHTC, own, prefix, start_PGT, valid_PGT, prompt_PL = arrays
    scope = Scope(start_PGT, valid_PGT, prompt_PL if with_prompt else None)
    weights_PGHTC = np.cos(np.arange(query_PGHTC.size)).reshape(query_PGHTC.shape) * valid_PGT[:, :, None, :, None]

    def total(attention, query_PGHTC, own, prefix):
        output_PGHTC = attention(query_PGHTC, own, scope, prefix if with_prompt else None, window, softcap)
        return jnp.sum(weights_PGHTC * output_PGHTC), output_PGHTC * valid_PGT[:, :, None, :, None]

    def measure(attention):
        return jax.jit(jax.grad(partial(total, attention), (0, 1, 2), has_aux=True))(query_PGHTC, own, prefix)

    for expected, found in zip(*map(jax.tree.leaves, (measure(formula), measure(KERNELS[name]))), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_each_platform_gets_its_kernel():
    assert kernel("tpu", jnp.bfloat16) is splash_rows
    assert kernel("gpu", jnp.bfloat16) is cudnn_rows
    assert kernel("gpu", jnp.float32) is plain_rows
    assert kernel("cpu", jnp.float32) is plain_rows


def test_an_unknown_remat_policy_is_refused_with_the_choices():
    from grpo_jax.models import SHAPES

    with pytest.raises(ValueError, match=f"choose one of {', '.join(get_args(Remat))}"):
        decoder_policy(SHAPES["smollm2-135m"], remat="some")
    with pytest.raises(ValueError, match="on a CPU choose full"):
        decoder_policy(SHAPES["smollm2-135m"], remat="offload", platform="cpu")
