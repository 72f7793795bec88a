"""A pre-norm decoder: the Llama layout and its Qwen variants, one layer as an NNX module.

One `Layer.__call__` serves all three uses. Rows are always `[P, G, T]`; what differs is how they attend (`mix`), and
where their keys and values go first (`store`): nowhere when teacher forcing, into a cache when decoding.
A weight's output axes come first, as in Hugging Face files; it is cast to the type of the activations where it is used.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from grpo_jax.models.attention import PRODUCT, Memory

FEW_ROWS = 256  # up to here a CPU multiplies faster with the weight on the left


Store = Callable[[Memory], Memory]
Mix = Callable[[Array, Memory], Array]  # queries and their rows' keys and values -> what each head reads


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
    window: int | None = None  # how many positions a token attends to, itself included; None: all before it
    softcap: float | None = None  # attention scores stay within it: softcap * tanh(score / softcap)
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


def rotate(x_PGHTC: Array, cos_PGTC: Array, sin_PGTC: Array) -> Array:
    """Each head turned by its position: channel c is paired with channel c + C/2, as Hugging Face weights expect."""
    left, right = jnp.split(x_PGHTC.astype(jnp.float32), 2, axis=-1)
    cos_PG1TC, sin_PG1TC = cos_PGTC[:, :, None], sin_PGTC[:, :, None]
    turned = jnp.concatenate([left * cos_PG1TC - right * sin_PG1TC, right * cos_PG1TC + left * sin_PG1TC], axis=-1)
    return turned.astype(x_PGHTC.dtype)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x over its root mean square along the last axis, in float32, times `weight`."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    weight = weight.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * scale * weight).astype(x.dtype)


def project(x: Array, weight: Array, inputs: int = 1, platform: str = "", wide: DTypeLike | None = None) -> Array:
    """x times a weight, over the last `inputs` axes of both: `[rows..., outputs...]`, accumulated in `wide`.

    On a CPU, XLA's product of 32 rows reaches 0.6 of its matmul rate with the weight on the right and 0.75 with it on
    the left; the barriers keep it from turning the product back.
    """
    rows, outputs = x.shape[: x.ndim - inputs], weight.shape[: weight.ndim - inputs]
    flat, matrix = x.reshape(-1, math.prod(x.shape[x.ndim - inputs :])), weight.reshape(math.prod(outputs), -1)
    if platform == "cpu" and len(flat) <= FEW_ROWS:
        columns = jax.lax.optimization_barrier(flat.T)
        y = jax.lax.optimization_barrier(jnp.matmul(matrix, columns, preferred_element_type=wide)).T
    elif platform == "cpu" and x.dtype == jnp.float32:
        y = _product(flat, matrix)
    elif wide is not None:
        y = _wide_product(flat, matrix, wide)
    else:
        y = flat @ matrix.T
    return checkpoint_name(y, PRODUCT).reshape(*rows, *outputs)


@jax.custom_vjp
def _product(x: Array, weight: Array) -> Array:
    """x times the transposed weight on a CPU."""
    return x @ weight.T


def _product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, weight), (x, weight)


def _product_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, weight = saved
    slope = jax.lax.optimization_barrier(slope)  # or its transpose is computed element by element, columns first
    outputs, inputs = weight.shape
    if outputs > inputs:  # fewer rows than columns, and the left side laid out in rows: 1.6 times as fast for a head
        turned = jax.lax.optimization_barrier(jax.lax.optimization_barrier(x.T) @ slope)
        return slope @ weight, turned.T
    return slope @ weight, slope.T @ x


_product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide_product(x: Array, weight: Array, wide: DTypeLike) -> Array:
    """x times the transposed weight, in more digits than both have.

    Going back, slopes are rounded to what they are multiplied with: a TPU does so in any case, and a GPU has no product
    of two types, and would widen the weights.
    """
    return jnp.matmul(x, weight.T, preferred_element_type=wide)


def _wide_forward(x: Array, weight: Array, wide: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return _wide_product(x, weight, wide), (x, weight)


def _wide_backward(wide: DTypeLike, saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, weight = saved
    slope = slope.astype(x.dtype)
    return slope @ weight, slope.T @ x


_wide_product.defvjp(_wide_forward, _wide_backward)


def quantize(memory: Memory) -> Memory:
    """Keys and values as int8, each position of each head with a scale of its own."""
    (key, key_scale), (value, value_scale) = map(_quantize, (memory.key, memory.value))
    return Memory(key, value, key_scale, value_scale)


def _quantize(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=-1), 1e-30) / 127
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """A random weight whose outputs have about the variance of its inputs."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * inputs**-0.5)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        D, H, K, C = shape.width, shape.heads, shape.kv_heads, shape.channels
        self.shape, self.platform = shape, platform
        self.query_HCD = matrix(rngs, (H, C, D), D)
        self.key_KCD = matrix(rngs, (K, C, D), D)
        self.value_KCD = matrix(rngs, (K, C, D), D)
        self.out_DHC = matrix(rngs, (D, H, C), H * C)
        if shape.attention_bias:
            self.query_bias_HC = nnx.Param(jnp.zeros((H, C)))
            self.key_bias_KC = nnx.Param(jnp.zeros((K, C)))
            self.value_bias_KC = nnx.Param(jnp.zeros((K, C)))
        if shape.head_norm:
            self.query_norm_C = nnx.Param(jnp.ones((C,)))
            self.key_norm_C = nnx.Param(jnp.ones((C,)))

    def __call__(self, x_PGTD: Array, turns: tuple[Array, Array], mix: Mix, store: Store) -> tuple[Array, Memory]:
        kind = x_PGTD.dtype
        query_PGTHC, key_PGTKC, value_PGTKC = (
            project(x_PGTD, weight[...].astype(kind), platform=self.platform)
            for weight in (self.query_HCD, self.key_KCD, self.value_KCD)
        )
        if self.shape.attention_bias:
            query_PGTHC += self.query_bias_HC[...].astype(kind)[None, None, None]
            key_PGTKC += self.key_bias_KC[...].astype(kind)[None, None, None]
            value_PGTKC += self.value_bias_KC[...].astype(kind)[None, None, None]
        if self.shape.head_norm:
            query_PGTHC = rms_norm(query_PGTHC, self.query_norm_C[...], self.shape.norm_epsilon)
            key_PGTKC = rms_norm(key_PGTKC, self.key_norm_C[...], self.shape.norm_epsilon)
        query_PGHTC, key_PGKTC, value_PGKTC = (jnp.swapaxes(a, 2, 3) for a in (query_PGTHC, key_PGTKC, value_PGTKC))
        query_PGHTC, key_PGKTC = (checkpoint_name(rotate(a, *turns), PRODUCT) for a in (query_PGHTC, key_PGKTC))
        own = store(Memory(key_PGKTC, value_PGKTC))
        mixed_PGTHC = jnp.swapaxes(mix(query_PGHTC, own), 2, 3)
        return project(mixed_PGTHC, self.out_DHC[...].astype(kind), 2, self.platform), own


