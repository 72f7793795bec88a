"""A decoder as a `Policy`: NNX inside, pure functions over a plain nested dict outside.

Layers are stacked on a first axis N. Teacher forcing scans over them, and `REMAT` says what it keeps for the backward
pass. Decoding unrolls them over separate arrays (`serve`), because a scan would hold every cache twice.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from grpo_jax.models.adapted import is_adapted
from grpo_jax.models.attention import KeyValues, Scope, attend, kernel
from grpo_jax.models.decoder import (
    Shape,
    cast_matrix,
    dtype_of_weights,
    embeddings,
    project,
    quantize,
    random_weight,
    rms_norm,
    unit_norm,
)
from grpo_jax.models.experts import Routing, load_balance, recorded, usage
from grpo_jax.models.layer import Layer
from grpo_jax.models.remat import DEFAULT_REMAT, INPUT, REMAT, check_remat
from grpo_jax.models.rope import rotations
from grpo_jax.models.rows import AttendWithin, JointRows, given_experts, joined, one_text, positions, put, reach
from grpo_jax.structs import Layered, Params, Policy, Prompts


def decoder_policy(
    shape: Shape,
    activations: DTypeLike = jnp.float32,
    remat: str = DEFAULT_REMAT,
    platform: str | None = None,
    replay_experts: bool = False,
    weights: DTypeLike = jnp.float32,
) -> Policy:
    """The policy of a decoder of this shape, for a platform: "cpu", "gpu" or "tpu"; None is JAX's default backend.

    Parameters are float32, but for the matrices, which have the dtype `weights`.
    With `replay_experts`, learning uses the experts that computed a token when it was sampled (R3, arXiv:2510.11370).
    """
    platform = jax.default_backend() if platform is None else platform
    check_remat(remat, platform)
    if replay_experts and shape.experts is None:
        raise ValueError("model.replay_experts is for models with experts, and this one has none: leave it out.")
    return _policy(shape, jnp.dtype(activations), remat, platform, replay_experts, dtype_of_weights(weights))


@cache
def _policy(
    shape: Shape, activations: DTypeLike, remat: str, platform: str, replay_experts: bool, weights: DTypeLike
) -> Policy:
    decoder = _Decoder(shape, activations, remat, platform, replay_experts, weights)
    return Policy(
        init=decoder.init,
        read=decoder.read,
        respond=decoder.respond,
        cache=decoder.cache,
        extend=decoder.extend,
        unembed=decoder.unembed,
        serve=decoder.serve,
        max_positions=shape.max_positions,
        balanced=None if shape.experts is None else decoder.balanced,
        layered=decoder.layered if shape.experts is None else None,
        experts=_experts if replay_experts else None,
    )


def _unchanged(own: KeyValues) -> KeyValues:
    return own


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
        keep: Callable[[KeyValues, Routing | None], Any],
        trunk_PG: Array | None = None,
    ) -> tuple[Array, Array, Any]:
        rows = self._in_one_row(prompts, tokens_PGT, valid_PGT, start_PGT, trunk_PG)
        experts_NP1Me = given_experts(prompts, experts_PGTNe)
        x_P1MD, kept = self._layers(params, rows.tokens_P1M, rows.positions_P1M, rows.attend, keep, experts_NP1Me)
        return *rows.divide(x_P1MD), kept

    def layered(self, prompts: Prompts, tokens_PGT: Array, valid_PGT: Array, start_PGT: Array | None = None) -> Layered:
        """What `respond` computes, layer by layer."""
        rows = self._in_one_row(prompts, tokens_PGT, valid_PGT, start_PGT, None)
        layer, kind_N = self._layer_of(rows.positions_P1M, rows.attend, _dropped)
        kind_N = None if len(set(kind_N)) == 1 else jnp.array(kind_N)

        def each(weights: Params, n: Array, x_P1MD: Array) -> Array:
            return layer(x_P1MD, weights, None if kind_N is None else kind_N[n], None)[0]

        return Layered(
            begin=lambda params: self._embed(params, rows.tokens_P1M),
            layer=each,
            end=lambda params, x_P1MD: rows.divide(self._normalized(params, x_P1MD)),
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

    def cache(
        self, prefix: dict[str, Any], L: int, G: int, S: int, int8: bool
    ) -> tuple[dict[str, Any], list[KeyValues]]:
        """The prefix padded to L positions, and an empty cache of S positions for G responses to each prompt."""
        store = quantize if int8 else _unchanged
        P, K, C, experts = prefix["length_P"].shape[0], self.shape.kv_heads, self.shape.channels, None
        padding = L - prefix["valid_PL"].shape[1]

        def layer(n: int) -> KeyValues:
            pads = ((0, 0), (0, 0), (padding, 0), (0, 0))
            return store(jax.tree.map(lambda a: jnp.pad(a[n], pads[: a.ndim - 1]), prefix["key_values"]))

        shared = prefix | {
            "key_values": [layer(n) for n in range(self.shape.layers)],
            "valid_PL": jnp.pad(prefix["valid_PL"], ((0, 0), (padding, 0))),
        }
        empty_PGKSC = jnp.zeros((P, G, K, S, C), self.activations)
        if (known := prefix["key_values"].experts) is not None:
            experts = jnp.zeros((P, G, known.shape[2], S), known.dtype)
        empty = KeyValues(empty_PGKSC, empty_PGKSC, experts=experts)
        return shared, [store(empty) for _ in range(self.shape.layers)]

    def extend(
        self,
        params: Params,
        prefix: dict[str, Any],
        own: list[KeyValues],
        tokens_PG: Array,
        cursor: Array,
        start_PG: Array,
    ) -> tuple[Array, list[KeyValues]]:
        """The hidden states of one more token for every response, and the caches with its keys and values."""
        S, L = own[0].key.shape[3], prefix["valid_PL"].shape[1]
        index, index_PG = cursor % S, cursor - start_PG  # of the token in the ring, and in its response
        age_S = (cursor - jnp.arange(S)) % S  # how many tokens ago a position was written
        positions_PG1 = (prefix["length_P"][:, None] + index_PG)[:, :, None]
        spans = self.shape.spans
        masks = {window: reach(window, index_PG, age_S, prefix["valid_PL"]) for window in {s.window for s in spans}}
        tables = {rope: rotations(rope, self.shape.channels, jnp.arange(L + S)) for rope in {s.rope for s in spans}}
        # looked up, or every layer would compute its own
        cos_sin = {rope: jax.tree.map(lambda a: a[positions_PG1], table) for rope, table in tables.items()}
        x_PG1D = self._embed(params, tokens_PG[:, :, None])
        caches = []
        for weights, span, shared, cached in zip(params["layers"], spans, prefix["key_values"], own, strict=True):

            def store(new: KeyValues, cached: KeyValues = cached) -> KeyValues:
                return put(cached._replace(experts=None), new if cached.key_scale is None else quantize(new), index)

            def attend_cache(
                query: Array, own: KeyValues, shared: KeyValues = shared, window: int | None = span.window
            ) -> Array:
                mask_PG1S, prefix_mask = masks[window]
                return attend(query, own, mask_PG1S, shared, prefix_mask, self.shape.softcap)

            layer = nnx.merge(self.graph, weights)
            x_PG1D, now, routing = layer(x_PG1D, cos_sin[span.rope], attend_cache, store)
            if cached.experts is not None and routing is not None:
                now = now._replace(experts=put(cached.experts, recorded(routing), index))
            caches.append(now)
        return self._normalized(params, x_PG1D[:, :, 0]), caches

    def unembed(self, params: Params, hidden: Array) -> Array:
        """The float32 logits of hidden states."""
        head_VD = params["embed_VD" if self.shape.tied else "head_VD"]
        logits = project(hidden, head_VD, platform=self.platform, result_dtype=jnp.float32)
        if len(head_VD) > self.shape.vocabulary:  # in a copy with rows of padding (`even_vocabulary`)
            logits = logits[..., : self.shape.vocabulary]
        scale, softcap = self.shape.logit_scale, self.shape.logit_softcap
        logits = logits if scale is None else logits * scale
        return logits if softcap is None else jnp.tanh(logits / softcap) * softcap

    def _embed(self, params: Params, tokens: Array) -> Array:
        x, scale = embeddings(params["embed_VD"], tokens).astype(self.activations), self.shape.embed_scale
        return x if scale is None else x * jnp.asarray(scale, self.activations)

    def _normalized(self, params: Params, x: Array) -> Array:
        return rms_norm(x, params["norm_D"], self.shape.norm_epsilon, self.shape.norm_offset)

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
        keep: Callable[[KeyValues, Routing | None], Any],
        experts_NPGTe: Array | None = None,
    ) -> tuple[Array, Any]:
        """The rows after all layers and the last norm, and what `keep` returns of each layer."""
        layer, kind_N = self._layer_of(positions_PGT, attend_rows, keep)
        x_PGTD = self._embed(params, tokens_PGT)
        x_PGTD, kept = self._each_layer(layer, x_PGTD, params["layers"], kind_N, experts_NPGTe)
        return self._normalized(params, x_PGTD), kept

    def _layer_of(
        self, positions_PGT: Array, attend_rows: AttendWithin, keep: Callable[[KeyValues, Routing | None], Any]
    ) -> tuple[Callable[..., tuple[Array, Any]], list[int]]:
        """A layer as a function of rows, weights, its kind and its experts; and the kind of each layer.

        Layers may be of several kinds, and are one program: which kind a layer is goes through the scan as a number.
        """
        kinds = list(dict.fromkeys(self.shape.spans))
        tables = [rotations(span.rope, self.shape.channels, positions_PGT) for span in kinds]
        kernels = [partial(attend_rows, span.window) for span in kinds]

        def layer(
            x_PGTD: Array, weights: Params, kind: int | Array | None, experts_PGTe: Array | None
        ) -> tuple[Array, Any]:
            x_PGTD = checkpoint_name(x_PGTD, INPUT)
            if kind is None or isinstance(kind, int):  # None: all layers are of the first kind
                position = 0 if kind is None else kind
                cos_sin, attend_layer = tables[position], kernels[position]
            else:
                cos_sin = jax.tree.map(lambda *a: jax.lax.select_n(kind, *a), *tables)
                same_window = len({span.window for span in kinds}) == 1
                attend_layer = kernels[0] if same_window else partial(jax.lax.switch, kind, kernels)
            block = nnx.merge(self.graph, weights)
            x_PGTD, own, routing = block(x_PGTD, cos_sin, attend_layer, _unchanged, experts_PGTe)
            return x_PGTD, keep(own, routing)

        return layer, [kinds.index(span) for span in self.shape.spans]

    def _each_layer(
        self,
        layer: Callable[..., tuple[Array, Any]],
        x_PGTD: Array,
        layers: Params | list,
        kind_N: list[int],
        experts_NPGTe: Array | None,
    ) -> tuple[Array, Any]:
        if isinstance(layers, list):  # the copy for sampling
            kept = []
            for weights, kind in zip(layers, kind_N, strict=True):
                x_PGTD, own = layer(x_PGTD, weights, kind, None)
                kept.append(own)
            return x_PGTD, jax.tree.map(lambda *arrays: jnp.stack(arrays), *kept)
        saved, alike = REMAT[self.remat], len(set(kind_N)) == 1

        def body(x_PGTD: Array, given: Any) -> tuple[Array, Any]:
            return layer(x_PGTD, *given)

        kept = body if saved is None else jax.checkpoint(body, policy=saved, prevent_cse=False)
        return jax.lax.scan(kept, x_PGTD, (layers, None if alike else jnp.array(kind_N), experts_NPGTe))
