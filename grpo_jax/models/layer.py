"""One layer of a decoder as an NNX module.

One `Layer.__call__` serves all three uses: reading prompts, teacher forcing and decoding. Rows are always `[P, G, T]`.
The caller says how they attend (`attend`), and what happens to their new keys and values: decoding writes them into a
cache, the other two leave them as they are.
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from grpo_jax.models.attention import KeyValues
from grpo_jax.models.decoder import Attend, Attention, FeedForward, Shape, rms_norm, unit_norm
from grpo_jax.models.experts import MixtureOfExperts, Routing


class Layer(nnx.Module):
    """Attention and feed-forward; each adds its output to its input, with norms before it, after it, or both."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        self.shape = shape
        if shape.norms != "after":
            self.attention_norm_D = unit_norm(shape, shape.width)
            self.feedforward_norm_D = unit_norm(shape, shape.width)
        if shape.norms != "before":
            self.attention_output_norm_D = unit_norm(shape, shape.width)
            self.feedforward_output_norm_D = unit_norm(shape, shape.width)
        self.attention = Attention(shape, rngs, platform)
        block = FeedForward if shape.experts is None else MixtureOfExperts
        self.feedforward = block(shape, rngs, platform)

    def __call__(
        self,
        x_PGTD: Array,
        cos_sin: tuple[Array, Array],
        attend: Attend,
        experts_PGTe: Array | None = None,
    ) -> tuple[Array, KeyValues, Routing | None]:
        """The rows after this layer, their keys and values as `attend` returned them, and the routing of its experts.

        Experts that are given are used in place of those that the router would choose.
        """
        norm = partial(rms_norm, epsilon=self.shape.norm_epsilon, offset=self.shape.norm_offset)
        after, before = self.shape.norms != "before", self.shape.norms != "after"
        normed_PGTD = norm(x_PGTD, self.attention_norm_D[...]) if before else x_PGTD
        output_PGTD, own = self.attention(normed_PGTD, cos_sin, attend)
        output_PGTD = norm(output_PGTD, self.attention_output_norm_D[...]) if after else output_PGTD
        x_PGTD = x_PGTD + self._scaled(output_PGTD)
        normed_PGTD = norm(x_PGTD, self.feedforward_norm_D[...]) if before else x_PGTD
        output_PGTD, routing = self._fed_forward(normed_PGTD, experts_PGTe)
        output_PGTD = norm(output_PGTD, self.feedforward_output_norm_D[...]) if after else output_PGTD
        return x_PGTD + self._scaled(output_PGTD), own, routing

    def _fed_forward(self, x_PGTD: Array, experts_PGTe: Array | None) -> tuple[Array, Routing | None]:
        if isinstance(self.feedforward, MixtureOfExperts):
            return self.feedforward(x_PGTD, experts_PGTe)
        return self.feedforward(x_PGTD), None

    def _scaled(self, output_PGTD: Array) -> Array:
        scale = self.shape.residual_scale
        if scale is None:
            return output_PGTD
        return (output_PGTD.astype(jnp.float32) * scale).astype(output_PGTD.dtype)  # the scale is not rounded
