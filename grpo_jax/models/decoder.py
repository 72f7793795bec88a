"""A decoder: the Llama layout and what other families change in it. Attention and feed-forward blocks as NNX modules.

A weight's output axes come first, as in Hugging Face files. `project` casts it to the dtype of the activations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from grpo_jax.models.adapted import Adapted, adapted_product
from grpo_jax.models.attention import KeyValues
from grpo_jax.models.remat import PRODUCT
from grpo_jax.models.rope import Rope, rotate

FEW_VECTORS = 256  # up to so many, a CPU multiplies faster with the weight on the left

# queries, and the new keys and values of their row -> the output of each head, and what the row has then
Attend = Callable[[Array, KeyValues], tuple[Array, KeyValues]]


@dataclass(frozen=True)
class Span:
    """How the layers of one kind attend: how far back, and with which rotary positions."""

    window: int | None = None  # how many positions a token attends to, itself included; None: all before it
    rope: Rope | None = None  # None: queries and keys do not rotate


@dataclass(frozen=True)
class Experts:
    """The sizes of a mixture of experts, which stands in place of each feed-forward block."""

    count: int
    chosen: int  # experts of each token
    feedforward: int  # units of each expert
    normalized: bool  # the weights of a token's experts are divided by their sum
    shared: int | None = None  # units of the expert that every token has beside them, with a gate; None: there is none


@dataclass(frozen=True)
class Shape:
    """The sizes and switches of a decoder."""

    vocabulary: int
    width: int
    feedforward: int  # units that each token is computed with
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
    pattern: tuple[Span, ...] = ()  # of each layer, where they differ; empty: all have `window` and `rope`
    norms: Literal["before", "after", "both"] = "before"  # of a block: its input, its output, or both
    norm_offset: float = 0.0  # added to the weights of norms: 1 where these are stored as what is added to 1 (Gemma)
    activation: Literal["silu", "gelu"] = "silu"  # of the gate; gelu is its tanh approximation
    query_scale: float | None = None  # scores are multiplied by it; None: C ** -0.5
    embed_scale: float | None = None  # embeddings are multiplied by it
    residual_scale: float | None = None  # what a block adds is multiplied by it (Granite)
    logit_scale: float | None = None  # logits are multiplied by it (Granite)
    logit_softcap: float | None = None  # logits become logit_softcap * tanh(logit / logit_softcap)
    out_bias: bool = False  # on the output of attention
    mlp_bias: bool = False  # on all three products of the feed-forward block
    projection_norm: bool = False  # RMS norm over all heads' queries, and over all their keys (OLMo-2)
    experts: Experts | None = None  # None: every layer has one feed-forward block

    @property
    def spans(self) -> tuple[Span, ...]:
        """How each layer attends."""
        return self.pattern or (Span(self.window, self.rope),) * self.layers


@jax.named_scope("norm")
def rms_norm(x: Array, weight: Array, epsilon: float, offset: float = 0.0) -> Array:
    """x divided by its root mean square along the axes of `weight`, in float32, times weight + offset."""
    x_float32 = x.astype(jnp.float32)
    axes = tuple(range(-weight.ndim, 0))
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x_float32), axis=axes, keepdims=True) + epsilon)
    weight = weight.astype(jnp.float32).reshape((1,) * (x.ndim - weight.ndim) + weight.shape)
    weight = weight if offset == 0 else weight + offset
    return (x_float32 * scale * weight).astype(x.dtype)


@jax.named_scope("products")
def project(
    x: Array, weight: Array | Adapted, inputs: int = 1, platform: str = "", result_dtype: DTypeLike | None = None
) -> Array:
    """x times a weight, summed over the last `inputs` axes of both; the result has x's leading axes, then the outputs.

    The weight is cast to the dtype of x. The result has `result_dtype`, or that of x if it is None.
    """
    leading, outputs = x.shape[: x.ndim - inputs], weight.shape[: weight.ndim - inputs]
    vectors, multiply = x.reshape(-1, math.prod(x.shape[x.ndim - inputs :])), partial(_product, platform, result_dtype)
    if isinstance(weight, Adapted):
        y = adapted_product(multiply, vectors, weight)
    else:
        y = multiply(vectors, weight.astype(x.dtype).reshape(math.prod(outputs), -1))
    return checkpoint_name(y, PRODUCT).reshape(*leading, *outputs)


def _product(platform: str, result_dtype: DTypeLike | None, vectors: Array, matrix: Array) -> Array:
    """Vectors times a transposed matrix.

    On a CPU, XLA's product of 32 vectors reaches 0.6 of its matmul rate with the weight on the right and 0.75 with it
    on the left; the barriers keep XLA from swapping the two again.
    """
    if platform == "cpu" and len(vectors) <= FEW_VECTORS:
        columns = jax.lax.optimization_barrier(vectors.T)
        return jax.lax.optimization_barrier(jnp.matmul(matrix, columns, preferred_element_type=result_dtype)).T
    if platform == "cpu" and vectors.dtype == jnp.float32:
        return _cpu_product(vectors, matrix)
    if result_dtype is not None:
        return _mixed_product(vectors, matrix, result_dtype)
    return vectors @ matrix.T


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


def dtype_of_weights(weights: DTypeLike) -> np.dtype:
    """The type that weights are stored in. Refuses one in which small updates would be lost."""
    if jnp.dtype(weights) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"model.weights is float32 or bfloat16, which is rounded at random; got {weights}.")
    return jnp.dtype(weights)


def cast_matrix(dtype: DTypeLike, path: tuple, a: Array | Adapted) -> Array:
    """A parameter of one layer, or of none, in this dtype if it is a matrix. Vectors and norms stay as they are."""
    normalises = "norm_" in str(path[-1])  # in float32, and those of whole projections have two axes
    return a.astype(dtype) if isinstance(a, Adapted) or (a.ndim > 1 and not normalises) else a


@jax.custom_vjp
def embeddings(embed_VD: Array, tokens: Array) -> Array:
    """The embeddings of tokens. The gradient of each is the sum over all places where its token stands, in float32."""
    return embed_VD[tokens]


def _embeddings_forward(embed_VD: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return embed_VD[tokens], (embed_VD, tokens)


def _embeddings_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, np.ndarray]:
    embed_VD, tokens = residuals
    sums_VD = jnp.zeros(embed_VD.shape, jnp.float32).at[tokens].add(grad.astype(jnp.float32))
    return sums_VD.astype(embed_VD.dtype), np.zeros(tokens.shape, jax.dtypes.float0)


embeddings.defvjp(_embeddings_forward, _embeddings_backward)


def quantize(own: KeyValues) -> KeyValues:
    """The keys and values as int8, with a scale for each position of each head."""
    (key, key_scale), (value, value_scale) = map(_quantize, (own.key, own.value))
    return KeyValues(key, value, key_scale, value_scale, own.experts)


def _quantize(x: Array) -> tuple[Array, Array]:
    x_float32 = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x_float32).max(axis=-1), 1e-30) / 127
    return jnp.round(x_float32 / scale[..., None]).astype(jnp.int8), scale


def random_weight(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """A random weight whose outputs have about the variance of its inputs."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * inputs**-0.5)


