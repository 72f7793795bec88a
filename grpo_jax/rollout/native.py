"""The native sampler: prompts are read once for each group, then every row takes one token a turn in a single loop.

A group is an axis, so all rows share one cursor into caches that hold responses only; the loop ends early when every
row has ended.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.rollout.distributions import draw
from grpo_jax.structs import Params, Policy, Prompts, Rollouts


@dataclass(frozen=True)
class Sampler:
    """Answers each prompt `responses` times, until one of `ends` or `max_tokens`. Temperature 0 is greedy."""

    ends: tuple[int, ...]
    responses: int = 8
    max_tokens: int = 256
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.ends:
            raise ValueError("No end token is known, so no response could end: name at least one in `ends`.")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0 (0 is greedy); got {self.temperature}.")
        if self.responses < 1 or self.max_tokens < 1:
            raise ValueError(f"Nothing to sample: {self.responses} responses of at most {self.max_tokens} tokens.")

    def __call__(self, policy: Policy, params: Params, prompts: Prompts, key: Array) -> Rollouts:
        self.check_room(policy, prompts)
        return _sample(self, policy, params, prompts, key)

    def check_room(self, policy: Policy, prompts: Prompts) -> None:
        """Refuses prompts that leave the model too few positions for the responses."""
        L = prompts.tokens_PL.shape[1]
        if L + self.max_tokens > policy.max_positions:
            raise ValueError(
                f"Prompts of {L} tokens and responses of {self.max_tokens} need {L + self.max_tokens} positions;"
                f" the model has {policy.max_positions}. Lower max_tokens or shorten the prompts."
            )


@partial(jax.jit, static_argnums=(0, 1))
def _sample(sampler: Sampler, policy: Policy, params: Params, prompts: Prompts, key: Array) -> Rollouts:
    P, G, T = prompts.tokens_PL.shape[0], sampler.responses, sampler.max_tokens
    last_PD, prefix = policy.read(params, prompts)
    params = policy.unstack(params)
    empty = {
        "t": jnp.zeros((), jnp.int32),
        "live_PG": jnp.ones((P, G), bool),
        "tokens_PGT": jnp.full((P, G, T), sampler.ends[0], jnp.int32),
        "action_PGT": jnp.zeros((P, G, T), bool),
        "logprobs_PGT": jnp.zeros((P, G, T), jnp.float32),
        "entropy_PGT": jnp.zeros((P, G, T), jnp.float32),
    }

    def take(loop: dict[str, Any], hidden_PGD: Array) -> dict[str, Any]:
        t, live_PG = loop["t"], loop["live_PG"]
        logits_PGV = policy.unembed(params, hidden_PGD)
        token_PG, logprob_PG, entropy_PG = _choose(sampler, logits_PGV, jax.random.fold_in(key, t))
        token_PG = jnp.where(live_PG, token_PG, sampler.ends[0])
        put = partial(jax.lax.dynamic_update_index_in_dim, index=t, axis=2)
        return loop | {
            "t": t + 1,
            "token_PG": token_PG,
            "live_PG": live_PG & ~jnp.isin(token_PG, jnp.asarray(sampler.ends)),
            "tokens_PGT": put(loop["tokens_PGT"], token_PG),
            "action_PGT": put(loop["action_PGT"], live_PG),
            "logprobs_PGT": put(loop["logprobs_PGT"], jnp.where(live_PG, logprob_PG, 0.0)),
            "entropy_PGT": put(loop["entropy_PGT"], jnp.where(live_PG, entropy_PG, 0.0)),
        }

    def turn(loop: dict[str, Any]) -> dict[str, Any]:
        hidden_PGD, cache = policy.extend(params, prefix, loop["cache"], loop["token_PG"], loop["t"] - 1)
        return take(loop | {"cache": cache}, hidden_PGD)

    first = take(empty, jnp.broadcast_to(last_PD[:, None], (P, G, last_PD.shape[1])))
    start = first | {"cache": policy.cache(prefix, G, T)}
    loop = jax.lax.while_loop(lambda loop: (loop["t"] < T) & loop["live_PG"].any(), turn, start)
    per_token = (loop["tokens_PGT"], loop["action_PGT"], loop["action_PGT"], loop["logprobs_PGT"], loop["entropy_PGT"])
    return Rollouts(prompts, *per_token, ended_PG=~loop["live_PG"], temperature=sampler.temperature)


def _choose(sampler: Sampler, logits_PGV: Array, key: Array) -> tuple[Array, Array, Array]:
    """A token for each row, its log-prob, and the entropy of the distribution it was drawn from."""
    if sampler.temperature == 0:
        token_PG = jnp.argmax(logits_PGV, axis=2).astype(jnp.int32)
        certain_PG = jnp.zeros(token_PG.shape, jnp.float32)
        return token_PG, certain_PG, certain_PG
    logits_PGV = logits_PGV / sampler.temperature
    logprobs_PGV = jax.nn.log_softmax(logits_PGV, axis=2)
    token_PG = draw(jax.random.uniform(key, (*logits_PGV.shape[:2], 2)), logprobs_PGV)
    logprob_PG = jnp.take_along_axis(logprobs_PGV, token_PG[:, :, None], axis=2)[:, :, 0]
    return token_PG, logprob_PG, -jnp.sum(jnp.exp(logprobs_PGV) * logprobs_PGV, axis=2)
