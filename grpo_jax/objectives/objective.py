"""An objective: one choice along each axis. Anything of the right shape can take a place.

    loss = sum(weights * (kl.coefficient * kl - keep * correction * surrogate(tokens))) - sum of terms

Before the gradient, once for the whole batch, from the rewards:

- shaping     `Scored` -> `Scored`: rewards into other rewards                          (shaping.py)
- select      `Scored` -> keep_PG: who takes part in its group; the rest have no advantage and count nowhere
- advantage   `Scored` -> advantages_PG or advantages_PGT                               (advantages.py)
- prune       (`Scored`, advantages) -> keep_PG: who takes part in the loss
- weighting   (action_PGT, counted_PG) -> weights_PGT: how much each token counts       (weightings.py)
- masks       (`Tokens`, key) -> keep_PGT: which tokens move the policy                 (corrections.py)

With the gradient, for some prompts at a time, response by response:

- anchor      what the ratio compares with: the policy of the moment, of when the batch was prepared, or the sampler's
- ratio       differences of log-probs -> log-ratios, by token or by response           (ratios.py)
- surrogate   `Tokens` -> what to maximise, by token                                    (surrogates.py)
- correction  `Tokens` -> weights, for a sampler that is not the trainer                (corrections.py)
- live_masks  `Tokens` -> keep_PGT, by the policy of the moment
- kl, terms   the pull to a reference policy, and whatever else is maximised            (penalties.py)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jaxtyping import Float

from grpo_jax.objectives.advantages import weighted_total
from grpo_jax.objectives.penalties import KL, Coefficient, Term
from grpo_jax.objectives.ratios import token
from grpo_jax.structs import Batch, Rollouts, Scored, Tokens


@dataclass(frozen=True)
class Objective:
    """Called with log-probs, entropies and a batch, it gives the loss and sums over action tokens."""

    advantage: Callable[[Scored], Array]
    surrogate: Callable[[Tokens], Array]
    weighting: Callable[[Array, Array], Array]
    ratio: Callable[[Array, Array], Array] = token
    anchor: Literal["current", "recomputed", "sampler"] = "recomputed"
    shaping: tuple[Callable[[Scored], Scored], ...] = ()
    select: tuple[Callable[[Scored], Array], ...] = ()
    prune: tuple[Callable[[Scored, Array], Array], ...] = ()
    masks: tuple[Callable[[Tokens, Array], Array], ...] = ()
    correction: Callable[[Tokens], Array] | None = None
    live_masks: tuple[Callable[[Tokens], Array], ...] = ()
    kl: KL | None = None
    terms: tuple[Term, ...] = ()
    distillation: float = 0.0  # weight of the teacher's log-prob less the policy's, added to each token's advantage
    greedy_baseline: bool = False  # each prompt is answered greedily too, for an advantage that asks for it

    def __post_init__(self) -> None:
        if self.anchor == "sampler" and self.correction is not None:
            raise ValueError(
                "With the sampler as anchor, the ratio corrects for the sampler already: leave out the correction"
                " (correction: null), or use another anchor."
            )
        if self.anchor not in ("current", "recomputed", "sampler"):
            raise ValueError(f"The anchor is current, recomputed or sampler; got {self.anchor!r}.")

    def __call__(
        self, logprobs_PGT: Float[Array, "P G T"], entropy_PGT: Float[Array, "P G T"], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of these prompts, and statistics to divide by the number of action tokens of the whole batch."""
        tokens = self.tokens(logprobs_PGT, entropy_PGT, batch)
        action_PGT = tokens.action_PGT
        gain_PGT = self._kept(tokens, batch) * self.surrogate(tokens)
        sums = _without_gradient(self.surrogate, tokens)
        if self.distillation:
            ahead_PGT = stop_gradient(logprobs_PGT) - batch.teacher_logprobs_PGT
            sums["teacher_kl"] = jnp.sum(jnp.where(action_PGT, ahead_PGT, 0.0))
        if self.needs_reference:
            ref_PGT = jnp.where(action_PGT, batch.ref_logprobs_PGT, logprobs_PGT)
            kl_PGT = self.kl.estimator(logprobs_PGT, ref_PGT)
            if self.kl.ratio is not None:
                difference_PGT = jnp.where(action_PGT, logprobs_PGT - tokens.trainer_PGT, 0.0)
                room_PGT = 80.0 - jnp.log1p(jnp.abs(stop_gradient(kl_PGT)))  # or the product would be infinite
                kl_PGT = kl_PGT * jnp.exp(jnp.minimum(self.kl.ratio(difference_PGT, action_PGT), room_PGT))
            sums["kl"] = jnp.sum(jnp.where(action_PGT, kl_PGT, 0.0))
            if self.kl.place == "loss":
                gain_PGT = gain_PGT - in_effect("kl", self.kl.coefficient, batch) * kl_PGT
        gain = jnp.sum(jnp.where(action_PGT, batch.weights_PGT * gain_PGT, 0.0))
        for index, (term, weights_PGT) in enumerate(zip(self.terms, batch.term_weights_PGT, strict=True)):
            value_PGT = jnp.where(action_PGT, weights_PGT * term.value(tokens), 0.0)
            gain = gain + in_effect(_term(index), term.coefficient, batch) * jnp.sum(value_PGT)
        return -gain, sums

    def tokens(self, logprobs_PGT: Array, entropy_PGT: Array, batch: Batch) -> Tokens:
        """What surrogate, correction and masks see."""
        action_PGT, sampler_PGT = batch.rollouts.action_PGT, batch.rollouts.logprobs_PGT
        now_PGT = stop_gradient(logprobs_PGT)
        trainer_PGT = now_PGT if batch.old_logprobs_PGT is None else batch.old_logprobs_PGT
        anchor_PGT = {"current": now_PGT, "recomputed": trainer_PGT, "sampler": sampler_PGT}[self.anchor]
        known_PGT = action_PGT & ~jnp.isnan(anchor_PGT)
        anchor_PGT = jnp.where(known_PGT, anchor_PGT, now_PGT)
        advantages_PGT = _per_token(batch.advantages, action_PGT)
        if self.distillation:
            ahead_PGT = jnp.where(action_PGT, batch.teacher_logprobs_PGT - trainer_PGT, 0.0)
            advantages_PGT = advantages_PGT + self.distillation * ahead_PGT
        log_ratio_PGT = self.ratio(jnp.where(known_PGT, logprobs_PGT - anchor_PGT, 0.0), action_PGT)
        return Tokens(
            action_PGT, advantages_PGT, logprobs_PGT, entropy_PGT, log_ratio_PGT, anchor_PGT, trainer_PGT, sampler_PGT
        )

    def _kept(self, tokens: Tokens, batch: Batch) -> Array:
        """What masks and the correction leave of each token's surrogate."""
        kept_PGT = jnp.ones(tokens.action_PGT.shape) if batch.keep_PGT is None else batch.keep_PGT
        if self.correction is not None:
            kept_PGT = kept_PGT * self.correction(tokens)
        for mask in self.live_masks:
            kept_PGT = kept_PGT * mask(tokens)
        return stop_gradient(kept_PGT)

    def batch(
        self,
        rollouts: Rollouts,
        scored: Scored,
        key: Array,
        old_logprobs_PGT: Array | None = None,
        ref_logprobs_PGT: Array | None = None,
        teacher_logprobs_PGT: Array | None = None,
        coefficients: dict[str, Array] | None = None,
    ) -> Batch:
        """The batch to learn from: all that is decided before the gradient. What does not count has no tokens left."""
        scored = self._penalized(scored, rollouts, old_logprobs_PGT, ref_logprobs_PGT, coefficients or {})
        for shape in self.shaping:
            scored = shape(scored)
        known_PG = ~jnp.isnan(scored.rewards_PG)
        counted_PG = jnp.ones_like(known_PG) if self.distillation else known_PG  # a teacher needs no reward
        for select in self.select:
            counted_PG &= select(scored)
        scored = _only(scored, counted_PG)
        advantages = self.advantage(scored)
        if advantages.shape not in (rollouts.action_PGT.shape, rollouts.action_PGT.shape[:2]):
            raise ValueError(
                f"An advantage is a number for each response or token, {rollouts.action_PGT.shape[:2]} or"
                f" {rollouts.action_PGT.shape}; {self.advantage} gave {advantages.shape}."
            )
        for prune in self.prune:
            counted_PG &= prune(scored, advantages)
        left_PG1 = counted_PG[:, :, None]
        action_PGT, valid_PGT = rollouts.action_PGT & left_PG1, rollouts.valid_PGT & left_PG1
        rollouts = replace(rollouts, action_PGT=action_PGT, valid_PGT=valid_PGT)
        batch = Batch(
            rollouts,
            advantages,
            self.weighting(action_PGT, counted_PG),
            coefficients=coefficients or {},
            old_logprobs_PGT=old_logprobs_PGT,
            ref_logprobs_PGT=ref_logprobs_PGT,
            teacher_logprobs_PGT=teacher_logprobs_PGT,
        )
        return self._masked(batch, counted_PG, key)

    def _penalized(self, scored: Scored, rollouts: Rollouts, old_PGT, ref_PGT, coefficients) -> Scored:
        """Rewards less the KL penalty, where that is its place."""
        if not self.needs_reference or self.kl.place == "loss":
            return scored
        kl_PGT = jnp.where(rollouts.action_PGT, self.kl.estimator(old_PGT, ref_PGT), 0.0)
        kl_PGT = _value("kl", self.kl.coefficient, coefficients) * kl_PGT
        scored = replace(scored, rewards_PG=scored.rewards_PG - jnp.sum(kl_PGT, axis=2))
        if self.kl.place == "reward":
            return scored
        steps_PGT = -kl_PGT if scored.steps_PGT is None else jnp.nan_to_num(scored.steps_PGT) - kl_PGT
        return replace(scored, steps_PGT=steps_PGT)

    def _masked(self, batch: Batch, counted_PG: Array, key: Array) -> Batch:
        """A batch with what masks leave of it, and the weights of further terms."""
        if not self.masks and not self.terms:
            return batch
        rollouts = batch.rollouts
        old_PGT = rollouts.logprobs_PGT if batch.old_logprobs_PGT is None else batch.old_logprobs_PGT
        tokens = self.tokens(old_PGT, rollouts.entropy_PGT, batch)
        keep_PGT = rollouts.action_PGT
        for index, mask in enumerate(self.masks):
            keep_PGT = keep_PGT & mask(tokens, jax.random.fold_in(key, index))
        weights = []
        for index, term in enumerate(self.terms):
            weights_PGT = batch.weights_PGT if term.weighting is None else term.weighting(keep_PGT, counted_PG)
            if term.mask is not None:
                weights_PGT = weights_PGT * term.mask(tokens, jax.random.fold_in(key, len(self.masks) + index))
            weights.append(weights_PGT)
        kept_PGT = keep_PGT.astype(jnp.float32) if self.masks else None
        return replace(batch, keep_PGT=kept_PGT, term_weights_PGT=tuple(weights))

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy has to be held in memory."""
        return self.kl is not None and self.kl.coefficient != 0

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether log-probs have to be computed before the advantage, however few updates follow."""
        return self.needs_reference and self.kl.place != "loss"

    @property
    def compares_with_old(self) -> bool:
        """Whether later minibatches have to know the log-probs from before the first."""
        compares = self.anchor == "recomputed" or self.correction is not None or self.distillation != 0
        return compares or bool(self.live_masks) or (self.needs_reference and self.kl.ratio is not None)

    def adaptive(self) -> dict[str, Coefficient]:
        """The coefficients that adapt, by name."""
        named = {_term(index): term.coefficient for index, term in enumerate(self.terms)}
        if self.kl is not None:
            named["kl"] = self.kl.coefficient
        return {name: given for name, given in named.items() if not isinstance(given, int | float)}

    def first_coefficients(self) -> dict[str, Array]:
        """What adaptive coefficients start from."""
        return {name: given.begin() for name, given in self.adaptive().items()}

    def next_coefficients(
        self, coefficients: dict[str, Array], measured: Mapping[str, Array | float]
    ) -> dict[str, Array]:
        """Adaptive coefficients after a step in which this was measured."""
        adaptive, followed = self.adaptive(), {}
        for name, before in coefficients.items():
            watched = adaptive[name].watches
            if watched not in measured:
                raise ValueError(f"The coefficient of {name} watches {watched}; measured are {', '.join(measured)}.")
            value = jnp.asarray(measured[watched], jnp.float32)
            followed[name] = jnp.where(jnp.isfinite(value), adaptive[name].follow(before, value), before)
        return followed


