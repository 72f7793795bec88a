"""Token log-probs and entropies under a policy, in chunks: the `[..., V]` arrays are never larger than a chunk.

The only next-token shift of the package is here: hidden states at position t score token t+1, so the response is
scored by the last state of the prompt followed by all states of the response but its last.

The backward pass begins with the last chunk, whose logits are still there, and computes those of the others again.
Their gradient has a short form: with p the probabilities, H the entropy and y the token,
d logprob / d logit_i = [i = y] - p_i and d H / d logit_i = -p_i (log p_i + H).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from grpo_jax.devices.mesh import prompt_parts
from grpo_jax.devices.sharding import ROWS
from grpo_jax.distribution import EXCLUDED
from grpo_jax.structs import Params, Policy, Rollouts

CHUNK_TOKENS = 1024  # logits alive at once on a device, or a position of each row; 0.6 GB for V = 150k
PARTS = 48  # of a vocabulary, added to one another on a CPU before their sum is taken


class _Rows(NamedTuple):
    """Tokens as they are computed: in rows of slots, possibly several responses to a row."""

    tokens_PRS: Array
    valid_PRS: Array
    place_PRS: Array  # in the token's own response
    response_PRS: Array


def token_logprobs(
    policy: Policy, params: Params, rollouts: Rollouts, slots_PRS: Int[Array, "P R S"] | None = None
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Float32 log-probs and entropies of the responses' tokens, differentiable; zero where there is no action.

    `slots_PRS` computes several responses in one row: see `packing.Part`.
    """
    rows = _in_rows(rollouts, slots_PRS)
    P, R, S = rows.tokens_PRS.shape
    start_PRS = jnp.arange(S)[None, None] - rows.place_PRS
    last_PD, hidden_PRSD = policy.respond(params, rollouts.prompts, rows.tokens_PRS, rows.valid_PRS, start_PRS)
    earlier_PRSD = jnp.pad(hidden_PRSD[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    scoring_PRSD = jnp.where(rows.place_PRS[..., None] == 0, last_PD[:, None, None], earlier_PRSD)
    shards = _shards(P)
    count = -(-S // max(1, CHUNK_TOKENS * shards // (P * R)))
    hidden_nPRsD, rows_n = jax.tree.map(partial(_slices, count), (scoring_PRSD, rows))
    unembed, weights = _head(policy, params, hidden_nPRsD[0])
    first_PGV = None
    if rollouts.distribution.penalizes:
        V = jax.eval_shape(policy.unembed, params, last_PD).shape[-1]
        first_PGV = _first_places(rollouts, V)

    def logits(weights: list[Array], hidden_PRsD: Array, rows: _Rows, first_PGV: Array | None) -> Array:
        seen_PRsV = None
        if first_PGV is not None:
            place_P11 = jnp.arange(len(first_PGV))[:, None, None]
            seen_PRsV = first_PGV[place_P11, rows.response_PRS] < rows.place_PRS[..., None]
        return rollouts.distribution(unembed(weights, hidden_PRsD), rows.place_PRS, seen_PRsV, rows.tokens_PRS)

    score = partial(_score, logits) if shards == 1 else _on_shards(partial(_score, logits))
    scores = score(weights, hidden_nPRsD, rows_n, first_PGV)
    logprobs, entropy = (jnp.moveaxis(a_nPRs, 0, 2).reshape(P, R, -1)[:, :, :S] for a_nPRs in scores)
    return tuple(_in_responses(a_PRS, rollouts, slots_PRS) for a_PRS in (logprobs, entropy))


def _head(policy: Policy, params: Params, hidden: Array) -> tuple[Callable[..., Array], list[Array]]:
    """`policy.unembed` as a function of the parameters that it uses, and those."""
    leaves, tree = jax.tree.flatten(params)
    jaxpr = jax.make_jaxpr(policy.unembed)(params, hidden).jaxpr
    used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1][: len(leaves)]

    def unembed(weights: list[Array], hidden: Array) -> Array:
        given = iter(weights)
        whole = [next(given) if known else leaf for leaf, known in zip(leaves, used, strict=True)]
        return policy.unembed(jax.tree.unflatten(tree, whole), hidden)

    return unembed, [leaf for leaf, known in zip(leaves, used, strict=True) if known]


def _shards(P: int) -> int:
    """Over how many devices P prompts are divided: each computes a chunk's logits of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else prompt_parts(mesh)
    return parts if P % parts == 0 else 1


def _on_shards(score: Callable[..., Any]) -> Callable[..., Any]:
    """`score` on each device that has prompts, with the weights put together once and their gradients added up once:
    left to itself, the compiler does both for each chunk.
    """
    chunks, prompts = PartitionSpec(None, ROWS), PartitionSpec(ROWS)
    return jax.shard_map(
        score,
        in_specs=(PartitionSpec(), chunks, chunks, prompts),
        out_specs=chunks,
        axis_names=set(ROWS),
        check_vma=False,
    )


def _in_rows(rollouts: Rollouts, slots_PRS: Array | None) -> _Rows:
    P, G, T = rollouts.tokens_PGT.shape
    if slots_PRS is None:
        _, response_PGT, place_PGT = jnp.indices((P, G, T), sparse=False)
        return _Rows(rollouts.tokens_PGT, rollouts.valid_PGT, place_PGT, response_PGT)

    def take(a_PGT: Array) -> Array:
        return jnp.take_along_axis(a_PGT.reshape(P, -1), jnp.minimum(slots_PRS, G * T - 1).reshape(P, -1), axis=1)

    taken_PRS, valid_PRS = (take(a).reshape(slots_PRS.shape) for a in (rollouts.tokens_PGT, rollouts.valid_PGT))
    used_PRS = slots_PRS < G * T
    response_PRS = jnp.where(used_PRS, slots_PRS // T, 0)
    return _Rows(taken_PRS, valid_PRS & used_PRS, jnp.where(used_PRS, slots_PRS % T, 0), response_PRS)


def _in_responses(a_PRS: Array, rollouts: Rollouts, slots_PRS: Array | None) -> Array:
    """Values of slots where their tokens are; zero where there is no action."""
    P, G, T = rollouts.tokens_PGT.shape
    if slots_PRS is not None:
        nothing = jnp.zeros((P, G * T), a_PRS.dtype)
        put = nothing.at[jnp.arange(P)[:, None], slots_PRS.reshape(P, -1)].set(a_PRS.reshape(P, -1), mode="drop")
        a_PRS = put.reshape(P, G, T)
    return jnp.where(rollouts.action_PGT, a_PRS, 0.0)


def _first_places(rollouts: Rollouts, V: int) -> Int[Array, "P G V"]:
    """Where each token of the vocabulary is first met: -1 in the prompt, T if nowhere."""
    P, G, T = rollouts.tokens_PGT.shape
    index_P1, index_PG1 = jnp.arange(P)[:, None], jnp.indices((P, G, 1))[:2]
    in_prompt_PL = jnp.where(rollouts.prompts.valid_PL, -1, T)
    first_PV = jnp.full((P, V), T).at[index_P1, rollouts.prompts.tokens_PL].min(in_prompt_PL)
    place_PGT = jnp.where(rollouts.valid_PGT, jnp.arange(T)[None, None], T)
    first_PGV = jnp.broadcast_to(first_PV[:, None], (P, G, V))
    return first_PGV.at[(*index_PG1, rollouts.tokens_PGT)].min(place_PGT)


def _slices(count: int, a_PRS: Array) -> Array:
    """The position axis cut into `count` slices, on a new first axis."""
    P, R, S, *rest = a_PRS.shape
    size = -(-S // count)
    a_PRS = jnp.pad(a_PRS, ((0, 0), (0, 0), (0, count * size - S), *((0, 0) for _ in rest)))
    return jnp.moveaxis(a_PRS.reshape(P, R, count, size, *rest), 2, 0)


def score_tokens(
    logits: Float[Array, "... V"], tokens: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Each token's log-prob, and the entropy of the distribution it comes from, both in nats."""
    top = jnp.max(logits, axis=-1)
    below = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - top
    total, moment = jax.lax.platform_dependent(logits, top, cpu=_sums_in_parts, default=_sums)
    return below - jnp.log(total), jnp.log(total) - moment / total


def _sums(logits: Array, top: Array) -> tuple[Array, Array]:
    """Sums over the last axis of odds and of odds times log-odds, relative to the likeliest token, in one pass."""
    log_odds = logits - top[..., None]
    odds, nothing = jnp.exp(log_odds), jnp.zeros((), logits.dtype)
    return jax.lax.reduce((odds, odds * log_odds), (nothing, nothing), _add_pairs, (logits.ndim - 1,))


def _sums_in_parts(logits: Array, top: Array) -> tuple[Array, Array]:
    """The same for a CPU, which adds numbers in their order: many sums at once are faster, and round less."""
    whole = [(0, 0)] * (logits.ndim - 1)
    logits = jnp.pad(logits, (*whole, (0, -logits.shape[-1] % PARTS)), constant_values=EXCLUDED)
    size = logits.shape[-1] // PARTS

    def add(part: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        log_odds = jax.lax.dynamic_slice_in_dim(logits, part * size, size, axis=-1) - top[..., None]
        odds = jnp.exp(log_odds)
        return sums[0] + odds, sums[1] + odds * log_odds

    nothing = jnp.zeros((*top.shape, size), logits.dtype)
    total, moment = jax.lax.fori_loop(0, PARTS, add, (nothing, nothing))
    return jnp.sum(total, axis=-1), jnp.sum(moment, axis=-1)


def _add_pairs(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    return left[0] + right[0], left[1] + right[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score(logits: Callable[..., Array], weights: list[Array], hidden_nPRsD: Array, rows: _Rows, first_PGV: Any) -> Any:
    """Log-probs and entropies of chunks, whose logits are `logits(weights, hidden, rows, first)`."""
    return _score_forward(logits, weights, hidden_nPRsD, rows, first_PGV)[0]


def _score_forward(
    logits: Callable[..., Array], weights: list[Array], hidden_nPRsD: Array, rows: _Rows, first_PGV: Any
) -> Any:
    def score(chunk: tuple[Array, _Rows]) -> tuple[tuple[Array, Array], Array]:
        logits_PRsV = logits(weights, *chunk, first_PGV)
        return score_tokens(logits_PRsV, chunk[1].tokens_PRS), logits_PRsV

    earlier, last = _apart((hidden_nPRsD, rows))
    scores = jax.lax.map(lambda chunk: score(chunk)[0], earlier)
    last_scores, last_PRsV = score(last)
    scores = _together(scores, last_scores)
    return scores, (weights, hidden_nPRsD, rows, first_PGV, last_PRsV, *scores)


def _score_backward(logits: Callable[..., Array], saved: tuple, slopes: tuple[Array, Array]) -> tuple:
    weights, hidden_nPRsD, rows, first_PGV, last_PRsV, *scores = saved

    def pull(chunk: tuple, known_PRsV: Array | None = None) -> tuple[list[Array], Array]:
        hidden_PRsD, rows, logprob_PRs, entropy_PRs, slope_PRs, entropy_slope_PRs = chunk
        logits_PRsV, back = jax.vjp(lambda *inputs: logits(*inputs, rows, first_PGV), weights, hidden_PRsD)
        logits_PRsV = logits_PRsV if known_PRsV is None else known_PRsV
        token_PRs1 = rows.tokens_PRS[..., None]
        chosen_PRs1 = jnp.take_along_axis(logits_PRsV, token_PRs1, axis=-1)
        logprobs_PRsV = logits_PRsV - (chosen_PRs1 - logprob_PRs[..., None])
        surprise_PRsV = entropy_slope_PRs[..., None] * (logprobs_PRsV + entropy_PRs[..., None])
        slope_PRsV = -jnp.exp(logprobs_PRsV) * (slope_PRs[..., None] + surprise_PRsV)
        is_chosen = token_PRs1 == jnp.arange(logits_PRsV.shape[-1])[None, None, None]
        return back(jnp.where(is_chosen, slope_PRsV + slope_PRs[..., None], slope_PRsV))

    def add(total: list[Array], chunk: tuple) -> tuple[list[Array], Array]:
        more, slope_PRsD = pull(chunk)
        return jax.tree.map(jnp.add, total, more), slope_PRsD

    earlier, last = _apart((hidden_nPRsD, rows, *scores, *slopes))
    total, last_slope_PRsD = pull(last, last_PRsV)
    total, earlier_slopes = jax.lax.scan(add, total, earlier)
    none = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), (rows, first_PGV))
    return total, _together(earlier_slopes, last_slope_PRsD), *none


def _apart(chunks: Any) -> tuple[Any, Any]:
    """All chunks but the last, and the last."""
    return jax.tree.map(lambda a: a[:-1], chunks), jax.tree.map(lambda a: a[-1], chunks)


def _together(earlier: Any, last: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, last)


_score.defvjp(_score_forward, _score_backward)
