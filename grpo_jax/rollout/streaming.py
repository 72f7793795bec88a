"""One response, token by token as it is sampled: for somebody who reads it."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.rollout import stages
from grpo_jax.rollout.native import Sampler
from grpo_jax.rollout.serving import row_keys
from grpo_jax.rollout.sizes import prefix_length
from grpo_jax.structs import Params, Policy, Prompts, bucket

EACH = stages.Until(cursor=0, prompts=-1, width=1, free=2)  # the cursor is set to that of the next token


def stream(
    sampler: Sampler, policy: Policy, params: Params, served: Params, prompts: Prompts, key: Array
) -> Iterator[int]:
    """The tokens of the response to the one prompt, its end token included. `served` is `policy.serve(params)`."""
    sampler.check_room(policy, prompts)
    L, distribution = prompts.tokens_PL.shape[1], sampler.distribution
    padding = ((0, 0), (bucket(L) - L, 0))
    prompts = Prompts(np.pad(prompts.tokens_PL, padding), np.pad(prompts.valid_PL, padding))
    shape = (prefix_length(L), 1, sampler.max_tokens)
    last_PD, shared, own = stages.read(policy, params, prompts, shape, sampler.int8_cache, None)
    seen = prompts if distribution.penalizes else None
    keys_PG, T = row_keys(key, 1, 1), sampler.max_tokens
    rows = stages.begin(policy, distribution, served, seen, last_PD, keys_PG, T, T, None)
    yield int(rows.last_PG[0, 0])
    while bool(rows.active_PG[0, 0]):
        until = EACH._replace(cursor=int(rows.cursor) + 1)
        own, rows = stages.decode(policy, distribution, served, shared, own, rows, T, until, None)
        yield int(rows.last_PG[0, 0])


def serving_copy(policy: Policy, params: Params) -> Params:
    """The copy of the weights that sampling reads, made once for all responses."""
    return jax.tree.map(jnp.asarray, policy.serve(params))
