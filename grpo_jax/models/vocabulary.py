"""From tokens to vectors, and from the last layer's vectors to logits."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.decoder import Shape, embeddings, project, rms_norm
from grpo_jax.structs import Params


@jax.named_scope("embedding")
def embed(shape: Shape, activations: DTypeLike, params: Params, tokens: Array) -> Array:
    """The vectors that the first layer is given, in the dtype of the activations."""
    x, scale = embeddings(params["embed_VD"], tokens).astype(activations), shape.embed_scale
    return x if scale is None else x * jnp.asarray(scale, activations)


def normalized(shape: Shape, params: Params, x: Array) -> Array:
    """The hidden states: what the last layer returns, after the last norm."""
    return rms_norm(x, params["norm_D"], shape.norm_epsilon, shape.norm_offset)


@jax.named_scope("head")
def unembed(shape: Shape, platform: str, params: Params, hidden: Array) -> Array:
    """The float32 logits of hidden states."""
    head_VD = params["embed_VD" if shape.tied else "head_VD"]
    logits = project(hidden, head_VD, platform=platform, result_dtype=jnp.float32)
    if len(head_VD) > shape.vocabulary:  # in a copy with rows of padding (`even_vocabulary`)
        logits = logits[..., : shape.vocabulary]
    scale, softcap = shape.logit_scale, shape.logit_softcap
    logits = logits if scale is None else logits * scale
    return logits if softcap is None else jnp.tanh(logits / softcap) * softcap
