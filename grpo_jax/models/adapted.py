"""A weight that is not stored as one array: a frozen base, whole or as int8, and what a low-rank adapter adds to it.

LoRA (Hu et al. 2021, arXiv:2106.09685, equation 3): y = W x + (alpha / rank) B A x, where W is frozen. Here the two
are summed in float32 and cast once, W' = cast(W + factor B A), and y = W' x. So the learner computes with the very
weights that sampling uses, however they are rounded. The gradients are those of the low-rank form, which needs no
gradient of W: with g the gradient of y, that of B is factor g (A x)^T and that of A is factor (B^T g) x^T.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Product = Callable[[Array, Array], Array]  # vectors and a matrix -> the vectors times the transposed matrix


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """A weight `[..., outputs, inputs]` of which the base is frozen. Leading axes are layers and experts.

    `base` is an array, or int8 with a `scale` for each output. `a` has the shape `[..., A, inputs]` and `b`
    `[..., outputs, A]`, with A the rank; None: no adapter. `factor` is alpha / rank.
    """

    base: Array
    scale: Array | None
    a: Array | None
    b: Array | None
    inputs: int = field(metadata={"static": True})  # axes that are summed over
    factor: float = field(default=1.0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole weight."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return self.base.ndim

    def __getitem__(self, index: Any) -> "Adapted":
        """The weight of some layers or experts."""
        parts = (None if part is None else part[index] for part in (self.base, self.scale, self.a, self.b))
        return replace(self, **dict(zip(("base", "scale", "a", "b"), parts, strict=True)))

    def astype(self, dtype: DTypeLike) -> Array:
        """The sum as one array."""
        return summed(self.frozen, self.a, self.b, self.factor, jnp.dtype(dtype))

    @property
    def frozen(self) -> tuple[Array, Array | None]:
        """The base and its scale."""
        return self.base, self.scale

    @property
    def as_matrix(self) -> "Adapted":
        """The same weight with one axis of outputs and one of inputs. It has no leading axes."""
        outputs = math.prod(self.base.shape[: -self.inputs])
        scale = None if self.scale is None else self.scale.reshape(outputs)
        a = None if self.a is None else self.a.reshape(len(self.a), -1)
        b = None if self.b is None else self.b.reshape(outputs, -1)
        return Adapted(self.base.reshape(outputs, -1), scale, a, b, 1, self.factor)


def is_adapted(node: Any) -> bool:
    """Whether a node of a tree of parameters is an adapted weight."""
    return isinstance(node, Adapted)


def summed(
    frozen: tuple[Array, Array | None], a: Array | None, b: Array | None, factor: float, dtype: DTypeLike
) -> Array:
    """base + factor B A, summed in float32 and cast once."""
    base, scale = frozen
    if scale is None and a is None:
        return base.astype(dtype)
    total = base.astype(jnp.float32)
    if scale is not None:
        total = total * scale.reshape(*scale.shape, *(1,) * (base.ndim - scale.ndim))
    if a is not None and b is not None:
        total = total + factor * low_rank(a, b, base.shape, dtype)
    return total.astype(dtype)


def low_rank(a: Array, b: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """B A in float32, in the shape of a weight. A float32 result has a product of full precision on a TPU, too."""
    inputs = len(shape) - b.ndim + 1
    leading = a.ndim - 1 - inputs
    a_XAD = a.reshape(*a.shape[: leading + 1], -1)
    b_XFA = b.reshape(*b.shape[:leading], -1, b.shape[-1])
    precise = jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None
    return jnp.matmul(b_XFA, a_XAD, precision=precise).reshape(shape)


def adapted_product(product: Product, x_XD: Array, weight: Adapted) -> Array:
    """x times the transposed weight by `product`, with the gradients of the low-rank form. The base gets none."""
    matrix = weight.as_matrix
    if matrix.a is None:
        return product(x_XD, jax.lax.stop_gradient(matrix.astype(x_XD.dtype)))
    return _adapted_product(product, matrix.factor, x_XD, matrix.frozen, matrix.a, matrix.b)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _adapted_product(product: Product, factor: float, x_XD: Array, frozen: Any, a_AD: Array, b_FA: Array) -> Array:
    return product(x_XD, summed(frozen, a_AD, b_FA, factor, x_XD.dtype))


def _adapted_forward(
    product: Product, factor: float, x_XD: Array, frozen: Any, a_AD: Array, b_FA: Array
) -> tuple[Array, tuple[Any, ...]]:
    return _adapted_product(product, factor, x_XD, frozen, a_AD, b_FA), (x_XD, frozen, a_AD, b_FA)


def _adapted_backward(product: Product, factor: float, residuals: tuple[Any, ...], grad_XF: Array) -> tuple[Any, ...]:
    x_XD, frozen, a_AD, b_FA = residuals
    dtype = x_XD.dtype
    grad_XF = grad_XF.astype(dtype)
    multiply = partial(jnp.matmul, preferred_element_type=jnp.float32)
    x_grad_XD = grad_XF @ summed(frozen, a_AD, b_FA, factor, dtype)
    down_XA, up_XA = multiply(x_XD, a_AD.T.astype(dtype)), multiply(grad_XF, b_FA.astype(dtype))
    a_grad_AD, b_grad_FA = multiply(up_XA.T.astype(dtype), x_XD), multiply(grad_XF.T, down_XA.astype(dtype))
    return x_grad_XD, None, factor * a_grad_AD, factor * b_grad_FA


_adapted_product.defvjp(_adapted_forward, _adapted_backward)
