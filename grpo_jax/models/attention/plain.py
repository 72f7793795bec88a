"""Attention of whole rows in plain XLA, for a CPU, with a backward pass of its own."""

import operator
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from grpo_jax.distribution import EXCLUDED
from grpo_jax.models.attention.formula import KeyValues, Scope, masks, scores_of
from grpo_jax.models.remat import ATTENTION


def plain_rows(
    query_PGHTC: Array,
    own: KeyValues,
    scope: Scope,
    prefix: KeyValues | None,
    window: int | None,
    softcap: float | None,
) -> Array:
    """Attention of whole rows with all scores in memory."""
    P, G, H, T, C = query_PGHTC.shape

    def by_head(a: Array) -> Array:
        return jnp.swapaxes(a, 1, 2)

    own_PGTS, prompt_PGTL = masks(scope, window)
    sources, visible = [(by_head(own.key), by_head(own.value))], [own_PGTS[:, None, :, None]]
    if prefix is not None and prompt_PGTL is not None:
        sources.append((prefix.key, prefix.value))
        visible.append(prompt_PGTL[:, None, :, None])
    query_PKGQTC = by_head(query_PGHTC.reshape(P, G, own.key.shape[2], -1, T, C)) * C**-0.5
    output_PKGQTC = _attention(softcap, query_PKGQTC, sources, visible)
    return by_head(output_PKGQTC).reshape(P, G, H, T, C)


_Sources = list[tuple[Array, Array]]  # keys and values: [P, K, G, S, C] of each response, or [P, K, L, C] of the prompt


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(softcap: float | None, query_PKGQTC: Array, sources: _Sources, visible: list[Array]) -> Array:
    """One softmax over the keys of all sources, and the mean of their values weighted by it.

    The backward pass needs no sum over keys: over all keys, the softmax weights times their gradients sum to the output
    times its gradient (FlashAttention-2, arXiv 2307.08691, section 2.3.2). A query that sees no key is padding. The
    gradient of its output has to be zero, because the backward pass computes 1 for each of its softmax weights.
    """
    return _forward(softcap, query_PKGQTC, sources, visible)[0]


def _forward(softcap: float | None, query_PKGQTC: Array, sources: _Sources, visible: list[Array]) -> tuple:
    scores = [_masked_scores(softcap, mask, query_PKGQTC, key) for (key, _), mask in zip(sources, visible, strict=True)]
    max_PKGQT1 = reduce(jnp.maximum, (jnp.max(a, axis=-1, keepdims=True) for a in scores))
    exps = [jnp.exp(a - max_PKGQT1) for a in scores]
    total_PKGQT1 = reduce(operator.add, (jnp.sum(a, axis=-1, keepdims=True) for a in exps))
    sums = (_weighted_values(a, value) for a, (_, value) in zip(exps, sources, strict=True))
    output_PKGQTC = reduce(operator.add, sums) / total_PKGQT1
    output_PKGQTC = checkpoint_name(output_PKGQTC.astype(query_PKGQTC.dtype), ATTENTION)
    logsumexp_PKGQT1 = checkpoint_name(max_PKGQT1 + jnp.log(total_PKGQT1), ATTENTION)
    return output_PKGQTC, (query_PKGQTC, sources, visible, output_PKGQTC, logsumexp_PKGQT1)


def _backward(softcap: float | None, residuals: tuple, grad_PKGQTC: Array) -> tuple:
    query_PKGQTC, sources, visible, output_PKGQTC, logsumexp_PKGQT1 = residuals
    grad_PKGQTC = grad_PKGQTC.astype(jnp.float32)
    dot_PKGQT1 = jnp.sum(grad_PKGQTC * output_PKGQTC, axis=-1, keepdims=True)
    query_grad_PKGQTC, source_grads = jnp.zeros_like(query_PKGQTC), []
    for (key, value), mask in zip(sources, visible, strict=True):
        scores, scores_vjp = jax.vjp(partial(_masked_scores, softcap, mask), query_PKGQTC, key)
        probs = jnp.exp(scores - logsumexp_PKGQT1)
        probs_grad, value_grad = jax.vjp(_weighted_values, probs, value)[1](grad_PKGQTC)
        more_PKGQTC, key_grad = scores_vjp(probs * (probs_grad - dot_PKGQT1))
        query_grad_PKGQTC += more_PKGQTC
        source_grads.append((key_grad, value_grad))
    return query_grad_PKGQTC, source_grads, [np.zeros(mask.shape, jax.dtypes.float0) for mask in visible]


_attention.defvjp(_forward, _backward)


def _masked_scores(softcap: float | None, mask: Array, query_PKGQTC: Array, key: Array) -> Array:
    axes = "PKGQTC,PKGSC->PKGQTS" if key.ndim == 5 else "PKGQTC,PKSC->PKGQTS"
    return jnp.where(mask, scores_of(axes, query_PKGQTC, key, None, softcap), EXCLUDED)


def _weighted_values(weights_PKGQTS: Array, value: Array) -> Array:
    axes = "PKGQTS,PKGSC->PKGQTC" if value.ndim == 5 else "PKGQTS,PKSC->PKGQTC"
    return jnp.einsum(axes, weights_PKGQTS.astype(value.dtype), value, preferred_element_type=jnp.float32)
