"""Rows of tokens: which positions they have, and what they may attend to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.attention import KeyValues, Scope
from grpo_jax.structs import Prompts

AttendWithin = Callable[[int | None, Array, KeyValues], Array]  # a window, queries, and their row's keys and values


class JointRows(NamedTuple):
    """A prompt and its responses as one row: its tokens, how they attend, and its hidden states in two again."""

    tokens_P1M: Array
    positions_P1M: Array
    attend: AttendWithin
    divide: Callable[[Array], tuple[Array, Array]]


def positions(valid_PL: Array) -> Array:
    """The position of each token in its row, padding on the left aside."""
    return jnp.maximum(jnp.cumsum(valid_PL, axis=1) - 1, 0)


def joined(prompt_PL: Array, responses_PGT: Array) -> Array:
    """One row for each prompt: its tokens, and those of all its responses."""
    return jnp.concatenate([prompt_PL, responses_PGT.reshape(len(prompt_PL), -1)], axis=1)[:, None]


def given_experts(prompts: Prompts, experts_PGTNe: Array | None) -> Array | None:
    """The recorded experts of each layer, for rows of a prompt and all its responses; None if there are none."""
    if experts_PGTNe is None or prompts.experts_PLNe is None:
        return None
    P, _, _, *of_token = experts_PGTNe.shape
    experts_PMNe = jnp.concatenate([prompts.experts_PLNe, experts_PGTNe.reshape(P, -1, *of_token)], axis=1)
    return jnp.moveaxis(experts_PMNe, 2, 0)[:, :, None]


def one_text(valid_PL: Array) -> Scope:
    """The scope of rows that hold one text each, with no prompt before it."""
    return Scope(jnp.zeros(valid_PL.shape, jnp.int32)[:, None], valid_PL[:, None], None)


def reach(window: int | None, index_PG: Array, age_S: Array, valid_PL: Array) -> tuple[Array, Array]:
    """Which own positions `[P, G, 1, S]`, and which of the prompt, the tokens now decoded attend to."""
    age_111S, index_PG11, L = age_S[None, None, None], index_PG[:, :, None, None], valid_PL.shape[1]
    mask_PG1S, prefix_mask = age_111S <= index_PG11, valid_PL[:, None, None]
    if window is not None:
        mask_PG1S &= age_111S < window
        prefix_mask &= index_PG11 + L - jnp.arange(L)[None, None, None] < window
    return mask_PG1S, prefix_mask


def put(ring: Any, new: Any, index: Array) -> Any:
    """Ring buffers with the values of one position."""
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, index, 3), ring, new)
