"""A pre-norm decoder: the Llama layout and its Qwen variants, one layer as an NNX module.

One `Layer.__call__` serves all three uses: reading prompts, teacher forcing and decoding. Rows are always `[P, G, T]`.
The caller says how they attend (`attend`), and what happens to their new keys and values before that (`store`):
decoding writes them into a cache, the other two leave them as they are.
A weight's output axes come first, as in Hugging Face files. It is cast to the activations' dtype where it is used.
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

from grpo_jax.models.attention import KeyValues
from grpo_jax.models.remat import PRODUCT

FEW_VECTORS = 256  # up to so many, a CPU multiplies faster with the weight on the left

Store = Callable[[KeyValues], KeyValues]  # a row's new keys and values -> all of the row's
Attend = Callable[[Array, KeyValues], Array]  # queries, and their row's keys and values -> the output of each head


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and how the frequencies are scaled (Llama 3.1: by wavelength)."""

    theta: float
    scaling: str = "default"  # default (none), linear or llama3
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
    softcap: float | None = None  # attention scores become softcap * tanh(score / softcap)
    attention_bias: bool = False  # on queries, keys and values (Qwen2)
    head_norm: bool = False  # RMS norm of each head's queries and keys (Qwen3)


def rotations(rope: Rope, channels: int, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines of each position's angles: `[..., C/2]`, float32."""
    exponent_C = jnp.arange(0, channels, 2, dtype=jnp.float32) / channels
    frequency_C = 1.0 / jnp.power(jnp.float32(rope.theta), exponent_C)
    if rope.scaling == "linear":
        frequency_C = frequency_C / rope.factor
    if rope.scaling == "llama3":
        frequency_C = _llama3(rope, frequency_C)
    frequency_C = frequency_C.reshape((1,) * positions.ndim + (-1,))
    angles = positions[..., None].astype(jnp.float32) * frequency_C
    return jnp.cos(angles), jnp.sin(angles)


def _llama3(rope: Rope, frequency_C: Array) -> Array:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    cycles_C = rope.original_positions * frequency_C / (2 * jnp.pi)
    blend_C = (cycles_C - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor)
    blend_C = jnp.clip(blend_C, 0, 1)
    return (1 - blend_C) * frequency_C / rope.factor + blend_C * frequency_C


def rotate(x_PGHTC: Array, cos_PGTC: Array, sin_PGTC: Array) -> Array:
    """Each head rotated by its position: channel c is paired with channel c + C/2, as Hugging Face weights expect."""
    left, right = jnp.split(x_PGHTC.astype(jnp.float32), 2, axis=-1)
    cos_PG1TC, sin_PG1TC = cos_PGTC[:, :, None], sin_PGTC[:, :, None]
    rotated = jnp.concatenate([left * cos_PG1TC - right * sin_PG1TC, right * cos_PG1TC + left * sin_PG1TC], axis=-1)
    return rotated.astype(x_PGHTC.dtype)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x divided by its root mean square along the last axis, in float32, times `weight`."""
    x_float32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x_float32), axis=-1, keepdims=True) + epsilon)
    weight = weight.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (x_float32 * scale * weight).astype(x.dtype)


def project(
    x: Array, weight: Array, inputs: int = 1, platform: str = "", result_dtype: DTypeLike | None = None
) -> Array:
    """x times a weight, summed over the last `inputs` axes of both; the result has x's leading axes, then the outputs.

    The result has `result_dtype`, or that of the factors if it is None. On a CPU, XLA's product of 32 vectors reaches
    0.6 of its matmul rate with the weight on the right and 0.75 with it on the left; the barriers keep XLA from
    swapping the two again.
    """
    leading, outputs = x.shape[: x.ndim - inputs], weight.shape[: weight.ndim - inputs]
    vectors, matrix = x.reshape(-1, math.prod(x.shape[x.ndim - inputs :])), weight.reshape(math.prod(outputs), -1)
    if platform == "cpu" and len(vectors) <= FEW_VECTORS:
        columns = jax.lax.optimization_barrier(vectors.T)
        y = jax.lax.optimization_barrier(jnp.matmul(matrix, columns, preferred_element_type=result_dtype)).T
    elif platform == "cpu" and x.dtype == jnp.float32:
        y = _cpu_product(vectors, matrix)
    elif result_dtype is not None:
        y = _mixed_product(vectors, matrix, result_dtype)
    else:
        y = vectors @ matrix.T
    return checkpoint_name(y, PRODUCT).reshape(*leading, *outputs)


@jax.custom_vjp
def _cpu_product(x: Array, weight: Array) -> Array:
    """x times the transposed weight, with a backward pass that is fast on a CPU."""
    return x @ weight.T


def _cpu_product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _cpu_product(x, weight), (x, weight)


def _cpu_product_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = residuals
    grad = jax.lax.optimization_barrier(grad)  # without it, XLA transposes element by element, in column order
    outputs, inputs = weight.shape
    if outputs > inputs:  # then this order, with the left factor in row-major layout, is 1.6 times as fast for a head
        weight_grad = jax.lax.optimization_barrier(jax.lax.optimization_barrier(x.T) @ grad)
        return grad @ weight, weight_grad.T
    return grad @ weight, grad.T @ x


_cpu_product.defvjp(_cpu_product_forward, _cpu_product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mixed_product(x: Array, weight: Array, result_dtype: DTypeLike) -> Array:
    """x times the transposed weight, in a wider dtype than theirs.

    The backward pass rounds the gradient to the dtype of the factors. A TPU does so in any case; a GPU has no product
    of two dtypes and would widen the weights.
    """
    return jnp.matmul(x, weight.T, preferred_element_type=result_dtype)


def _mixed_forward(x: Array, weight: Array, result_dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return _mixed_product(x, weight, result_dtype), (x, weight)


def _mixed_backward(result_dtype: DTypeLike, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = residuals
    grad = grad.astype(x.dtype)
    return grad @ weight, grad.T @ x


_mixed_product.defvjp(_mixed_forward, _mixed_backward)


def quantize(own: KeyValues) -> KeyValues:
    """The keys and values as int8, with a scale for each position of each head."""
    (key, key_scale), (value, value_scale) = map(_quantize, (own.key, own.value))
    return KeyValues(key, value, key_scale, value_scale)


def _quantize(x: Array) -> tuple[Array, Array]:
    x_float32 = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x_float32).max(axis=-1), 1e-30) / 127
    return jnp.round(x_float32 / scale[..., None]).astype(jnp.int8), scale


def random_weight(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """A random weight whose outputs have about the variance of its inputs."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * inputs**-0.5)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        D, H, K, C = shape.width, shape.heads, shape.kv_heads, shape.channels
        self.shape, self.platform = shape, platform
        self.query_HCD = random_weight(rngs, (H, C, D), D)
        self.key_KCD = random_weight(rngs, (K, C, D), D)
        self.value_KCD = random_weight(rngs, (K, C, D), D)
        self.out_DHC = random_weight(rngs, (D, H, C), H * C)
        if shape.attention_bias:
            self.query_bias_HC = nnx.Param(jnp.zeros((H, C)))
            self.key_bias_KC = nnx.Param(jnp.zeros((K, C)))
            self.value_bias_KC = nnx.Param(jnp.zeros((K, C)))
        if shape.head_norm:
            self.query_norm_C = nnx.Param(jnp.ones((C,)))
            self.key_norm_C = nnx.Param(jnp.ones((C,)))

    def __call__(
        self, x_PGTD: Array, cos_sin: tuple[Array, Array], attend: Attend, store: Store
    ) -> tuple[Array, KeyValues]:
        """The output of attention, and the keys and values that `store` returned."""
        dtype = x_PGTD.dtype
        query_PGTHC, key_PGTKC, value_PGTKC = (
            project(x_PGTD, weight[...].astype(dtype), platform=self.platform)
            for weight in (self.query_HCD, self.key_KCD, self.value_KCD)
        )
        if self.shape.attention_bias:
            query_PGTHC += self.query_bias_HC[...].astype(dtype)[None, None, None]
            key_PGTKC += self.key_bias_KC[...].astype(dtype)[None, None, None]
            value_PGTKC += self.value_bias_KC[...].astype(dtype)[None, None, None]
        if self.shape.head_norm:
            query_PGTHC = rms_norm(query_PGTHC, self.query_norm_C[...], self.shape.norm_epsilon)
            key_PGTKC = rms_norm(key_PGTKC, self.key_norm_C[...], self.shape.norm_epsilon)
        query_PGHTC, key_PGKTC, value_PGKTC = (jnp.swapaxes(a, 2, 3) for a in (query_PGTHC, key_PGTKC, value_PGTKC))
        query_PGHTC, key_PGKTC = (checkpoint_name(rotate(a, *cos_sin), PRODUCT) for a in (query_PGHTC, key_PGKTC))
        own = store(KeyValues(key_PGKTC, value_PGKTC))
        output_PGTHC = jnp.swapaxes(attend(query_PGHTC, own), 2, 3)
        return project(output_PGTHC, self.out_DHC[...].astype(dtype), 2, self.platform), own


class FeedForward(nnx.Module):
    """SwiGLU: a gated feed-forward block."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        D, F = shape.width, shape.feedforward
        self.platform = platform
        self.gate_FD = random_weight(rngs, (F, D), D)
        self.up_FD = random_weight(rngs, (F, D), D)
        self.down_DF = random_weight(rngs, (D, F), F)

    def __call__(self, x_PGTD: Array) -> Array:
        """The output of the block, without the residual."""
        dtype = x_PGTD.dtype
        gate_PGTF = jax.nn.silu(project(x_PGTD, self.gate_FD[...].astype(dtype), platform=self.platform))
        up_PGTF = project(x_PGTD, self.up_FD[...].astype(dtype), platform=self.platform)
        return project(gate_PGTF * up_PGTF, self.down_DF[...].astype(dtype), platform=self.platform)


class Layer(nnx.Module):
    """Attention and feed-forward; each reads its input through a norm and adds its output to it."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        self.shape = shape
        self.attention_norm_D = nnx.Param(jnp.ones((shape.width,)))
        self.attention = Attention(shape, rngs, platform)
        self.feedforward_norm_D = nnx.Param(jnp.ones((shape.width,)))
        self.feedforward = FeedForward(shape, rngs, platform)

    def __call__(
        self, x_PGTD: Array, cos_sin: tuple[Array, Array], attend: Attend, store: Store
    ) -> tuple[Array, KeyValues]:
        """The rows after this layer, and their keys and values as `store` returned them."""
        normed_PGTD = rms_norm(x_PGTD, self.attention_norm_D[...], self.shape.norm_epsilon)
        output_PGTD, own = self.attention(normed_PGTD, cos_sin, attend, store)
        x_PGTD = x_PGTD + output_PGTD
        normed_PGTD = rms_norm(x_PGTD, self.feedforward_norm_D[...], self.shape.norm_epsilon)
        return x_PGTD + self.feedforward(normed_PGTD), own
