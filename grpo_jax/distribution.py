"""The distribution a token is drawn from: what is done to the logits, and the draw.

The sampler draws from it and the trainer scores under it, so both mean the same policy. The order is that of
`transformers`: repetition penalty, minimum length, temperature, top-k, top-p, min-p. Truncations keep the tokens above
a threshold found by bisection over the float's bits: no sort, exact, and as cheap on a TPU as on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

EXCLUDED = -1e30  # finite, so that a share of zero times its logit is zero and not NaN
ONE_BITS = 0x3F800000  # 1.0 as an integer; integers order non-negative floats as the floats themselves
BLOCK = 128  # tokens; one lane width, and close to the square root of a vocabulary


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What is done to the logits before a token is drawn: the settings that a sampler and its distribution share."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # so many likeliest tokens; 0: all
    top_p: float = 1.0  # the fewest likeliest tokens with this much probability
    min_p: float = 0.0  # tokens at least this likely, next to the likeliest
    repetition_penalty: float = 1.0  # divides the positive logits of earlier tokens, multiplies others; 1 is none
    min_tokens: int = 0  # no end token before so many tokens

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature >= 0, "at least 0 (0 is greedy)"),
            "top_k": (self.top_k >= 0, "at least 0 (0 keeps every token)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 keeps every token)"),
            "min_p": (0 <= self.min_p < 1, "at least 0 and below 1 (0 keeps every token)"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1 is none)"),
            "min_tokens": (self.min_tokens >= 0, "at least 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}; got {getattr(self, name)}.")


@dataclass(frozen=True)
class Distribution(SamplingSettings):
    """How logits become probabilities. A response ends at any of `ends`."""

    ends: tuple[int, ...] = ()

    @property
    def penalizes(self) -> bool:
        """Whether it has to know which tokens came before."""
        return self.repetition_penalty != 1

    def __call__(
        self,
        logits: Float[Array, "*rows V"],
        place: Int[Array, "*rows"],
        seen: Bool[Array, "*rows V"] | None = None,
        chosen: Int[Array, "*rows"] | None = None,
    ) -> Float[Array, "*rows V"]:
        """The logits of this distribution. `place` counts the response's earlier tokens.

        `chosen` stays possible however its logit has moved: the trainer's rounding is not the sampler's.
        """
        if self.penalizes:
            logits = jnp.where(seen, logits * self.repetition_penalty ** -jnp.sign(logits), logits)
        token_V = jnp.arange(logits.shape[-1]).reshape((1,) * place.ndim + (-1,))
        if self.min_tokens:
            early = place[..., None] < self.min_tokens
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
        odds = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        kept = odds >= self.min_p
        if self.top_k:
            kept_k = _likeliest(odds, lambda mask: mask.sum(axis=-1) >= self.top_k)
            odds = jnp.where(kept_k, odds, 0.0)
            kept &= kept_k
        if self.top_p < 1:
            mass = self.top_p * odds.sum(axis=-1)
            kept &= _likeliest(odds, lambda mask: jnp.where(mask, odds, 0.0).sum(axis=-1) >= mass)
        return kept


def _likeliest(odds: Array, enough: Callable[[Array], Array]) -> Array:
    """The smallest set of tokens of at least some odds that is enough; odds are in [0, 1]."""
    bits = jax.lax.bitcast_convert_type(odds, jnp.int32)

    def halve(_: Array, span: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = span
        middle = (low + high) // 2
        fits = enough(bits >= middle[..., None])
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low = jnp.zeros(odds.shape[:-1], jnp.int32)
    low, _ = jax.lax.fori_loop(0, ONE_BITS.bit_length(), halve, (low, jnp.full_like(low, ONE_BITS + 1)))
    return bits >= low[..., None]


def draw(
    uniform_PG2: Float[Array, "P G 2"], logits_PGV: Float[Array, "P G V"]
) -> tuple[Int[Array, "P G"], Float[Array, "P G"], Float[Array, "P G"]]:
    """A token, its log-prob, and the entropy of the distribution, in nats.

    A block of the vocabulary is drawn, then a token of that block, each by inverting its cumulative probability: two
    uniform numbers a row, where a Gumbel draw needs one for every token. One alone could not tell apart the tokens of
    a block as rare as its own resolution (2^-23).
    """
    P, G, V = logits_PGV.shape
    logits_PGV = jnp.pad(logits_PGV, ((0, 0), (0, 0), (0, -V % BLOCK)), constant_values=EXCLUDED)
    logits_PGnB = logits_PGV.reshape(P, G, -1, BLOCK)
    highest_PG = _in_steps(jnp.max, logits_PGnB)
    logits_PGnB -= highest_PG[:, :, None, None]
    odds_PGnB = jnp.exp(logits_PGnB)
    mass_PGn = odds_PGnB.sum(axis=3)
    total_PG = mass_PGn.sum(axis=2)
    block_PG = _find(mass_PGn, uniform_PG2[:, :, 0])
    logits_PGB = jnp.take_along_axis(logits_PGnB, block_PG[:, :, None, None], axis=2)[:, :, 0]
    place_PG = _find(jnp.exp(logits_PGB), uniform_PG2[:, :, 1])
    chosen_PG = jnp.take_along_axis(logits_PGB, place_PG[:, :, None], axis=2)[:, :, 0]
    mean_PG = _in_steps(jnp.sum, odds_PGnB * logits_PGnB) / total_PG
    return block_PG * BLOCK + place_PG, chosen_PG - jnp.log(total_PG), jnp.log(total_PG) - mean_PG


def _in_steps(reduce: Callable[..., Array], a_PGnB: Array) -> Array:
    """A reduction over blocks and then over their results, which the compiler would merge into a slower one."""
    return reduce(jax.lax.optimization_barrier(reduce(a_PGnB, axis=3)), axis=2)


def _find(mass_PGn: Array, uniform_PG: Array) -> Array:
    """The first place where the share of the cumulative mass exceeds the uniform number; never one without mass."""
    edges_PGn = jnp.cumsum(mass_PGn, axis=2)
    found_PG = jnp.sum(edges_PGn <= uniform_PG[:, :, None] * edges_PGn[:, :, -1:], axis=2)
    last_PG = mass_PGn.shape[2] - 1 - jnp.argmax(mass_PGn[:, :, ::-1] > 0, axis=2)
    return jnp.minimum(found_PG, last_PG).astype(jnp.int32)


def greedy(logits_PGV: Float[Array, "P G V"]) -> tuple[Int[Array, "P G"], Float[Array, "P G"], Float[Array, "P G"]]:
    """The likeliest token, which is certain: log-prob and entropy are zero."""
    highest_PG1 = logits_PGV.max(axis=2, keepdims=True)
    token_11V = jnp.arange(logits_PGV.shape[2], dtype=jnp.int32)[None, None]
    token_PG = jnp.where(logits_PGV == highest_PG1, token_11V, logits_PGV.shape[2] - 1).min(axis=2)
    certain_PG = jnp.zeros(token_PG.shape, jnp.float32)
    return token_PG, certain_PG, certain_PG
