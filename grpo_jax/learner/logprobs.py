"""Token log-probs and entropies under a policy, in chunks: the `[..., V]` arrays are never larger than a chunk.

The only next-token shift of the package is here: hidden states at position t score token t+1, so the response is
scored by the last state of the prompt followed by all states of the response but its last.

The backward pass begins with the last chunk, whose logits are still in memory, and recomputes those of the others.
The gradient of the head is added, chunk by chunk, to the sums of earlier ones if there are any (`Summing`). The
gradient of the logits has a closed form: with p the probabilities, H the entropy and y the token,
d logprob / d logit_i = [i = y] - p_i and d H / d logit_i = -p_i (log p_i + H).
"""

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from grpo_jax.devices.mesh import prompt_axes, prompt_shards
from grpo_jax.distribution import EXCLUDED
from grpo_jax.optimizers import LAYERS
from grpo_jax.structs import Params, Policy, Prompts, Rollouts, Summing

CHUNK_TOKENS = (
    1024  # tokens whose logits are in memory at once on a device, at least one of each row: 0.6 GB for V = 150k
)
SECTIONS = 48  # of a vocabulary, which a CPU adds to one another before it sums the result


class Rows(NamedTuple):
    """Tokens as they are computed: in rows of slots, each of which may hold several responses."""

    tokens_PBW: Array
    valid_PBW: Array
    position_PBW: Array  # of the token in its own response
    response_PBW: Array

    @property
    def start_PBW(self) -> Array:
        """The slot at which each token's response begins."""
        return jnp.arange(self.tokens_PBW.shape[2])[None, None] - self.position_PBW


