"""A decoder as a `Policy`: NNX inside, pure functions over a plain nested dict outside.

Layers are stacked on a first axis N. Teacher forcing scans over them, with each layer's activations computed again in
the backward pass; decoding unrolls them over separate arrays, because a scan would hold every cache twice.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.decoder import Layer, Shape, matrix, rms_norm, rotations
from grpo_jax.structs import Params, Policy, Prompts


@cache
def decoder_policy(shape: Shape, activations: DTypeLike = jnp.float32, remat: bool = True) -> Policy:
    """The policy of a decoder of this shape. `remat` saves memory by computing the forward pass twice."""
    decoder = _Decoder(shape, activations, remat)
    return Policy(
        init=decoder.init,
        read=decoder.read,
        respond=decoder.respond,
        cache=decoder.cache,
        extend=decoder.extend,
        unembed=decoder.unembed,
        unstack=decoder.unstack,
        max_positions=shape.max_positions,
    )


def _keep(key: Array, value: Array) -> tuple[Array, Array]:
    return key, value


class _Decoder:
    """The pure functions of one shape; holds nothing that changes."""

    def __init__(self, shape: Shape, activations: DTypeLike, remat: bool):
        self.shape, self.activations, self.remat = shape, activations, remat
        self.graph = nnx.split(nnx.eval_shape(lambda: Layer(shape, nnx.Rngs(0))), nnx.Param)[0]

    def init(self, key: Array) -> Params:
        embed_key, layer_key, head_key = jax.random.split(key, 3)
        shape, V, D = self.shape, self.shape.vocabulary, self.shape.width

        def layer(key: Array) -> dict[str, Any]:
            return nnx.to_pure_dict(nnx.state(Layer(shape, nnx.Rngs(params=key)), nnx.Param))

        params = {
            "embed_VD": matrix(nnx.Rngs(params=embed_key), (V, D), D)[...],
            "layers": jax.vmap(layer)(jax.random.split(layer_key, shape.layers)),
            "norm_D": jnp.ones((D,)),
        }
        return params if shape.tied else params | {"head_DV": matrix(nnx.Rngs(params=head_key), (D, V), D)[...]}

    def read(self, params: Params, prompts: Prompts) -> tuple[Array, dict[str, Array]]:
        valid_PL = prompts.valid_PL
        L = valid_PL.shape[1]
        positions_PL = jnp.maximum(jnp.cumsum(valid_PL, axis=1) - 1, 0)
        causal_LL = jnp.tril(jnp.ones((L, L), bool))
        mask_P1LL = (causal_LL[None] & valid_PL[:, None, :])[:, None]
        x_P1LD = self._embed(params, prompts.tokens_PL[:, None])
        turns = rotations(self.shape.rope, self.shape.channels, positions_PL[:, None])
        x_P1LD, (key_NP1LKC, value_NP1LKC) = self._scan(params, x_P1LD, turns, mask_P1LL, None)
        prefix = {
            "key_NPLKC": key_NP1LKC[:, :, 0],
            "value_NPLKC": value_NP1LKC[:, :, 0],
            "valid_PL": valid_PL,
            "length_P": jnp.sum(valid_PL, axis=1),
        }
        return self._finish(params, x_P1LD[:, 0, -1]), prefix

    def respond(self, params: Params, prefix: dict[str, Array], tokens_PGT: Array, valid_PGT: Array) -> Array:
        T = tokens_PGT.shape[2]
        causal_TT = jnp.tril(jnp.ones((T, T), bool))
        mask_PGTT = causal_TT[None, None] & valid_PGT[:, :, None, :]
        positions_P1T = prefix["length_P"][:, None, None] + jnp.arange(T)[None, None]
        turns = rotations(self.shape.rope, self.shape.channels, positions_P1T)
        x_PGTD = self._embed(params, tokens_PGT)
        x_PGTD, _ = self._scan(params, x_PGTD, turns, mask_PGTT, prefix)
        return self._finish(params, x_PGTD)

    def cache(self, prefix: dict[str, Array], G: int, T: int) -> list[tuple[Array, Array]]:
        N, P, _, K, C = prefix["key_NPLKC"].shape
        empty_PGTKC = jnp.zeros((P, G, T, K, C), self.activations)
        return [(empty_PGTKC, empty_PGTKC) for _ in range(N)]

    def extend(self, params: Params, prefix: dict[str, Array], cache: list, tokens_PG: Array, t: Array):
        T = cache[0][0].shape[2]
        mask_11T = jnp.arange(T)[None, None, None] <= t
        positions_P11 = (prefix["length_P"] + t)[:, None, None]
        turns = rotations(self.shape.rope, self.shape.channels, positions_P11)
        x_PG1D = self._embed(params, tokens_PG[:, :, None])
        kept = []
        for index, (layer, room) in enumerate(zip(self.unstack(params)["layers"], cache, strict=True)):

            def store(key_PG1KC: Array, value_PG1KC: Array, room=room) -> tuple[Array, Array]:
                write = jax.lax.dynamic_update_slice_in_dim
                return write(room[0], key_PG1KC, t, axis=2), write(room[1], value_PG1KC, t, axis=2)

            shared = (prefix["key_NPLKC"][index], prefix["value_NPLKC"][index], prefix["valid_PL"])
            x_PG1D, own = nnx.merge(self.graph, layer)(x_PG1D, turns, mask_11T, shared, store)
            kept.append(own)
        return self._finish(params, x_PG1D[:, :, 0]), kept

    def unembed(self, params: Params, hidden: Array) -> Array:
        wide = {"preferred_element_type": jnp.float32}
        if self.shape.tied:
            return jnp.einsum("...D,VD->...V", hidden, params["embed_VD"].astype(hidden.dtype), **wide)
        return jnp.einsum("...D,DV->...V", hidden, params["head_DV"].astype(hidden.dtype), **wide)

    def unstack(self, params: Params) -> Params:
        if isinstance(params["layers"], list):
            return params
        layers = [jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(self.shape.layers)]
        return params | {"layers": layers}

    def _embed(self, params: Params, tokens: Array) -> Array:
        return params["embed_VD"][tokens].astype(self.activations)

    def _finish(self, params: Params, x: Array) -> Array:
        return rms_norm(x, params["norm_D"], self.shape.norm_epsilon)

    def _scan(self, params: Params, x_PGTD: Array, turns, mask_PGTS: Array, prefix: dict[str, Array] | None):
        """All layers over rows that attend to themselves and, where there is one, to the prefix."""
        shared = None if prefix is None else (prefix["key_NPLKC"], prefix["value_NPLKC"])

        def layer(x_PGTD: Array, parts: tuple[Any, Any]) -> tuple[Array, tuple[Array, Array]]:
            weights, shared = parts
            prefixed = None if shared is None else (*shared, prefix["valid_PL"])
            return nnx.merge(self.graph, weights)(x_PGTD, turns, mask_PGTS, prefixed, _keep)

        return jax.lax.scan(jax.checkpoint(layer) if self.remat else layer, x_PGTD, (params["layers"], shared))