def scored_of(rewards_PGR: Array, weights_R: Array, rollouts: Rollouts, **known: Array | None) -> Scored:
    """Rewards of rollouts with their total."""
    rewards_PG = weighted_total(rewards_PGR, weights_R)
    return Scored(rewards_PG, rewards_PGR, weights_R, rollouts.action_PGT, rollouts.ended_PG, **known)


def in_effect(name: str, given: Coefficient, batch: Batch) -> Array | float:
    """A coefficient as it is at this step."""
    return _value(name, given, batch.coefficients)


def _value(name: str, given: Coefficient, coefficients: dict[str, Array]) -> Array | float:
    return given if isinstance(given, int | float) else coefficients[name][1]


def _term(index: int) -> str:
    return f"term {index + 1}"


def _only(scored: Scored, counted_PG: Array) -> Scored:
    """Rewards of those who take part, as if the others could not have been scored."""
    rewards_PG = jnp.where(counted_PG, scored.rewards_PG, jnp.nan)
    parts_PGR = jnp.where(counted_PG[:, :, None], scored.parts_PGR, jnp.nan)
    steps_PGT = scored.steps_PGT
    if steps_PGT is not None:
        steps_PGT = jnp.where(counted_PG[:, :, None] & scored.action_PGT, steps_PGT, jnp.nan)
    return replace(scored, rewards_PG=rewards_PG, parts_PGR=parts_PGR, steps_PGT=steps_PGT)