def unit_norm(shape: Shape, *sizes: int) -> nnx.Param:
    """The weights of a norm that multiplies by one."""
    return nnx.Param(jnp.full(sizes, 1.0 - shape.norm_offset))


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
        if shape.out_bias:
            self.out_bias_D = nnx.Param(jnp.zeros((D,)))
        if shape.head_norm:
            self.query_norm_C = unit_norm(shape, C)
            self.key_norm_C = unit_norm(shape, C)
        if shape.projection_norm:
            self.query_norm_HC = unit_norm(shape, H, C)
            self.key_norm_KC = unit_norm(shape, K, C)

    def __call__(self, x_PGTD: Array, cos_sin: tuple[Array, Array], attend: Attend) -> tuple[Array, KeyValues]:
        """The output of attention, and the keys and values that `attend` returned."""
        dtype = x_PGTD.dtype
        query_PGTHC, key_PGTKC, value_PGTKC = (
            project(x_PGTD, weight[...], platform=self.platform)
            for weight in (self.query_HCD, self.key_KCD, self.value_KCD)
        )
        if self.shape.attention_bias:
            query_PGTHC += self.query_bias_HC[...].astype(dtype)[None, None, None]
            key_PGTKC += self.key_bias_KC[...].astype(dtype)[None, None, None]
            value_PGTKC += self.value_bias_KC[...].astype(dtype)[None, None, None]
        query_PGTHC, key_PGTKC = self._normalized(query_PGTHC, key_PGTKC)
        query_PGHTC, key_PGKTC, value_PGKTC = (jnp.swapaxes(a, 2, 3) for a in (query_PGTHC, key_PGTKC, value_PGTKC))
        turn = partial(rotate, interleaved=self.shape.rope.interleaved, platform=self.platform)
        query_PGHTC, key_PGKTC = (turn(a, *cos_sin) for a in (query_PGHTC, key_PGKTC))
        if self.platform != "tpu":  # where they take a sixth of what products keep, and 2 % of the time to turn again
            query_PGHTC, key_PGKTC = (checkpoint_name(a, PRODUCT) for a in (query_PGHTC, key_PGKTC))
        if self.shape.query_scale is not None:  # attention itself multiplies by C ** -0.5
            factor = self.shape.query_scale * math.sqrt(self.shape.channels)
            query_PGHTC = (query_PGHTC.astype(jnp.float32) * factor).astype(dtype)  # the factor is not rounded
        with jax.named_scope("attention"):
            output_PGHTC, own = attend(query_PGHTC, KeyValues(key_PGKTC, value_PGKTC))
        output_PGTHC = jnp.swapaxes(output_PGHTC, 2, 3)
        output_PGTD = project(output_PGTHC, self.out_DHC[...], 2, self.platform)
        if self.shape.out_bias:
            output_PGTD += self.out_bias_D[...].astype(dtype)[None, None, None]
        return output_PGTD, own

    def _normalized(self, query_PGTHC: Array, key_PGTKC: Array) -> tuple[Array, Array]:
        """Queries and keys after their norms, if there are any."""
        norm = partial(rms_norm, epsilon=self.shape.norm_epsilon, offset=self.shape.norm_offset)
        if self.shape.head_norm:
            return norm(query_PGTHC, self.query_norm_C[...]), norm(key_PGTKC, self.key_norm_C[...])
        if self.shape.projection_norm:
            return norm(query_PGTHC, self.query_norm_HC[...]), norm(key_PGTKC, self.key_norm_KC[...])
        return query_PGTHC, key_PGTKC


