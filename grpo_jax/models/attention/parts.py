"""Attention in parts: one softmax over several sources of keys and values, each computed by itself and then merged.

A part is an output and the logarithm of the sum of its exponentials; the parts' outputs, weighted by these sums, are
the output of one softmax over all sources (FlashAttention-2, arXiv 2307.08691, section 2.3).
"""

import operator
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from grpo_jax.distribution import EXCLUDED
from grpo_jax.models.attention.formula import KeyValues, scores_of


class Part(NamedTuple):
    """Attention to some of the keys, in float32: outputs `[P, G, K, Q, C]`, and `[P, G, K, Q, 1]` the logarithms of
    the sums of the exponentials of their scores.
    """

    output: Array
    logsum: Array


def attend_part(query_PGKQC: Array, source: KeyValues, mask_PG1S: Array, softcap: float | None) -> Part:
    """Attention of one token of each row to the S positions of its own cache, or of its prompt's.

    The queries are already multiplied by C ** -0.5.
    """
    of_row = source.key.ndim == 5
    keys = "PGKSC" if of_row else "PKSC"
    scale, value_scale = (_over_queries(scale, of_row) for scale in (source.key_scale, source.value_scale))
    scores_PGKQS = scores_of(f"PGKQC,{keys}->PGKQS", query_PGKQC, source.key, scale, softcap)
    scores_PGKQS = jnp.where(mask_PG1S[:, :, None], scores_PGKQS, EXCLUDED)
    top_PGKQ1 = jnp.max(scores_PGKQS, axis=-1, keepdims=True)
    exps_PGKQS = jnp.exp(scores_PGKQS - top_PGKQ1)
    total_PGKQ1 = jnp.sum(exps_PGKQS, axis=-1, keepdims=True)
    exps_PGKQS = exps_PGKQS if value_scale is None else exps_PGKQS * value_scale
    weights_PGKQS, value = exps_PGKQS.astype(query_PGKQC.dtype), source.value.astype(query_PGKQC.dtype)
    sum_PGKQC = jnp.einsum(f"PGKQS,{keys}->PGKQC", weights_PGKQS, value, preferred_element_type=jnp.float32)
    return Part(sum_PGKQC / total_PGKQ1, top_PGKQ1 + jnp.log(total_PGKQ1))


def merged(parts: list[Part]) -> Array:
    """The output of one softmax over the keys of all parts."""
    top_PGKQ1 = reduce(jnp.maximum, (part.logsum for part in parts))
    weights = [jnp.exp(part.logsum - top_PGKQ1) for part in parts]
    total_PGKQC = reduce(operator.add, (weight * part.output for weight, part in zip(weights, parts, strict=True)))
    return total_PGKQC / reduce(operator.add, weights)


def _over_queries(scale: Array | None, of_row: bool) -> Array | None:
    """The scale `[P, G, K, S]` or `[P, K, S]` as one of scores."""
    if scale is None:
        return None
    return jnp.expand_dims(scale, 3) if of_row else scale[:, None, :, None]


def by_group(query_PGH1C: Array, K: int) -> Array:
    """The queries of one token as `[P, G, K, Q, C]`, multiplied by C ** -0.5: Q of them share keys and values."""
    P, G, H, _, C = query_PGH1C.shape
    return query_PGH1C.reshape(P, G, K, H // K, C) * C**-0.5
