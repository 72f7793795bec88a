"""The nouns of GRPO: what travels from prompts to an updated policy.

Array names end in their axes, one letter per axis. This is the legend, and there is no other:

    P prompts           G responses to each     L prompt positions      T response positions
    S key positions: of a cache, or all that a row attends to           M positions of a prompt and all its responses
    B packed rows of a prompt's responses       W slots in a packed row
    V vocabulary        J tokens in a block of the vocabulary           R reward parts
    D width             F feed-forward          N layers                C channels per head
    E experts           A rank of an adapter
    H query heads       K key/value heads       Q query heads per key/value head
    X any axis          1 a kept axis of size one                       2 two numbers

A small letter is some of an axis, in its order or another: `index_p` are some prompts, `hidden_PBwD` has some slots of
each row. A small n counts pieces: `hidden_nPBwD` has a first axis of n chunks.

A group is an axis: a prompt is stored once and its G responses are rows of the second axis. Index P of the
first axis is the same prompt in every array. Every per-token array is aligned with its own token. Masks are made where
the information is: the sampler says which tokens it chose (`action`), and which later ones may attend to (`valid`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.distribution import Distribution

Params = dict[str, Any]
Metrics = dict[str, Any]  # numbers by their names in metrics.jsonl: arrays on the devices, or floats


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """Token ids padded on the left, so that every prompt ends at position L-1.

    `experts_PLNe` are the experts of each layer that computed each token when the prompts were answered (None: not
    recorded, or there are none).
    """

    tokens_PL: Array | np.ndarray
    valid_PL: Array | np.ndarray
    experts_PLNe: Array | None = None


def prompt_shapes(P: int, L: int) -> Prompts:
    """Prompts of these sizes as shapes, for programs that are traced and not run."""
    tokens_PL, valid_PL = (jax.ShapeDtypeStruct((P, L), dtype) for dtype in (jnp.int32, bool))
    return Prompts(cast(Array, tokens_PL), cast(Array, valid_PL))


def rollout_shapes(prompts: Prompts, G: int, T: int, distribution: Distribution) -> "Rollouts":
    """Rollouts of these sizes as shapes, for programs that are traced and not run."""
    P = prompts.tokens_PL.shape[0]

    def of(dtype: Any, *shape: int) -> Array:
        return cast(Array, jax.ShapeDtypeStruct(shape, dtype))

    mask, number = of(bool, P, G, T), of(jnp.float32, P, G, T)
    return Rollouts(prompts, of(jnp.int32, P, G, T), mask, mask, number, number, of(bool, P, G), distribution)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollouts:
    """G responses to each prompt, padded on the right, with what the sampler knew when it chose each token.

    `valid` marks tokens later ones may attend to, `action` those the policy chose (its end token included). Log-probs
    and entropies are those of the very distribution that was sampled from; both are zero where there is no action.
    `distribution` is what was done to the logits, so that the trainer can score under the same one.

    `greedy` are the likeliest answers to the same prompts, one each, where an objective compares with them.
    `experts_PGTNe` are the experts of each layer that computed each token, so that learning uses the same ones (None:
    not recorded). The last token of a response computed nothing yet, and those that stand there mean nothing.
    """

    prompts: Prompts
    tokens_PGT: Array
    valid_PGT: Array
    action_PGT: Array
    logprobs_PGT: Array
    entropy_PGT: Array
    ended_PG: Array
    distribution: Distribution = field(metadata={"static": True})
    greedy: "Rollouts | None" = None
    experts_PGTNe: Array | None = None

    @property
    def without_experts(self) -> "Rollouts":
        """The same, for another policy, whose experts are its own."""
        return replace(self, prompts=replace(self.prompts, experts_PLNe=None), experts_PGTNe=None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Responses while the native sampler writes them: P prompts that are held at once, with G rows each.

    All share one cursor into ring buffers of S positions: the token of cursor c stands at index c modulo S.
    """

    cursor: Array  # of the token that is chosen next
    start_PG: Array
    length_PG: Array
    active_PG: Array
    ended_PG: Array
    key_PG: Array
    last_PG: Array
    tokens_PGS: Array
    logprobs_PGS: Array
    entropy_PGS: Array
    seen_PGV: Array | None  # tokens of the prompt and of the response so far, where the distribution penalizes them
    given_PGT: Array | None = None  # tokens that a row reads at this position of its response, -1 where it chooses


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scored:
    """Rewards of a batch, and what else an advantage may look at. NaN is a response that could not be scored.

    `rewards_PG` is the sum of the reward parts `parts_PGR`, weighted by `weights_R`. `steps_PGT` are rewards of single
    tokens, NaN where there are none: of the steps of a solution, or a KL penalty. `greedy_P1` is the reward of the
    greedy response. Only `rewards_PG` is always there; a choice that looks at a field which is None raises an error.
    """

    rewards_PG: Array
    parts_PGR: Array | None = None
    weights_R: Array | None = None
    action_PGT: Array | None = None
    ended_PG: Array | None = None
    steps_PGT: Array | None = None
    greedy_P1: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """What an objective sees of the responses' tokens. Only numbers where `action_PGT` is true mean anything.

    Log-probs, entropies and log-ratios are those of the policy and carry gradients; log-ratios are those of tokens or
    of whole responses, as the objective's `ratio` says. `anchor` holds the log-probs that the ratio compares with,
    `trainer` those of the policy when the batch was made, `sampler` those that the sampler recorded. `keep` is the
    factor that masks give each token (None: one).
    """

    action_PGT: Array
    advantages_PGT: Array
    logprobs_PGT: Array
    entropy_PGT: Array
    log_ratio_PGT: Array
    anchor_PGT: Array
    trainer_PGT: Array
    sampler_PGT: Array
    keep_PGT: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What one update learns from. Advantages have shape PG, or PGT where credit differs between tokens.

    `weights_PGT` says how much each token counts in the loss, fixed for the whole global batch before any gradient.
    `keep_PGT` is the factor that masks give each token's surrogate (None: one), and `term_weights_PGT` are the weights
    of the objective's further terms. `coefficients` are the states of the adaptive coefficients. `old_logprobs_PGT` is
    None if the log-probs of the gradient's own pass are used in their place; a ratio to them is then one. `metrics`
    describe the rollouts and their rewards. `balance` is what the load-balancing loss of a model with experts is
    multiplied by (None: it is not in the loss).
    """

    rollouts: Rollouts
    advantages: Array
    weights_PGT: Array
    keep_PGT: Array | None = None
    term_weights_PGT: tuple[Array, ...] = ()
    coefficients: dict[str, Array] = field(default_factory=dict)
    old_logprobs_PGT: Array | None = None
    ref_logprobs_PGT: Array | None = None
    teacher_logprobs_PGT: Array | None = None
    balance: Array | np.ndarray | None = None
    metrics: Metrics = field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a checkpoint holds: `step` counts updates, one for each batch of rollouts.

    `reference` are the trained parameters of the policy that a KL term compares with, None without one; `coefficients`
    are those that adapt. A checkpoint has no frozen parameters.
    """

    step: Array
    params: Params
    opt_state: Any
    reference: Params | None = None
    coefficients: dict[str, Array] = field(default_factory=dict)


