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
    P, G, _, D = hidden_PGTD.shape
    first_PG1D = jnp.broadcast_to(last_PD[:, None, None, :], (P, G, 1, D))
    scoring_PGTD = jnp.concatenate([first_PG1D, hidden_PGTD[:, :, :-1]], axis=2)

    def score(hidden_PGtD: Array, tokens_PGt: Array) -> tuple[Array, Array]:
        return score_tokens(policy.unembed(params, hidden_PGtD) / rollouts.temperature, tokens_PGt)

    logprobs_PGT, entropy_PGT = _in_chunks(score, max(1, CHUNK_TOKENS // (P * G)), scoring_PGTD, rollouts.tokens_PGT)
    return jnp.where(rollouts.action_PGT, logprobs_PGT, 0.0), jnp.where(rollouts.action_PGT, entropy_PGT, 0.0)


def score_tokens(
    logits: Float[Array, "... V"], tokens: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Each token's log-prob, and the entropy of the distribution it comes from, both in nats."""
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    mean_logit = jnp.sum(jnp.exp(logits - normalizer[..., None]) * logits, axis=-1)
    return chosen - normalizer, normalizer - mean_logit


def _in_chunks(score, positions: int, hidden_PGTD: Array, tokens_PGT: Array) -> tuple[Array, Array]:
    """`score` over slices of the position axis; the backward pass computes each slice's logits again."""
    P, G, T, D = hidden_PGTD.shape
    if positions >= T:
        return jax.checkpoint(score)(hidden_PGTD, tokens_PGT)
    chunks = -(-T // positions)
    room = chunks * positions - T
    hidden_PGTD = jnp.pad(hidden_PGTD, ((0, 0), (0, 0), (0, room), (0, 0)))
    tokens_PGT = jnp.pad(tokens_PGT, ((0, 0), (0, 0), (0, room)))
    hidden_nPGtD = jnp.moveaxis(hidden_PGTD.reshape(P, G, chunks, positions, D), 2, 0)
    tokens_nPGt = jnp.moveaxis(tokens_PGT.reshape(P, G, chunks, positions), 2, 0)
    scores_nPGt = jax.lax.map(lambda chunk: jax.checkpoint(score)(*chunk), (hidden_nPGtD, tokens_nPGt))
    return jax.tree.map(lambda a_nPGt: jnp.moveaxis(a_nPGt, 0, 2).reshape(P, G, -1)[:, :, :T], scores_nPGt)