class FeedForward(nnx.Module):
    """A gated feed-forward block: SwiGLU, or GeGLU."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        D, F = shape.width, shape.feedforward
        self.shape, self.platform = shape, platform
        self.gate_FD = random_weight(rngs, (F, D), D)
        self.up_FD = random_weight(rngs, (F, D), D)
        self.down_DF = random_weight(rngs, (D, F), F)
        if shape.mlp_bias:
            self.gate_bias_F = nnx.Param(jnp.zeros((F,)))
            self.up_bias_F = nnx.Param(jnp.zeros((F,)))
            self.down_bias_D = nnx.Param(jnp.zeros((D,)))

    def __call__(self, x_PGTD: Array) -> Array:
        """The output of the block, without the residual."""
        dtype = x_PGTD.dtype
        gate_PGTF = project(x_PGTD, self.gate_FD[...], platform=self.platform)
        up_PGTF = project(x_PGTD, self.up_FD[...], platform=self.platform)
        if self.shape.mlp_bias:
            gate_PGTF += self.gate_bias_F[...].astype(dtype)[None, None, None]
            up_PGTF += self.up_bias_F[...].astype(dtype)[None, None, None]
        gate_PGTF = jax.nn.silu(gate_PGTF) if self.shape.activation == "silu" else jax.nn.gelu(gate_PGTF)
        output_PGTD = project(gate_PGTF * up_PGTF, self.down_DF[...], platform=self.platform)
        if self.shape.mlp_bias:
            output_PGTD += self.down_bias_D[...].astype(dtype)[None, None, None]
        return output_PGTD
