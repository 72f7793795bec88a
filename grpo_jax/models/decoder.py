"""A pre-norm decoder: the Llama layout and its Qwen variants, one layer as an NNX module.

One `Layer.__call__` serves all three uses. Rows are always `[P, G, T]`; what differs is the prefix it attends to
first, and where its own keys and values go (`store`): nowhere when teacher forcing, into a cache when decoding.
Weights keep float32 and are cast to the type of the activations where they are used.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers rather than NaN

Store = Callable[[Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and how the frequencies are scaled (Llama 3.1: by wavelength)."""

    theta: float
    kind: str = "default"  # default, linear or llama3
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class Shape:
    """The sizes and switches of a decoder."""

    vocabulary: int
    width: int
    feedforward: int
    layers: int
    heads: int
    kv_heads: int
    channels: int
    rope: Rope
    norm_epsilon: float
    max_positions: int
    tied: bool  # the output head is the embedding
    attention_bias: bool = False  # on queries, keys and values (Qwen2)
    head_norm: bool = False  # RMS norm of each head's queries and keys (Qwen3)


def rotations(rope: Rope, channels: int, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines of each position's angles: `[..., C/2]`, float32."""
    exponent_C = jnp.arange(0, channels, 2, dtype=jnp.float32) / channels
    frequency_C = 1.0 / jnp.power(jnp.float32(rope.theta), exponent_C)
    if rope.kind == "linear":
        frequency_C = frequency_C / rope.factor
    if rope.kind == "llama3":
        frequency_C = _llama3(rope, frequency_C)
    frequency_C = frequency_C.reshape((1,) * positions.ndim + (-1,))
    angles = positions[..., None].astype(jnp.float32) * frequency_C
    return jnp.cos(angles), jnp.sin(angles)


def _llama3(rope: Rope, frequency_C: Array) -> Array:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    turns_C = rope.original_positions * frequency_C / (2 * jnp.pi)
    blend_C = (turns_C - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor)
    blend_C = jnp.clip(blend_C, 0, 1)
    return (1 - blend_C) * frequency_C / rope.factor + blend_C * frequency_C


def rotate(x_PGTHC: Array, cos_PGTC: Array, sin_PGTC: Array) -> Array:
    """Each head turned by its position: channel c is paired with channel c + C/2, as Hugging Face weights expect."""
    left, right = jnp.split(x_PGTHC.astype(jnp.float32), 2, axis=-1)
    cos_PGT1C, sin_PGT1C = cos_PGTC[:, :, :, None, :], sin_PGTC[:, :, :, None, :]
    turned = jnp.concatenate([left * cos_PGT1C - right * sin_PGT1C, right * cos_PGT1C + left * sin_PGT1C], axis=-1)
    return turned.astype(x_PGTHC.dtype)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x over its root mean square along the last axis, in float32, times `weight`."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    weight = weight.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * scale * weight).astype(x.dtype)


def attend(
    query_PGTHC: Array, own: tuple[Array, Array], mask_PGTS: Array, prefix: tuple[Array, Array, Array] | None
) -> Array:
    """Softmax attention over the group's shared prefix, if any, and each response's own keys, as one distribution."""
    P, G, T, H, C = query_PGTHC.shape
    key_PGSKC, value_PGSKC = own
    query_PGTKQC = query_PGTHC.reshape(P, G, T, key_PGSKC.shape[3], -1, C) * C**-0.5
    wide = {"preferred_element_type": jnp.float32}
    scores_PGKQTS = jnp.einsum("PGTKQC,PGSKC->PGKQTS", query_PGTKQC, key_PGSKC, **wide)
    scores_PGKQTS = jnp.where(mask_PGTS[:, :, None, None], scores_PGKQTS, MASKED)
    if prefix is None:
        shares_PGKQTS = jax.nn.softmax(scores_PGKQTS, axis=-1).astype(value_PGSKC.dtype)
        mixed_PGTKQC = jnp.einsum("PGKQTS,PGSKC->PGTKQC", shares_PGKQTS, value_PGSKC)
    else:
        key_PLKC, value_PLKC, valid_PL = prefix
        prefix_PGKQTL = jnp.einsum("PGTKQC,PLKC->PGKQTL", query_PGTKQC, key_PLKC, **wide)
        prefix_PGKQTL = jnp.where(valid_PL[:, None, None, None, None, :], prefix_PGKQTL, MASKED)
        shares = jax.nn.softmax(jnp.concatenate([prefix_PGKQTL, scores_PGKQTS], axis=-1), axis=-1)
        shares_PGKQTL, shares_PGKQTS = jnp.split(shares.astype(value_PGSKC.dtype), [valid_PL.shape[1]], axis=-1)
        mixed_PGTKQC = jnp.einsum("PGKQTL,PLKC->PGTKQC", shares_PGKQTL, value_PLKC)
        mixed_PGTKQC += jnp.einsum("PGKQTS,PGSKC->PGTKQC", shares_PGKQTS, value_PGSKC)
    return mixed_PGTKQC.reshape(P, G, T, H, C)


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """A random weight whose outputs have about the variance of its inputs."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * inputs**-0.5)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        D, H, K, C = shape.width, shape.heads, shape.kv_heads, shape.channels
        self.shape = shape
        self.query_DHC = matrix(rngs, (D, H, C), D)
        self.key_DKC = matrix(rngs, (D, K, C), D)
        self.value_DKC = matrix(rngs, (D, K, C), D)
        self.out_HCD = matrix(rngs, (H, C, D), H * C)
        if shape.attention_bias:
            self.query_bias_HC = nnx.Param(jnp.zeros((H, C)))
            self.key_bias_KC = nnx.Param(jnp.zeros((K, C)))
            self.value_bias_KC = nnx.Param(jnp.zeros((K, C)))
        if shape.head_norm:
            self.query_norm_C = nnx.Param(jnp.ones((C,)))
            self.key_norm_C = nnx.Param(jnp.ones((C,)))

    def __call__(self, x_PGTD: Array, turns: tuple[Array, Array], mask_PGTS: Array, prefix, store: Store):
        kind = x_PGTD.dtype
        query_PGTHC = jnp.einsum("PGTD,DHC->PGTHC", x_PGTD, self.query_DHC[...].astype(kind))
        key_PGTKC = jnp.einsum("PGTD,DKC->PGTKC", x_PGTD, self.key_DKC[...].astype(kind))
        value_PGTKC = jnp.einsum("PGTD,DKC->PGTKC", x_PGTD, self.value_DKC[...].astype(kind))
        if self.shape.attention_bias:
            query_PGTHC += self.query_bias_HC[...].astype(kind)[None, None, None]
            key_PGTKC += self.key_bias_KC[...].astype(kind)[None, None, None]
            value_PGTKC += self.value_bias_KC[...].astype(kind)[None, None, None]
        if self.shape.head_norm:
            query_PGTHC = rms_norm(query_PGTHC, self.query_norm_C[...], self.shape.norm_epsilon)
            key_PGTKC = rms_norm(key_PGTKC, self.key_norm_C[...], self.shape.norm_epsilon)
        own = store(rotate(key_PGTKC, *turns), value_PGTKC)
        mixed_PGTHC = attend(rotate(query_PGTHC, *turns), own, mask_PGTS, prefix)
        return jnp.einsum("PGTHC,HCD->PGTD", mixed_PGTHC, self.out_HCD[...].astype(kind)), own


class FeedForward(nnx.Module):
    """SwiGLU: a gated feed-forward block."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        D, F = shape.width, shape.feedforward
        self.gate_DF = matrix(rngs, (D, F), D)
        self.up_DF = matrix(rngs, (D, F), D)
        self.down_FD = matrix(rngs, (F, D), F)

    def __call__(self, x_PGTD: Array) -> Array:
        kind = x_PGTD.dtype
        gate_PGTF = jax.nn.silu(jnp.einsum("PGTD,DF->PGTF", x_PGTD, self.gate_DF[...].astype(kind)))
        up_PGTF = jnp.einsum("PGTD,DF->PGTF", x_PGTD, self.up_DF[...].astype(kind))
        return jnp.einsum("PGTF,FD->PGTD", gate_PGTF * up_PGTF, self.down_FD[...].astype(kind))


class Layer(nnx.Module):
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.shape = shape
        self.attention_norm_D = nnx.Param(jnp.ones((shape.width,)))
        self.attention = Attention(shape, rngs)
        self.feedforward_norm_D = nnx.Param(jnp.ones((shape.width,)))
        self.feedforward = FeedForward(shape, rngs)

    def __call__(self, x_PGTD: Array, turns: tuple[Array, Array], mask_PGTS: Array, prefix, store: Store):
        """The rows after this layer, and the keys and values they attended to beyond the prefix."""
        normed_PGTD = rms_norm(x_PGTD, self.attention_norm_D[...], self.shape.norm_epsilon)
        mixed_PGTD, own = self.attention(normed_PGTD, turns, mask_PGTS, prefix, store)
        x_PGTD = x_PGTD + mixed_PGTD
        normed_PGTD = rms_norm(x_PGTD, self.feedforward_norm_D[...], self.shape.norm_epsilon)
        return x_PGTD + self.feedforward(normed_PGTD), own