class Summing(NamedTuple):
    """The weights of layers with sums of their gradients, in place of the weights in what `respond` is given.

    The gradient by the sums is then the sums plus the gradient of the weights, and that by the weights is zero.
    """

    weights: Params
    sums: Params


class Layered(NamedTuple):
    """Teacher forcing of given rows as three functions, for a gradient that is taken layer by layer.

    begin(params) -> x                     before the first layer
    layer(weights, n, x) -> x              with the weights of layer n, a part of `params["layers"]`
    end(params, x) -> (last_PD, hidden)    as `respond` returns them

    `begin` and `end` use no parameters of layers.
    """

    begin: Callable[[Params], Array]
    layer: Callable[[Params, Array, Array], Array]
    end: Callable[[Params, Array], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Policy:
    """A language model as pure functions over a plain dict of arrays.

    init(key) -> params
    read(params, prompts) -> (last_PD, prefix)                       one pass over the prompts
    respond(params, prompts, tokens_PGT, valid_PGT, start_PGT) -> (last_PD, hidden_PGTD)      teacher forcing of both
        with trunk_PG, all responses in a row go on from its first so many tokens
        the "layers" of params, if they are trained, may be `Summing`; in `balanced`, too
    balanced(...) -> (last_PD, hidden_PGTD, loss)                    and the load-balancing loss of the responses
    layered(prompts, tokens_PGT, valid_PGT, start_PGT) -> Layered    `respond` layer by layer
    unembed(params, hidden) -> logits                                float32

    and for decoding:

    serve(params) -> served                                          a copy for sampling, which `extend` takes
    cache(prefix, L, G, S, int8) -> (shared, own)                    room for S positions of G responses
    extend(served, shared, own, tokens_PG, cursor, start_PG, active_PG) -> (hidden_PGD, own)    one position for every
        active row
    extend_block(served, shared, own, tokens_PGT, count_PG, index_PG, start_PG) -> own    the first `count` of these
        tokens for every row, from its position `index` on

    Rows of `respond` may hold several responses one after the other; `start` says where each token's response begins.
    Hidden states at position t predict token t+1; `last_PD` predicts the first token of every response. `shared` is the
    prefix as decoding wants it, padded to L positions, its leaves `[P, ...]`; `own` is what the responses add, its
    leaves `[P, G, K, S, ...]` a ring in which the row that began at `start` has the positions from there to `cursor`,
    each modulo S; `start` may be negative. `extend_block` gets the caches of some rows, as groups of one, and writes
    nothing for tokens from `count` on. Whoever replaces `extend` replaces `extend_block`, too, or sets it to None.

    A policy with `experts` records in its cache which experts computed each token: `experts(shared)` and `experts(own)`
    give an array `[P, e, L]` or `[P, G, e, S]` for each layer. `respond` and `balanced` then take those of prompts and
    responses in place of what the router would choose now, the latter as `experts_PGTNe` after `start_PGT`.

    `faster` are policies that compute the same and keep more for the backward pass: learning takes the first that fits.

    Parameters whose first name is in `frozen` are never trained: they have no gradient, no optimiser state, no copy as
    a reference, and are in no checkpoint.
    """

    init: Callable[..., Params]
    read: Callable[..., tuple[Array, Any]]
    respond: Callable[..., tuple[Array, Array]]
    cache: Callable[..., tuple[Any, Any]]
    extend: Callable[..., tuple[Array, Any]]
    unembed: Callable[..., Array]
    serve: Callable[[Params], Params]
    max_positions: int
    balanced: Callable[..., tuple[Array, Array, Array]] | None = None  # None: a model without experts
    experts: Callable[[Any], list[Array]] | None = None  # None: it records none
    layered: Callable[..., Layered] | None = None  # None: its layers cannot be taken one at a time
    extend_block: Callable[..., Any] | None = None  # None: what a row is given is read a token at a time
    live_block: int | None = (
        None  # without int8, blocks of so many positions are read where rows use them; None: all are
    )
    frozen: frozenset[str] = frozenset()  # names in the dict of parameters
    faster: "Mapping[str, Policy]" = field(default_factory=dict)  # by what they keep; the fastest first

    def trained(self, params: Params) -> Params:
        """The parameters that are trained. `params | trained` are all of them again."""
        return {name: value for name, value in params.items() if name not in self.frozen}

    @cached_property
    def shapes(self) -> Params:
        """The shapes and types of the parameters; nothing is computed."""
        return jax.eval_shape(self.init, jax.random.key(0))


def axes_of(name: str) -> str:
    """The axes that a name ends in: "HCD" for "layers/attention/query_HCD"; none for a name without any."""
    found = re.search(r"_([A-Z1]+)$", name)
    return found[1] if found else ""


def bucket(length: int) -> int:
    """The length that shorter ones are padded to, to compile only a few: multiples of 16 up to 128, then four lengths
    for each doubling.
    """
    step = max(16, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step