class FeedForward(nnx.Module):
    """SwiGLU: a gated feed-forward block."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        D, F = shape.width, shape.feedforward
        self.platform = platform
        self.gate_FD = matrix(rngs, (F, D), D)
        self.up_FD = matrix(rngs, (F, D), D)
        self.down_DF = matrix(rngs, (D, F), F)

    def __call__(self, x_PGTD: Array) -> Array:
        kind = x_PGTD.dtype
        gate_PGTF = jax.nn.silu(project(x_PGTD, self.gate_FD[...].astype(kind), platform=self.platform))
        up_PGTF = project(x_PGTD, self.up_FD[...].astype(kind), platform=self.platform)
        return project(gate_PGTF * up_PGTF, self.down_DF[...].astype(kind), platform=self.platform)


class Layer(nnx.Module):
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        self.shape = shape
        self.attention_norm_D = nnx.Param(jnp.ones((shape.width,)))
        self.attention = Attention(shape, rngs, platform)
        self.feedforward_norm_D = nnx.Param(jnp.ones((shape.width,)))
        self.feedforward = FeedForward(shape, rngs, platform)

    def __call__(self, x_PGTD: Array, turns: tuple[Array, Array], mix: Mix, store: Store) -> tuple[Array, Memory]:
        """The rows after this layer, and the keys and values they attended to beyond the prefix."""
        normed_PGTD = rms_norm(x_PGTD, self.attention_norm_D[...], self.shape.norm_epsilon)
        mixed_PGTD, own = self.attention(normed_PGTD, turns, mix, store)
        x_PGTD = x_PGTD + mixed_PGTD
        normed_PGTD = rms_norm(x_PGTD, self.feedforward_norm_D[...], self.shape.norm_epsilon)
        return x_PGTD + self.feedforward(normed_PGTD), own
