"""A decoder as a `Policy`: NNX inside, pure functions over a plain nested dict outside.

Layers are stacked on a first axis N. Teacher forcing scans over them (`stack`); decoding unrolls them over the separate
arrays of a copy (`serve`, `decoding`).
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from grpo_jax.models.adapted import is_adapted
from grpo_jax.models.attention import BLOCK, KeyValues, Scope, kernel
from grpo_jax.models.block import extend_block
from grpo_jax.models.decoder import Shape, cast_matrix, dtype_of_weights, random_weight, unit_norm
from grpo_jax.models.decoding import caches, extend, heads_in_lanes
from grpo_jax.models.experts import Routing, load_balance, recorded, usage
from grpo_jax.models.layer import Layer
from grpo_jax.models.layer_weights import ready
from grpo_jax.models.remat import FASTER, check_remat
from grpo_jax.models.rows import AttendWithin, JointRows, given_experts, joined, one_text, positions
from grpo_jax.models.stack import Keep, each_layer, layer_of
from grpo_jax.models.vocabulary import embed, normalized, unembed
from grpo_jax.structs import Layered, Params, Policy, Prompts


def decoder_policy(
    shape: Shape,
    activations: DTypeLike = jnp.float32,
    remat: str = "full",
    platform: str | None = None,
    replay_experts: bool = False,
    weights: DTypeLike = jnp.float32,
) -> Policy:
    """The policy of a decoder of this shape, for a platform: "cpu", "gpu" or "tpu"; None is JAX's default backend.

    Parameters are float32, but for the matrices, which have the dtype `weights`.
    With `remat` auto it keeps least, and its `faster` policies keep more.
    With `replay_experts`, learning uses the experts that computed a token when it was sampled (R3, arXiv:2510.11370).
    """
    platform = jax.default_backend() if platform is None else platform
    check_remat(remat, platform)
    if replay_experts and shape.experts is None:
        raise ValueError("model.replay_experts is for models with experts, and this one has none: leave it out.")
    rest = platform, replay_experts, dtype_of_weights(weights)
    if remat != "auto":
        return _policy(shape, jnp.dtype(activations), remat, *rest)
    faster = {each: _policy(shape, jnp.dtype(activations), each, *rest) for each in FASTER}
    return _with_faster(_policy(shape, jnp.dtype(activations), "full", *rest), tuple(faster.items()))


@cache
def _with_faster(policy: Policy, faster: tuple[tuple[str, Policy], ...]) -> Policy:
    return replace(policy, faster=dict(faster))


@cache
def _policy(
    shape: Shape, activations: DTypeLike, remat: str, platform: str, replay_experts: bool, weights: DTypeLike
) -> Policy:
    decoder = _Decoder(shape, activations, remat, platform, replay_experts, weights)
    return Policy(
        init=decoder.init,
        read=decoder.read,
        respond=decoder.respond,
        cache=partial(caches, shape, activations, platform),
        extend=partial(extend, shape, activations, platform, decoder.graph),
        extend_block=partial(extend_block, shape, activations, decoder.graph),
        unembed=partial(unembed, shape, platform),
        serve=decoder.serve,
        max_positions=shape.max_positions,
        live_block=BLOCK if heads_in_lanes(shape, platform, int8=False) else None,
        balanced=None if shape.experts is None else decoder.balanced,
        layered=decoder.layered if shape.experts is None else None,
        experts=_experts if replay_experts else None,
    )


def _as_stored(weights: Params) -> Params:
    return weights


def _dropped(own: KeyValues, routing: Routing | None) -> None:
    return None


def _own(own: KeyValues, routing: Routing | None) -> KeyValues:
    return own


def _with_experts(own: KeyValues, routing: Routing | None) -> KeyValues:
    return own if routing is None else own._replace(experts=recorded(routing))


def _experts(cache: Any) -> list[Array]:
    """The experts in the cache of prompts or of responses, layer by layer."""
    layers = cache["key_values"] if isinstance(cache, dict) else cache
    return [layer.experts for layer in layers]


class _Decoder:
    """The pure functions of one shape. The object never changes."""

    def __init__(
        self, shape: Shape, activations: DTypeLike, remat: str, platform: str, replay: bool, weights: DTypeLike
    ):
        self.shape, self.activations, self.remat, self.platform = shape, activations, remat, platform
        self.stored, self.served = (partial(cast_matrix, dtype) for dtype in (weights, activations))
        self.ready = partial(ready, activations) if platform == "tpu" else _as_stored
        self.keep = _with_experts if replay else _own
        self.attend_rows = kernel(platform, activations)
        self.layer = jax.jit(self._layer)  # one program for every layer, not one that returns hundreds of arrays
        self.graph = nnx.split(nnx.eval_shape(lambda: Layer(shape, nnx.Rngs(0), platform)), nnx.Param)[0]

    def init(self, key: Array) -> Params:
        """Random parameters."""
        embed_key, layer_key, head_key = jax.random.split(key, 3)
        shape, V, D = self.shape, self.shape.vocabulary, self.shape.width

        def layer(key: Array) -> dict[str, Any]:
            drawn = nnx.to_pure_dict(nnx.state(Layer(shape, nnx.Rngs(params=key), self.platform), nnx.Param))
            return jax.tree_util.tree_map_with_path(self.stored, drawn)

        params = {
            "embed_VD": random_weight(nnx.Rngs(params=embed_key), (V, D), D)[...],
            "norm_D": unit_norm(shape, D)[...],
        }
        if not shape.tied:
            params["head_VD"] = random_weight(nnx.Rngs(params=head_key), (V, D), D)[...]
        params = jax.tree_util.tree_map_with_path(self.stored, params)
        return params | {"layers": jax.vmap(layer)(jax.random.split(layer_key, shape.layers))}

    def read(self, params: Params, prompts: Prompts) -> tuple[Array, dict[str, Any]]:
        """The hidden state at each prompt's last token, and the prefix: keys, values, masks and lengths."""
        tokens_PL, valid_PL = jnp.asarray(prompts.tokens_PL), jnp.asarray(prompts.valid_PL)
        scope, positions_P1L = one_text(valid_PL), positions(valid_PL)[:, None]

        def attend_prompt(window: int | None, query_P1HLC: Array, own: KeyValues) -> Array:
            return self._attend(window, query_P1HLC, own, scope, None)

        x_P1LD, own = self._layers(params, tokens_PL[:, None], positions_P1L, attend_prompt, self.keep)
        prefix = {
            "key_values": jax.tree.map(lambda a_NP1KLC: a_NP1KLC[:, :, 0], own),
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
        experts_PGTNe: Array | None = None,
        trunk_PG: Array | None = None,
    ) -> tuple[Array, Array]:
        """The hidden states at each prompt's last token and at every token of the responses.

        Except in attention, a prompt and its responses are one row of M = L + G T tokens: weights are read once.
        """
        inputs = (params, prompts, tokens_PGT, valid_PGT, start_PGT, experts_PGTNe)
        return self._respond(*inputs, _dropped, trunk_PG)[:2]

    def balanced(
        self,
        params: Params,
        prompts: Prompts,
        tokens_PGT: Array,
        valid_PGT: Array,
        start_PGT: Array | None = None,
        experts_PGTNe: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """The same hidden states, and the load-balancing loss of the valid tokens of the responses.

        Prompts are left out: how often one is computed depends on the devices.
        """
        valid_P1M = joined(jnp.zeros(prompts.valid_PL.shape, bool), valid_PGT)

        def keep(own: KeyValues, routing: Routing | None) -> tuple[Array, Array]:
            if routing is None:
                raise ValueError("Only a model with experts has a load-balancing loss.")
            return usage(routing, valid_P1M)

        inputs = (params, prompts, tokens_PGT, valid_PGT, start_PGT, experts_PGTNe)
        last_PD, hidden_PGTD, used = self._respond(*inputs, keep)
        return last_PD, hidden_PGTD, load_balance(*used, jnp.sum(valid_PGT))

    def _respond(
        self,
        params: Params,
        prompts: Prompts,
        tokens_PGT: Array,
        valid_PGT: Array,
        start_PGT: Array | None,
        experts_PGTNe: Array | None,
        keep: Keep,
        trunk_PG: Array | None = None,
    ) -> tuple[Array, Array, Any]:
        rows = self._in_one_row(prompts, tokens_PGT, valid_PGT, start_PGT, trunk_PG)
        experts_NP1Me = given_experts(prompts, experts_PGTNe)
        x_P1MD, kept = self._layers(params, rows.tokens_P1M, rows.positions_P1M, rows.attend, keep, experts_NP1Me)
        return *rows.divide(x_P1MD), kept

    def layered(self, prompts: Prompts, tokens_PGT: Array, valid_PGT: Array, start_PGT: Array | None = None) -> Layered:
        """What `respond` computes, layer by layer."""
        rows = self._in_one_row(prompts, tokens_PGT, valid_PGT, start_PGT, None)
        layer, kind_N = layer_of(self.shape, self.graph, rows.positions_P1M, rows.attend, _dropped, self.ready)
        kind_N = None if len(set(kind_N)) == 1 else jnp.array(kind_N)

        def each(weights: Params, n: Array, x_P1MD: Array) -> Array:
            return layer(x_P1MD, weights, None if kind_N is None else kind_N[n], None)[0]

        return Layered(
            begin=lambda params: embed(self.shape, self.activations, params, rows.tokens_P1M),
            layer=each,
            end=lambda params, x_P1MD: rows.divide(normalized(self.shape, params, x_P1MD)),
        )

    def _in_one_row(
        self, prompts: Prompts, tokens_PGT: Array, valid_PGT: Array, start_PGT: Array | None, trunk_PG: Array | None
    ) -> JointRows:
        prompt_tokens_PL, prompt_valid_PL = jnp.asarray(prompts.tokens_PL), jnp.asarray(prompts.valid_PL)
        start_PGT = jnp.zeros(tokens_PGT.shape, jnp.int32) if start_PGT is None else start_PGT
        (P, G, T), L = tokens_PGT.shape, prompt_tokens_PL.shape[1]
        length_P11 = jnp.sum(prompt_valid_PL, axis=1)[:, None, None]
        prompt_scope, scope = one_text(prompt_valid_PL), Scope(start_PGT, valid_PGT, prompt_valid_PL, trunk_PG)
        positions_PGT = length_P11 + scope.depth_PGT

        def responses_of(a_P1HMC: Array) -> Array:
            return jnp.swapaxes(a_P1HMC[:, 0, :, L:].reshape(P, -1, G, T, a_P1HMC.shape[4]), 1, 2)

        def attend_both(window: int | None, query_P1HMC: Array, joint: KeyValues) -> Array:
            prompt = jax.tree.map(lambda a: a[:, :, :, :L], joint)
            prefix, own = jax.tree.map(lambda a: a[:, 0], prompt), jax.tree.map(responses_of, joint)
            prompt_P1HLC = self._attend(window, query_P1HMC[:, :, :, :L], prompt, prompt_scope, None)
            own_PHGTC = jnp.swapaxes(self._attend(window, responses_of(query_P1HMC), own, scope, prefix), 1, 2)
            return jnp.concatenate([prompt_P1HLC, own_PHGTC.reshape(P, 1, -1, G * T, query_P1HMC.shape[4])], axis=3)

        def divide(x_P1MD: Array) -> tuple[Array, Array]:
            return x_P1MD[:, 0, L - 1], x_P1MD[:, 0, L:].reshape(P, G, T, -1)

        positions_P1M = joined(positions(prompt_valid_PL), positions_PGT)
        return JointRows(joined(prompt_tokens_PL, tokens_PGT), positions_P1M, attend_both, divide)

    def serve(self, params: Params) -> Params:
        """A copy of the parameters for sampling, in the dtype of the activations; its layers are a list."""
        layers = [self.layer(params["layers"], n) for n in range(self.shape.layers)]
        return jax.tree_util.tree_map_with_path(self.served, params | {"layers": layers})

    def _layer(self, layers: Params, n: int | Array) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, a: self.served(path, a[n]), layers, is_leaf=is_adapted)

    def _attend(
        self, window: int | None, query: Array, own: KeyValues, scope: Scope, prefix: KeyValues | None
    ) -> Array:
        return self.attend_rows(query, own, scope, prefix, window, self.shape.softcap)

    def _layers(
        self,
        params: Params,
        tokens_PGT: Array,
        positions_PGT: Array,
        attend_rows: AttendWithin,
        keep: Keep,
        experts_NPGTe: Array | None = None,
    ) -> tuple[Array, Any]:
        """The rows after all layers and the last norm, and what `keep` returns of each layer."""
        layer, kind_N = layer_of(self.shape, self.graph, positions_PGT, attend_rows, keep, self.ready)
        x_PGTD = embed(self.shape, self.activations, params, tokens_PGT)
        x_PGTD, kept = each_layer(self.remat, layer, x_PGTD, params["layers"], kind_N, experts_NPGTe)
        return normalized(self.shape, params, x_PGTD), kept
