"""The distribution a token is drawn from: how logits become probabilities, and the draw.

The sampler draws from it and the trainer scores under it, so both use the same policy. The order is that of
`transformers`: repetition penalty, minimum length, temperature, top-k, top-p, min-p. Top-k and top-p keep the tokens
above a threshold, which is found by bisection over the bits of a float: exact, and without a sort.

Ties: tokens of equal probability are kept or left out together, so top-k keeps more than k tokens if some are as likely
as the k-th, and top-p more than the fewest. In `transformers` top-k does the same, and top-p leaves out those that its
sort puts last. Tokens less likely than the likeliest one by a factor of e^104 are all alike: 0 in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from grpo_jax.ranges import WHOLE, check_range

EXCLUDED = -1e30  # finite, so that zero probability times it is zero, and a softmax over nothing else is not NaN
ONE_BITS = 0x3F800000  # 1.0 as an integer; integers order non-negative floats as the floats themselves
FIRST_PASSES, MORE_PASSES = 14, 4  # of a bisection, before it first looks whether it has ended, and between looks
BLOCK = 128  # tokens; as many as a TPU has lanes, and close to the square root of a vocabulary


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What is done to the logits before a token is drawn: the settings that a sampler and its distribution share."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # keeps so many of the likeliest tokens, and those as likely as the last of them; 0: all
    top_p: float = 1.0  # keeps the fewest of the likeliest tokens that together have this probability
    min_p: float = 0.0  # keeps tokens whose probability is at least this fraction of the highest
    repetition_penalty: float = 1.0  # divides positive logits of tokens that occurred before, multiplies negative ones
    min_tokens: int = 0  # excludes end tokens until a response has so many tokens

    def __post_init__(self) -> None:
        if self.temperature != 0:
            check_range("temperature", self.temperature, least=1e-3, most=100, note="(or 0, which is greedy)")
        check_range("top_k", self.top_k, least=0, most=WHOLE, note="(0 keeps every token)")
        check_range("top_p", self.top_p, above=0, most=1, note="(1 keeps every token)")
        check_range("min_p", self.min_p, least=0, below=1, note="(0 keeps every token)")
        check_range("repetition_penalty", self.repetition_penalty, least=0.01, most=100, note="(1 is none)")
        check_range("min_tokens", self.min_tokens, least=0, most=WHOLE)


@dataclass(frozen=True)
class Distribution(SamplingSettings):
    """How logits become probabilities. A response ends at any of `ends`."""

    ends: tuple[int, ...] = ()

    @property
    def penalizes(self) -> bool:
        """Whether it needs to know which tokens occurred before."""
        return self.repetition_penalty != 1

    def __call__(
        self,
        logits: Float[Array, "*rows V"],
        position: Int[Array, "*rows"],
        seen: Bool[Array, "*rows V"] | None = None,
        chosen: Int[Array, "*rows"] | None = None,
    ) -> Float[Array, "*rows V"]:
        """The logits of this distribution, for a token that has `position` tokens of its response before it.

        `seen` marks the tokens of the prompt and of the response so far. A token that the sampler chose is never
        excluded: the trainer's logits are rounded differently, so it may fall just below a threshold.
        """
        if self.penalizes:
            if seen is None:
                raise ValueError("A repetition penalty needs `seen`, a mask of the tokens that occurred before.")
            logits = jnp.where(seen, logits * self.repetition_penalty ** -jnp.sign(logits), logits)
        token_V = jnp.arange(logits.shape[-1]).reshape((1,) * position.ndim + (-1,))
        if self.min_tokens:
            early = position[..., None] < self.min_tokens
            logits = jnp.where(early & jnp.isin(token_V, jnp.asarray(self.ends)), EXCLUDED, logits)
        if self.temperature == 0:
            return logits
        logits = logits / self.temperature
        kept = self._kept(jax.lax.stop_gradient(logits))
        if kept is None:
            return logits
        kept = kept if chosen is None else kept | (token_V == chosen[..., None])
        return jnp.where(kept, logits, EXCLUDED)

    def _kept(self, logits: Array) -> Array | None:
        if not self.top_k and self.top_p == 1 and not self.min_p:
            return None
        relative = jnp.exp(logits - logits.max(axis=-1, keepdims=True))  # probability over that of the likeliest token
        kept = relative >= self.min_p
        if self.top_k:
            kept_k = _likeliest(relative, lambda mask: mask.sum(axis=-1) >= self.top_k)
            relative = jnp.where(kept_k, relative, 0.0)
            kept &= kept_k
        if self.top_p < 1:
            mass = self.top_p * relative.sum(axis=-1)
            kept &= _likeliest(relative, lambda mask: jnp.where(mask, relative, 0.0).sum(axis=-1) >= mass)
        return kept


def _likeliest(relative: Array, enough: Callable[[Array], Array]) -> Array:
    """A mask of the fewest likeliest tokens for which `enough` holds, given probabilities in [0, 1].

    The threshold is found by bisection, which ends when every row has at most one token between the bounds: all
    thresholds between them choose the same tokens. Whether it has ended is looked at seldom, because devices have to
    agree on it.
    """
    bits = jax.lax.bitcast_convert_type(relative, jnp.int32)

    def halve(_: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = (low + high) // 2
        fits = enough(bits >= middle[..., None])
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    def ambiguous(state: tuple[Array, tuple[Array, Array]]) -> Array:
        done, (low, high) = state
        between = (bits >= low[..., None]) & (bits < high[..., None])
        return (done < ONE_BITS.bit_length()) & jnp.any(between.sum(axis=-1) > 1)

    def halve_more(state: tuple[Array, tuple[Array, Array]]) -> tuple[Array, tuple[Array, Array]]:
        done, interval = state
        return done + MORE_PASSES, jax.lax.fori_loop(0, MORE_PASSES, halve, interval)

    low = jnp.zeros(relative.shape[:-1], jnp.int32)
    interval = jax.lax.fori_loop(0, FIRST_PASSES, halve, (low, jnp.full_like(low, ONE_BITS + 1)))
    _, (low, _) = jax.lax.while_loop(ambiguous, halve_more, (jnp.int32(FIRST_PASSES), interval))
    return bits >= low[..., None]


def draw(
    uniform_PG2: Float[Array, "P G 2"], logits_PGV: Float[Array, "P G V"]
) -> tuple[Int[Array, "P G"], Float[Array, "P G"], Float[Array, "P G"]]:
    """A token, its log-prob, and the entropy of the distribution, in nats.

    A block of the vocabulary is drawn, then a token of that block, each by inverting its cumulative probability. This
    takes two uniform numbers for each token drawn, where a Gumbel draw takes one for each token of the vocabulary. A
    single number would be too coarse (2^-23) to draw from a block as rare as that.
    """
    P, G, V = logits_PGV.shape
    logits_PGV = jnp.pad(logits_PGV, ((0, 0), (0, 0), (0, -V % BLOCK)), constant_values=EXCLUDED)
    logits_PGnJ = logits_PGV.reshape(P, G, -1, BLOCK)
    highest_PG = _in_steps(jnp.max, logits_PGnJ)
    logits_PGnJ -= highest_PG[:, :, None, None]
    relative_PGnJ = jnp.exp(logits_PGnJ)
    mass_PGn = relative_PGnJ.sum(axis=3)
    total_PG = mass_PGn.sum(axis=2)
    block_PG = _find(mass_PGn, uniform_PG2[:, :, 0])
    logits_PGJ = jnp.take_along_axis(logits_PGnJ, block_PG[:, :, None, None], axis=2)[:, :, 0]
    index_PG = _find(jnp.exp(logits_PGJ), uniform_PG2[:, :, 1])
    chosen_PG = jnp.take_along_axis(logits_PGJ, index_PG[:, :, None], axis=2)[:, :, 0]
    mean_PG = _in_steps(jnp.sum, relative_PGnJ * logits_PGnJ) / total_PG
    return block_PG * BLOCK + index_PG, chosen_PG - jnp.log(total_PG), jnp.log(total_PG) - mean_PG


def _in_steps(reduce: Callable[..., Array], a_PGnJ: Array) -> Array:
    """A reduction within each block, then over the results; the compiler would merge the two into a slower one."""
    return reduce(jax.lax.optimization_barrier(reduce(a_PGnJ, axis=3)), axis=2)


def _find(mass_PGn: Array, uniform_PG: Array) -> Array:
    """The first index where the cumulative mass, over its total, exceeds the uniform number; it always has mass."""
    return jax.lax.platform_dependent(mass_PGn, uniform_PG, tpu=_find_by_products, default=_find_in_order)


def _find_in_order(mass_PGn: Array, uniform_PG: Array) -> Array:
    edges_PGn = jnp.cumsum(mass_PGn, axis=2)
    found_PG = jnp.sum(edges_PGn <= uniform_PG[:, :, None] * edges_PGn[:, :, -1:], axis=2)
    last_PG = mass_PGn.shape[2] - 1 - jnp.argmax(mass_PGn[:, :, ::-1] > 0, axis=2)
    return jnp.minimum(found_PG, last_PG).astype(jnp.int32)


def _find_by_products(mass_PGn: Array, uniform_PG: Array) -> Array:
    """The same for a TPU, where a product with a triangular matrix is much faster than a cumulative sum."""
    index_n, has_mass_PGn = jnp.arange(mass_PGn.shape[2]), mass_PGn > 0
    before_nn = (index_n[:, None] <= index_n[None]).astype(mass_PGn.dtype)
    edges_PGn = jnp.matmul(mass_PGn, before_nn[None], precision=jax.lax.Precision.HIGHEST)
    beyond_PGn = edges_PGn > uniform_PG[:, :, None] * edges_PGn[:, :, -1:]
    last_PG = jnp.where(has_mass_PGn, index_n[None, None], 0).max(axis=2)
    first_PG = jnp.where(has_mass_PGn & beyond_PGn, index_n[None, None], mass_PGn.shape[2]).min(axis=2)
    return jnp.minimum(first_PG, last_PG).astype(jnp.int32)


def greedy(logits_PGV: Float[Array, "P G V"]) -> tuple[Int[Array, "P G"], Float[Array, "P G"], Float[Array, "P G"]]:
    """The likeliest token. It is certain, so its log-prob and the entropy are zero."""
    highest_PG1 = logits_PGV.max(axis=2, keepdims=True)
    token_11V = jnp.arange(logits_PGV.shape[2], dtype=jnp.int32)[None, None]
    token_PG = jnp.where(logits_PGV == highest_PG1, token_11V, logits_PGV.shape[2] - 1).min(axis=2)
    certain_PG = jnp.zeros(token_PG.shape, jnp.float32)
    return token_PG, certain_PG, certain_PG