def token_logprobs(
    policy: Policy,
    params: Params,
    rollouts: Rollouts,
    slots_PBW: Int[Array, "P B W"] | Int[np.ndarray, "P B W"] | None = None,
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Float32 log-probs and entropies of the responses' tokens, differentiable; zero where there is no action.

    With `slots_PBW`, several responses are computed in one row: see `packing.Microbatch`.
    """
    logprobs_PGT, entropy_PGT, _ = balanced_logprobs(policy, params, rollouts, slots_PBW)
    return logprobs_PGT, entropy_PGT


def balanced_logprobs(
    policy: Policy,
    params: Params,
    rollouts: Rollouts,
    slots_PBW: Int[Array, "P B W"] | Int[np.ndarray, "P B W"] | None = None,
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"], Float[Array, ""] | None]:
    """The same, and the load-balancing loss; None for a model without experts."""
    slots_PBW = None if slots_PBW is None else jnp.asarray(slots_PBW)
    summing = {name: given for name, given in params.items() if isinstance(given, Summing) and name != LAYERS}
    params = params | {name: given.weights for name, given in summing.items()}
    rows = in_rows(rollouts, slots_PBW)
    P, B, W = rows.tokens_PBW.shape
    inputs, balance = [params, rollouts.prompts, rows.tokens_PBW, rows.valid_PBW, rows.start_PBW], None
    if policy.experts is not None and rollouts.experts_PGTNe is not None:
        inputs.append(_experts_in_rows(rollouts.experts_PGTNe, slots_PBW))
    if policy.balanced is None:
        last_PD, hidden_PBWD = policy.respond(*inputs)
    else:
        last_PD, hidden_PBWD, balance = policy.balanced(*inputs)
    earlier_PBWD = jnp.pad(hidden_PBWD[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    scoring_PBWD = jnp.where(rows.position_PBW[..., None] == 0, last_PD[:, None, None], earlier_PBWD)
    shards = _shards(P)
    count = -(-W // max(1, CHUNK_TOKENS * shards // (P * B)))
    hidden_nPBwD, rows_n = jax.tree.map(partial(_slices, count), (scoring_PBWD, rows))
    unembed, weights, names = _head(policy, params, hidden_nPBwD[0])
    head_sums = [summing[name].sums if name in summing else None for name in names]
    first_PGV = None
    if rollouts.distribution.penalizes:
        V = jax.eval_shape(policy.unembed, params, last_PD).shape[-1]
        first_PGV = _first_positions(rollouts, V)

    def logits(weights: list[Array], hidden_PBwD: Array, rows: Rows, first_PGV: Array | None) -> Array:
        seen_PBwV = None
        if first_PGV is not None:
            index_P11 = jnp.arange(len(first_PGV))[:, None, None]
            seen_PBwV = first_PGV[index_P11, rows.response_PBW] < rows.position_PBW[..., None]
        return rollouts.distribution(unembed(weights, hidden_PBwD), rows.position_PBW, seen_PBwV, rows.tokens_PBW)

    score = partial(_score, logits) if shards == 1 else _on_shards(partial(_score, logits))
    if shards > 1:  # gradients are summed over devices
        weights = [a if name in policy.frozen else _wide(a) for a, name in zip(weights, names, strict=True)]
    scores = score(weights, head_sums, hidden_nPBwD, rows_n, first_PGV)
    logprobs, entropy = (jnp.moveaxis(a_nPBw, 0, 2).reshape(P, B, -1)[:, :, :W] for a_nPBw in scores)
    return _in_responses(logprobs, rollouts, slots_PBW), _in_responses(entropy, rollouts, slots_PBW), balance


def head_names(policy: Policy, params: Params, prompts: Prompts) -> list[str]:
    """The names of the parameters of the head whose gradients may be added to sums, as `Summing`: those that are single
    arrays, on one device. On several, each has a gradient of its own until all are reduced.
    """
    if _shards(len(prompts.tokens_PL)) > 1:
        return []
    last_PD, _ = jax.eval_shape(policy.read, params, prompts)
    names = _head(policy, params, last_PD)[2]
    return [name for name in names if isinstance(params[name], Array) and name not in policy.frozen]


def _head(policy: Policy, params: Params, hidden: Any) -> tuple[Callable[..., Array], list[Array], list[str]]:
    """`policy.unembed` as a function of only the parameters that it uses; those parameters, and their first names."""
    with_paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves, names = [leaf for _, leaf in with_paths], [path[0].key for path, _ in with_paths]
    jaxpr = jax.make_jaxpr(policy.unembed)(params, hidden).jaxpr
    used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1][: len(leaves)]

    def unembed(weights: list[Array], hidden: Array) -> Array:
        given = iter(weights)
        whole = [next(given) if known else leaf for leaf, known in zip(leaves, used, strict=True)]
        return policy.unembed(jax.tree.unflatten(tree, whole), hidden)

    return unembed, list(compress(leaves, used)), list(compress(names, used))


def _shards(P: int) -> int:
    """Over how many devices P prompts are divided; each of them computes a chunk of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else prompt_shards(mesh)
    return parts if P % parts == 0 else 1


def _on_shards(score: Callable[..., Any]) -> Callable[..., Any]:
    """`score` on each device that has prompts. Weights are gathered once and their gradients reduced once: left to
    itself, the compiler does both for each chunk.
    """
    axes = prompt_axes(jax.sharding.get_abstract_mesh())
    chunks, prompts = PartitionSpec(None, axes), PartitionSpec(axes)
    return jax.shard_map(
        score,
        in_specs=(PartitionSpec(), PartitionSpec(), chunks, chunks, prompts),
        out_specs=chunks,
        axis_names=set(axes),
        check_vma=False,
    )


def in_rows(rollouts: Rollouts, slots_PBW: Array | None) -> Rows:
    """The tokens of the responses as they are computed."""
    P, G, T = rollouts.tokens_PGT.shape
    if slots_PBW is None:
        _, response_PGT, position_PGT = jnp.indices((P, G, T), sparse=False)
        return Rows(rollouts.tokens_PGT, rollouts.valid_PGT, position_PGT, response_PGT)

    def take(a_PGT: Array) -> Array:
        return jnp.take_along_axis(a_PGT.reshape(P, -1), jnp.minimum(slots_PBW, G * T - 1).reshape(P, -1), axis=1)

    taken_PBW, valid_PBW = (take(a).reshape(slots_PBW.shape) for a in (rollouts.tokens_PGT, rollouts.valid_PGT))
    used_PBW = slots_PBW < G * T
    response_PBW = jnp.where(used_PBW, slots_PBW // T, 0)
    return Rows(taken_PBW, valid_PBW & used_PBW, jnp.where(used_PBW, slots_PBW % T, 0), response_PBW)


def _experts_in_rows(experts_PGTNe: Array, slots_PBW: Array | None) -> Array:
    """The experts of the token in each slot; any where there is none."""
    if slots_PBW is None:
        return experts_PGTNe
    (P, G, T), of_token = experts_PGTNe.shape[:3], experts_PGTNe.shape[3:]
    index_PX11 = jnp.minimum(slots_PBW, G * T - 1).reshape(P, -1, 1, 1)
    taken = jnp.take_along_axis(experts_PGTNe.reshape(P, G * T, *of_token), index_PX11, axis=1)
    return taken.reshape(*slots_PBW.shape, *of_token)


def _in_responses(a_PBW: Array, rollouts: Rollouts, slots_PBW: Array | None) -> Array:
    """The values of slots, at the tokens that stand in them; zero where there is no action."""
    P, G, T = rollouts.tokens_PGT.shape
    if slots_PBW is not None:
        nothing = jnp.zeros((P, G * T), a_PBW.dtype)
        put = nothing.at[jnp.arange(P)[:, None], slots_PBW.reshape(P, -1)].set(a_PBW.reshape(P, -1), mode="drop")
        a_PBW = put.reshape(P, G, T)
    return jnp.where(rollouts.action_PGT, a_PBW, 0.0)


def _first_positions(rollouts: Rollouts, V: int) -> Int[Array, "P G V"]:
    """Where each token of the vocabulary occurs first: -1 in the prompt, T if nowhere."""
    P, G, T = rollouts.tokens_PGT.shape
    index_P1, index_PG1 = jnp.arange(P)[:, None], jnp.indices((P, G, 1))[:2]
    in_prompt_PL = jnp.where(rollouts.prompts.valid_PL, -1, T)
    first_PV = jnp.full((P, V), T).at[index_P1, rollouts.prompts.tokens_PL].min(in_prompt_PL)
    position_PGT = jnp.where(rollouts.valid_PGT, jnp.arange(T)[None, None], T)
    first_PGV = jnp.broadcast_to(first_PV[:, None], (P, G, V))
    return first_PGV.at[(*index_PG1, rollouts.tokens_PGT)].min(position_PGT)


def _slices(count: int, a_PBW: Array) -> Array:
    """The axis of slots cut into `count` chunks, on a new first axis."""
    P, B, W, *rest = a_PBW.shape
    size = -(-W // count)
    a_PBW = jnp.pad(a_PBW, ((0, 0), (0, 0), (0, count * size - W), *((0, 0) for _ in rest)))
    return jnp.moveaxis(a_PBW.reshape(P, B, count, size, *rest), 2, 0)


def score_tokens(
    logits: Float[Array, "... V"], tokens: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Each token's log-prob, and the entropy of the distribution it comes from, both in nats."""
    top = jnp.max(logits, axis=-1)
    below = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - top
    total, moment = jax.lax.platform_dependent(logits, top, cpu=_sums_in_sections, default=_sums)
    return below - jnp.log(total), jnp.log(total) - moment / total


def _sums(logits: Array, top: Array) -> tuple[Array, Array]:
    """Sums over the last axis of p and of p log p, both relative to the likeliest token, in one pass."""
    log_odds = logits - top[..., None]
    odds, nothing = jnp.exp(log_odds), jnp.zeros((), logits.dtype)
    return jax.lax.reduce((odds, odds * log_odds), (nothing, nothing), _add_pairs, (logits.ndim - 1,))


def _sums_in_sections(logits: Array, top: Array) -> tuple[Array, Array]:
    """The same for a CPU, which adds numbers in their order: many partial sums are faster, and round less."""
    whole = [(0, 0)] * (logits.ndim - 1)
    logits = jnp.pad(logits, (*whole, (0, -logits.shape[-1] % SECTIONS)), constant_values=EXCLUDED)
    size = logits.shape[-1] // SECTIONS

    def add(section: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        log_odds = jax.lax.dynamic_slice_in_dim(logits, section * size, size, axis=-1) - top[..., None]
        odds = jnp.exp(log_odds)
        return sums[0] + odds, sums[1] + odds * log_odds

    nothing = jnp.zeros((*top.shape, size), logits.dtype)
    total, moment = jax.lax.fori_loop(0, SECTIONS, add, (nothing, nothing))
    return jnp.sum(total, axis=-1), jnp.sum(moment, axis=-1)


def _add_pairs(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    return left[0] + right[0], left[1] + right[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score(
    logits: Callable[..., Array],
    weights: list[Array],
    sums: list[Array | None],
    hidden_nPBwD: Array,
    rows: Rows,
    first_PGV: Any,
) -> Any:
    """Log-probs and entropies of chunks, whose logits are `logits(weights, hidden, rows, first)`.

    The gradients of weights with `sums` are added to them: the gradient of the sums is then their new value.
    """
    return _score_forward(logits, weights, sums, hidden_nPBwD, rows, first_PGV)[0]


@jax.named_scope("head")
def _score_forward(
    logits: Callable[..., Array],
    weights: list[Array],
    sums: list[Array | None],
    hidden_nPBwD: Array,
    rows: Rows,
    first_PGV: Any,
) -> Any:
    def score(chunk: tuple[Array, Rows]) -> tuple[tuple[Array, Array], Array]:
        logits_PBwV = logits(weights, *chunk, first_PGV)
        return score_tokens(logits_PBwV, chunk[1].tokens_PBW), logits_PBwV

    earlier, last = _split_last((hidden_nPBwD, rows))
    scores = jax.lax.map(lambda chunk: score(chunk)[0], earlier)
    last_scores, last_PBwV = score(last)
    scores = _join_last(scores, last_scores)
    return scores, (weights, sums, hidden_nPBwD, rows, first_PGV, last_PBwV, *scores)


@jax.named_scope("head")
def _score_backward(logits: Callable[..., Array], saved: tuple, grads: tuple[Array, Array]) -> tuple:
    weights, sums, hidden_nPBwD, rows, first_PGV, last_PBwV, *scores = saved

    def pull(chunk: tuple, known_PBwV: Array | None = None) -> tuple[list[Array], Array]:
        hidden_PBwD, rows, logprob_PBw, entropy_PBw, grad_PBw, entropy_grad_PBw = chunk
        logits_PBwV, back = jax.vjp(lambda *inputs: logits(*inputs, rows, first_PGV), weights, hidden_PBwD)
        logits_PBwV = logits_PBwV if known_PBwV is None else known_PBwV
        token_PBw1 = rows.tokens_PBW[..., None]
        chosen_PBw1 = jnp.take_along_axis(logits_PBwV, token_PBw1, axis=-1)
        logprobs_PBwV = logits_PBwV - (chosen_PBw1 - logprob_PBw[..., None])
        surprise_PBwV = entropy_grad_PBw[..., None] * (logprobs_PBwV + entropy_PBw[..., None])
        grad_PBwV = -jnp.exp(logprobs_PBwV) * (grad_PBw[..., None] + surprise_PBwV)
        is_chosen = token_PBw1 == jnp.arange(logits_PBwV.shape[-1])[None, None, None]
        return back(jnp.where(is_chosen, grad_PBwV + grad_PBw[..., None], grad_PBwV))

    def add(total: list[Array], chunk: tuple) -> tuple[list[Array], Array]:
        more, grad_PBwD = pull(chunk)
        return jax.tree.map(jnp.add, total, list(map(_wide, more))), grad_PBwD

    earlier, last = _split_last((hidden_nPBwD, rows, *scores, *grads))
    total, last_grad_PBwD = pull(last, last_PBwV)
    total = [a if before is None else before + a for a, before in zip(map(_wide, total), sums, strict=True)]
    total, earlier_grads = jax.lax.scan(add, total, earlier)
    of_sums = [None if before is None else a for a, before in zip(total, sums, strict=True)]
    of_weights = [
        a.astype(weight.dtype) if before is None else None
        for a, weight, before in zip(total, weights, sums, strict=True)
    ]
    none = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), (rows, first_PGV))
    return of_weights, of_sums, _join_last(earlier_grads, last_grad_PBwD), *none


def _wide(a: Array) -> Array:
    """In float32, for sums."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def _split_last(chunks: Any) -> tuple[Any, Any]:
    """All chunks but the last, and the last."""
    return jax.tree.map(lambda a: a[:-1], chunks), jax.tree.map(lambda a: a[-1], chunks)


def _join_last(earlier: Any, last: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, last)


_score.defvjp(_score_forward, _score_backward)
