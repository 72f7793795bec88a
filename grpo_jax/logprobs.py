"""Token log-probs and entropies under a policy, in chunks: the `[..., V]` arrays are never larger than a chunk.

The only next-token shift of the package is here: hidden states at position t score token t+1, so the response is
scored by the last state of the prompt followed by all states of the response but its last.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from grpo_jax.structs import Params, Policy, Rollouts

CHUNK_TOKENS = 1024  # logits alive at once, or one position of each row if there are more rows; 0.6 GB for V = 150k


def token_logprobs(
    policy: Policy, params: Params, rollouts: Rollouts
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Float32 log-probs and entropies of the responses' tokens, differentiable; zero where there is no action."""
    last_PD, prefix = policy.read(params, rollouts.prompts)
    hidden_PGTD = policy.respond(params, prefix, rollouts.tokens_PGT, rollouts.valid_PGT)
    P, G, T, D = hidden_PGTD.shape
    first_PG1D = jnp.broadcast_to(last_PD[:, None, None, :], (P, G, 1, D))
    scoring_PGTD = jnp.concatenate([first_PG1D, hidden_PGTD[:, :, :-1]], axis=2)
    place_PGT = jnp.broadcast_to(jnp.arange(T)[None, None], (P, G, T))
    first_PGV = None

    def score(hidden_PGtD: Array, tokens_PGt: Array, place_PGt: Array) -> tuple[Array, Array]:
        logits_PGtV = policy.unembed(params, hidden_PGtD)
        seen_PGtV = None if first_PGV is None else first_PGV[:, :, None] < place_PGt[..., None]
        return score_tokens(rollouts.distribution(logits_PGtV, place_PGt, seen_PGtV, tokens_PGt), tokens_PGt)

    if rollouts.distribution.penalizes:
        V = jax.eval_shape(policy.unembed, params, last_PD).shape[-1]
        first_PGV = _first_places(rollouts, V)
    per_token = (scoring_PGTD, rollouts.tokens_PGT, place_PGT)
    logprobs_PGT, entropy_PGT = _in_chunks(score, max(1, CHUNK_TOKENS // (P * G)), per_token)
    return jnp.where(rollouts.action_PGT, logprobs_PGT, 0.0), jnp.where(rollouts.action_PGT, entropy_PGT, 0.0)


def _first_places(rollouts: Rollouts, V: int) -> Int[Array, "P G V"]:
    """Where each token of the vocabulary is first met: -1 in the prompt, T if nowhere."""
    P, G, T = rollouts.tokens_PGT.shape
    index_P1, index_PG1 = jnp.arange(P)[:, None], jnp.indices((P, G, 1))[:2]
    in_prompt_PL = jnp.where(rollouts.prompts.valid_PL, -1, T)
    first_PV = jnp.full((P, V), T).at[index_P1, rollouts.prompts.tokens_PL].min(in_prompt_PL)
    place_PGT = jnp.where(rollouts.valid_PGT, jnp.arange(T)[None, None], T)
    first_PGV = jnp.broadcast_to(first_PV[:, None], (P, G, V))
    return first_PGV.at[(*index_PG1, rollouts.tokens_PGT)].min(place_PGT)


def score_tokens(
    logits: Float[Array, "... V"], tokens: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Each token's log-prob, and the entropy of the distribution it comes from, both in nats."""
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    mean_logit = jnp.sum(jnp.exp(logits - normalizer[..., None]) * logits, axis=-1)
    return chosen - normalizer, normalizer - mean_logit


def _in_chunks(score, positions: int, per_token: tuple[Array, ...]) -> tuple[Array, Array]:
    """`score` over slices of the position axis; the backward pass computes each slice's logits again."""
    P, G, T = per_token[0].shape[:3]
    if positions >= T:
        return jax.checkpoint(score)(*per_token)
    chunks = -(-T // positions)

    def slices(a_PGT: Array) -> Array:
        rest = a_PGT.shape[3:]
        a_PGT = jnp.pad(a_PGT, ((0, 0), (0, 0), (0, chunks * positions - T), *((0, 0) for _ in rest)))
        return jnp.moveaxis(a_PGT.reshape(P, G, chunks, positions, *rest), 2, 0)

    scores_nPGt = jax.lax.map(lambda chunk: jax.checkpoint(score)(*chunk), tuple(map(slices, per_token)))
    return jax.tree.map(lambda a_nPGt: jnp.moveaxis(a_nPGt, 0, 2).reshape(P, G, -1)[:, :, :T], scores_nPGt)
