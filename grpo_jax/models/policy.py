"""A decoder as a `Policy`: NNX inside, pure functions over a plain nested dict outside.

Layers are stacked on a first axis N. Teacher forcing scans over them, and `REMAT` says what it keeps for the backward
pass; decoding unrolls them over separate arrays (`serve`), because a scan would hold every cache twice.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from grpo_jax.models.attention import PRODUCT, Memory, Sight, attend, kernel
from grpo_jax.models.decoder import Layer, Shape, matrix, project, quantize, rms_norm, rotations
from grpo_jax.structs import Params, Policy, Prompts

Remat = Literal["full", "products", "offload", "none"]
INPUT = "layer_input"
_KEEP = jax.checkpoint_policies

# What the backward pass finds of each layer, and what it has to compute again.
REMAT: dict[str, Callable | None] = {
    "full": _KEEP.save_only_these_names(INPUT),  # its input: least memory, a third more arithmetic
    "products": _KEEP.save_only_these_names(
        INPUT, PRODUCT
    ),  # what products and attention give too; scores, norms, activations again
    "offload": _KEEP.save_and_offload_only_these_names(  # its input, in the host's memory until it is needed
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "none": None,  # everything
}


def decoder_policy(
    shape: Shape, activations: DTypeLike = jnp.float32, remat: str = "full", platform: str | None = None
) -> Policy:
    """The policy of a decoder of this shape, for a platform: "cpu", "gpu" or "tpu"; None is the one at hand."""
    if remat not in REMAT:
        raise ValueError(f"There is no remat policy {remat!r}; choose one of {', '.join(REMAT)}.")
    platform = jax.default_backend() if platform is None else platform
    if remat == "offload" and platform == "cpu":
        raise ValueError("remat offload moves activations from a device to its host; on a CPU choose full.")
    return _policy(shape, jnp.dtype(activations), remat, platform)


@cache
def _policy(shape: Shape, activations: DTypeLike, remat: Remat, platform: str) -> Policy:
    decoder = _Decoder(shape, activations, remat, platform)
    return Policy(
        init=decoder.init,
        read=decoder.read,
        respond=decoder.respond,
        cache=decoder.cache,
        extend=decoder.extend,
        unembed=decoder.unembed,
        serve=decoder.serve,
        max_positions=shape.max_positions,
    )


def _keep(memory: Memory) -> Memory:
    return memory


def _forget(memory: Memory) -> None:
    return None


def _positions(valid_PL: Array) -> Array:
    return jnp.maximum(jnp.cumsum(valid_PL, axis=1) - 1, 0)


def _whole(valid_PL: Array) -> Sight:
    """Rows of one text each, with nothing before it."""
    return Sight(jnp.zeros(valid_PL.shape, jnp.int32)[:, None], valid_PL[:, None], None)


class _Decoder:
    """The pure functions of one shape; holds nothing that changes."""

    def __init__(self, shape: Shape, activations: DTypeLike, remat: Remat, platform: str):
        self.shape, self.activations, self.remat, self.platform = shape, activations, remat, platform
        self.attend_rows = kernel(platform, activations)
        self.layer = jax.jit(self._layer)  # one program for every layer, not one that returns hundreds of arrays
        self.graph = nnx.split(nnx.eval_shape(lambda: Layer(shape, nnx.Rngs(0), platform)), nnx.Param)[0]

    def init(self, key: Array) -> Params:
        embed_key, layer_key, head_key = jax.random.split(key, 3)
        shape, V, D = self.shape, self.shape.vocabulary, self.shape.width

        def layer(key: Array) -> dict[str, Any]:
            return nnx.to_pure_dict(nnx.state(Layer(shape, nnx.Rngs(params=key), self.platform), nnx.Param))

        params = {
            "embed_VD": matrix(nnx.Rngs(params=embed_key), (V, D), D)[...],
            "layers": jax.vmap(layer)(jax.random.split(layer_key, shape.layers)),
            "norm_D": jnp.ones((D,)),
        }
        return params if shape.tied else params | {"head_VD": matrix(nnx.Rngs(params=head_key), (V, D), D)[...]}

    def read(self, params: Params, prompts: Prompts) -> tuple[Array, dict[str, Any]]:
        valid_PL = prompts.valid_PL
        sight, positions_P1L = _whole(valid_PL), _positions(valid_PL)[:, None]

        def mix(query_P1HLC: Array, own: Memory) -> Array:
            return self._attend(query_P1HLC, own, sight, None)

        x_P1LD, memory = self._scan(params, prompts.tokens_PL[:, None], positions_P1L, mix, kept=_keep)
        prefix = {
            "memory": jax.tree.map(lambda a_NP1KLC: a_NP1KLC[:, :, 0], memory),
            "valid_PL": valid_PL,
            "length_P": jnp.sum(valid_PL, axis=1),
        }
        return x_P1LD[:, 0, -1], prefix

    def respond(
        self,
        params: Params,
        prompts: Prompts,
        tokens_PGT: Array,
        valid_PGT: Array,
        start_PGT: Array | None = None,
    ) -> tuple[Array, Array]:
        """Prompt and responses are one row of L + G T tokens wherever they do not attend: weights are read once."""
        start_PGT = jnp.zeros(tokens_PGT.shape, jnp.int32) if start_PGT is None else start_PGT
        (P, G, T), L = tokens_PGT.shape, prompts.tokens_PL.shape[1]
        length_P11 = jnp.sum(prompts.valid_PL, axis=1)[:, None, None]
        positions_PGT = length_P11 + jnp.arange(T)[None, None] - start_PGT
        first, sight = _whole(prompts.valid_PL), Sight(start_PGT, valid_PGT, prompts.valid_PL)

        def join(of_prompt_PL: Array, of_rows_PGT: Array) -> Array:
            return jnp.concatenate([of_prompt_PL, of_rows_PGT.reshape(P, G * T)], axis=1)[:, None]

        def rows(a_P1HMC: Array) -> Array:
            return jnp.swapaxes(a_P1HMC[:, 0, :, L:].reshape(P, -1, G, T, a_P1HMC.shape[4]), 1, 2)

        def mix(query_P1HMC: Array, all_own: Memory) -> Array:
            of_prompt = jax.tree.map(lambda a: a[:, :, :, :L], all_own)
            before, own = jax.tree.map(lambda a: a[:, 0], of_prompt), jax.tree.map(rows, all_own)
            mixed_P1HLC = self._attend(query_P1HMC[:, :, :, :L], of_prompt, first, None)
            mixed_PHGTC = jnp.swapaxes(self._attend(rows(query_P1HMC), own, sight, before), 1, 2)
            return jnp.concatenate([mixed_P1HLC, mixed_PHGTC.reshape(P, 1, -1, G * T, query_P1HMC.shape[4])], axis=3)

        positions_P1M = join(_positions(prompts.valid_PL), positions_PGT)
        x_P1MD, _ = self._scan(params, join(prompts.tokens_PL, tokens_PGT), positions_P1M, mix)
        return x_P1MD[:, 0, L - 1], x_P1MD[:, 0, L:].reshape(P, G, T, -1)

    def serve(self, params: Params) -> Params:
        layers = [self.layer(params["layers"], n) for n in range(self.shape.layers)]
        return jax.tree.map(self._cast, params | {"layers": layers})

    def _layer(self, layers: Params, n: int | Array) -> Params:
        return jax.tree.map(lambda a: self._cast(a[n]), layers)

    def _cast(self, a: Array) -> Array:
        return a.astype(self.activations) if a.ndim > 1 else a  # norms work in float32

    def cache(self, prefix: dict[str, Any], L: int, G: int, S: int, int8: bool) -> tuple[Any, list[Memory]]:
        keep = quantize if int8 else _keep
        P, K, C = prefix["length_P"].shape[0], self.shape.kv_heads, self.shape.channels
        room = L - prefix["valid_PL"].shape[1]

        def memory(n: int) -> Memory:
            return keep(jax.tree.map(lambda a: jnp.pad(a[n], ((0, 0), (0, 0), (room, 0), (0, 0))), prefix["memory"]))

        shared = prefix | {
            "memory": [memory(n) for n in range(self.shape.layers)],
            "valid_PL": jnp.pad(prefix["valid_PL"], ((0, 0), (room, 0))),
        }
        empty_PGKSC = jnp.zeros((P, G, K, S, C), self.activations)
        return shared, [keep(Memory(empty_PGKSC, empty_PGKSC)) for _ in range(self.shape.layers)]

    def extend(self, params: Params, prefix: dict, own: list[Memory], tokens_PG: Array, cursor: Array, start_PG: Array):
        S, L = own[0].key.shape[3], prefix["valid_PL"].shape[1]
        age_111S = ((cursor - jnp.arange(S)) % S)[None, None, None]
        place_PG11 = (cursor - start_PG)[:, :, None, None]
        mask_PG1S, prefix_mask = age_111S <= place_PG11, prefix["valid_PL"][:, None, None]
        if self.shape.window is not None:
            mask_PG1S &= age_111S < self.shape.window
            prefix_mask &= place_PG11 + L - jnp.arange(L)[None, None, None] < self.shape.window
        positions_PG1 = (prefix["length_P"][:, None] + cursor - start_PG)[:, :, None]
        table = rotations(self.shape.rope, self.shape.channels, jnp.arange(L + S))
        turns = jax.tree.map(lambda a: a[positions_PG1], table)  # looked up, or every layer would compute its own sines
        x_PG1D = self._embed(params, tokens_PG[:, :, None])
        kept = []
        for weights, shared, room in zip(params["layers"], prefix["memory"], own, strict=True):

            def store(new: Memory, room: Memory = room) -> Memory:
                new = new if room.key_scale is None else quantize(new)
                return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, cursor % S, 3), room, new)

            def mix(query: Array, own: Memory, shared: Memory = shared) -> Array:
                return attend(query, own, mask_PG1S, shared, prefix_mask, self.shape.softcap)

            x_PG1D, memory = nnx.merge(self.graph, weights)(x_PG1D, turns, mix, store)
            kept.append(memory)
        return self._finish(params, x_PG1D[:, :, 0]), kept

    def unembed(self, params: Params, hidden: Array) -> Array:
        head_VD = params["embed_VD" if self.shape.tied else "head_VD"]
        return project(hidden, head_VD.astype(hidden.dtype), platform=self.platform, wide=jnp.float32)

    def _embed(self, params: Params, tokens: Array) -> Array:
        return params["embed_VD"][tokens].astype(self.activations)

    def _finish(self, params: Params, x: Array) -> Array:
        return rms_norm(x, params["norm_D"], self.shape.norm_epsilon)

    def _attend(self, query: Array, own: Memory, sight: Sight, prefix: Memory | None) -> Array:
        return self.attend_rows(query, own, sight, prefix, self.shape.window, self.shape.softcap)

    def _scan(
        self,
        params: Params,
        tokens_PGT: Array,
        positions_PGT: Array,
        mix: Callable[[Array, Memory], Array],
        kept: Callable[[Memory], Any] = _forget,
    ) -> tuple[Array, Any]:
        """All layers over rows, and what is `kept` of their keys and values."""
        turns = rotations(self.shape.rope, self.shape.channels, positions_PGT)

        def layer(x_PGTD: Array, weights: Params) -> tuple[Array, Any]:
            x_PGTD, own = nnx.merge(self.graph, weights)(checkpoint_name(x_PGTD, INPUT), turns, mix, _keep)
            return x_PGTD, kept(own)

        x_PGTD, layers = self._embed(params, tokens_PGT), params["layers"]
        if isinstance(layers, list):  # the copy for sampling
            memories = []
            for weights in layers:
                x_PGTD, own = layer(x_PGTD, weights)
                memories.append(own)
            return self._finish(params, x_PGTD), jax.tree.map(lambda *arrays: jnp.stack(arrays), *memories)
        keep = REMAT[self.remat]
        layer = layer if keep is None else jax.checkpoint(layer, policy=keep, prevent_cse=False)
        x_PGTD, memory = jax.lax.scan(layer, x_PGTD, layers)
        return self._finish(params, x_PGTD), memory
