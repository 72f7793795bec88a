"""An objective is data: one choice along each axis. Any function of the right arguments is a choice.

    loss = sum(weights * (kl.coefficient * kl - keep * corrections * surrogate(tokens))) - sum of terms

`credit` (credit.py) uses these before the gradient, once for the whole batch:

- shaping      `Scored` -> `Scored`: rewards into other rewards                          (shaping.py)
- select       `Scored` -> keep_PG: which responses count in their group                 (selection.py)
- advantage    `Scored` -> advantages_PG or advantages_PGT                               (advantages.py)
- prune        (`Scored`, advantages) -> keep_PG: which responses count in the loss      (selection.py)
- weighting    (action_PGT, counted_PG) -> weights_PGT: how much each token counts       (weightings.py)
- masks        (`Tokens`, key) -> keep_PGT: whose surrogates count                       (corrections.py)

`loss` (loss.py) uses these with the gradient, on one microbatch after the other:

- anchor       what the ratio compares with: the present policy (current), the policy when the batch was made
               (recomputed), or what the sampler recorded (sampler)
- ratio        differences of log-probs -> log-ratios, of tokens or responses            (ratios.py)
- surrogate    `Tokens` -> what to maximise for each token                               (surrogates.py)
- corrections  `Tokens` -> factors of the surrogate, without a gradient                  (corrections.py)
- kl           the penalty for leaving a reference policy                                (kl.py)
- terms        what else is maximised                                                    (terms.py)

Coefficients of `kl` and `terms` may adapt from step to step (coefficients.py).

A token that a mask leaves out has no gradient from the surrogate if the surrogate of a token depends on that token
alone. The gradient of a `sequence` ratio (gspo, luspo, real) goes to all tokens of the response: as in TRL 1.16, a mask
then leaves terms out of the sum, and those that remain still move every token of their response. With `sequence_token`
the ratio has the same value, and tokens that are left out do not move. `GeometricClip` (gmpo) takes its mean over the
tokens that are kept, also as in TRL. Masks do not apply to `kl` and `terms`; a term has a mask of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jax import Array

from grpo_jax.objectives.coefficients import Adaptive
from grpo_jax.objectives.kl import KL
from grpo_jax.objectives.ratios import token
from grpo_jax.objectives.terms import Term
from grpo_jax.ranges import check_range
from grpo_jax.structs import Scored, Tokens


@dataclass(frozen=True)
class Objective:
    """One choice along each axis. `credit` and `loss` are functions of it."""

    advantage: Callable[[Scored], Array]
    surrogate: Callable[[Tokens], Array]
    weighting: Callable[[Array, Array], Array]
    ratio: Callable[[Array, Array], Array] = token
    anchor: Literal["current", "recomputed", "sampler"] = "recomputed"  # the policy that the ratio compares with
    shaping: tuple[Callable[[Scored], Scored], ...] = ()
    select: tuple[Callable[[Scored], Array], ...] = ()
    prune: tuple[Callable[[Scored, Array], Array], ...] = ()
    masks: tuple[Callable[[Tokens, Array], Array], ...] = ()
    corrections: tuple[Callable[[Tokens], Array], ...] = ()
    kl: KL | None = None
    terms: tuple[Term, ...] = ()
    distillation: float = 0.0  # weight of the teacher's log-prob minus the policy's, added to each token's advantage
    greedy_baseline: bool = False  # each prompt is answered greedily too, for an advantage that compares with it

    def __post_init__(self) -> None:
        for axis in ("shaping", "select", "prune", "masks", "corrections", "terms"):
            if not isinstance(getattr(self, axis), tuple):
                raise ValueError(f"{axis} is a tuple of choices, such as (a,) or (a, b); got {getattr(self, axis)!r}.")
        check_range("distillation or weight", self.distillation, least=0)
        if self.anchor not in ("current", "recomputed", "sampler"):
            raise ValueError(f"The anchor is current, recomputed or sampler; got {self.anchor!r}.")
        repeated = [each for each in self.corrections if getattr(each, "corrects_sampler", False)]
        if self.anchor == "sampler" and repeated:
            raise ValueError(
                "With the sampler as anchor, the ratio already corrects for the difference between sampler and trainer:"
                f" leave {repeated[0]} out of the corrections, or use another anchor."
            )

    @property
    def counted_kl(self) -> KL | None:
        """The KL term; None if its coefficient is 0."""
        return self.kl if self.kl is not None and self.kl.coefficient != 0 else None

    @property
    def needs_rewards(self) -> bool:
        """Whether it looks at rewards. If not, every response counts, and none has to be scored."""
        kl_in_reward = self.counted_kl is not None and self.counted_kl.place != "loss"
        others = self.shaping or self.select or self.prune or kl_in_reward
        return bool(others) or getattr(self.advantage, "needs_rewards", True)

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy has to be held in memory."""
        return self.counted_kl is not None

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy's log-probs have to be computed before the advantage, even for a single update."""
        return self.counted_kl is not None and self.counted_kl.place != "loss"

    @property
    def compares_with_old(self) -> bool:
        """Whether later minibatches need the log-probs from before the first update."""
        compares = self.anchor == "recomputed" or bool(self.corrections) or self.distillation != 0
        return compares or (self.counted_kl is not None and self.counted_kl.ratio is not None)

    @property
    def coefficients(self) -> dict[str, float | Adaptive]:
        """The coefficient of each term, by the term's name: "term 1", "term 2", ... and "kl"."""
        named = {term_name(index): term.coefficient for index, term in enumerate(self.terms)}
        return named if self.kl is None else {**named, "kl": self.kl.coefficient}


def term_name(index: int) -> str:
    """The name of a further term in metrics and checkpoints; the first one is "term 1"."""
    return f"term {index + 1}"