def _per_token(advantages: Array, action_PGT: Array) -> Array:
    advantages_PGT = advantages if advantages.ndim == 3 else advantages[:, :, None]
    return jnp.broadcast_to(advantages_PGT, action_PGT.shape)


def _without_gradient(surrogate: Callable[[Tokens], Array], tokens: Tokens) -> dict[str, Array]:
    """How many tokens have an advantage but no gradient, by the sign of the advantage (low: it was negative)."""

    def total(log_ratio_PGT: Array, logprobs_PGT: Array) -> Array:
        seen = replace(tokens, log_ratio_PGT=log_ratio_PGT, logprobs_PGT=logprobs_PGT)
        return jnp.sum(jnp.where(tokens.action_PGT, surrogate(seen), 0.0))

    at = (stop_gradient(tokens.log_ratio_PGT), stop_gradient(tokens.logprobs_PGT))
    of_ratio_PGT, of_logprob_PGT = jax.grad(total, argnums=(0, 1))(*at)
    flat_PGT = (of_ratio_PGT == 0) & (of_logprob_PGT == 0) & tokens.action_PGT
    low = jnp.sum(flat_PGT & (tokens.advantages_PGT < 0), dtype=jnp.float32)
    high = jnp.sum(flat_PGT & (tokens.advantages_PGT > 0), dtype=jnp.float32)
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high}
