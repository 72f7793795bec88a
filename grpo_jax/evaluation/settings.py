"""How held-out prompts are answered, and which answers count as right."""

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from grpo_jax.evaluation.estimators import VOTERS, sizes
from grpo_jax.evaluation.voting import said_by
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rewards import Mix
from grpo_jax.rollout import Engine
from grpo_jax.rollout.given import sampler_of
from grpo_jax.structs import Policy, Prompts

OF_SAMPLER = ("responses", "temperature", "top_k", "top_p", "max_tokens")  # its fields that an evaluation may change


@dataclass(frozen=True)
class Evaluation:
    """How held-out prompts are answered: one greedy answer each, unless more are asked for."""

    responses: int = 1  # answers to each held-out prompt
    temperature: float | None = None  # null: 0, greedy, for one answer, and rollout.temperature for several
    top_k: int | None = None  # null: rollout.top_k
    top_p: float | None = None  # null: rollout.top_p
    max_tokens: int | None = None  # null: rollout.max_tokens
    seed: int = 0
    right: str | None = None  # the reward that says which answers are right, by its name; null: the total reward
    right_from: float = 1.0  # an answer counts as right from this reward on
    confidence: float = 0.95  # level of the intervals
    responses_at_once: int = 512  # that are sampled in one call; progress is told between calls

    def __post_init__(self) -> None:
        for name in ("responses", "responses_at_once"):
            check_range(f"evaluation.{name}", getattr(self, name), least=1, most=WHOLE)
        if self.max_tokens is not None:
            check_range("evaluation.max_tokens", self.max_tokens, least=1, most=WHOLE)
        if self.temperature is not None and self.temperature != 0:
            check_range(
                "evaluation.temperature", self.temperature, least=1e-3, most=100, note="(or 0, which is greedy)"
            )
        if self.top_k is not None:
            check_range("evaluation.top_k", self.top_k, least=0, most=WHOLE, note="(0 keeps every token)")
        if self.top_p is not None:
            check_range("evaluation.top_p", self.top_p, above=0, most=1, note="(1 keeps every token)")
        check_range("evaluation.seed", self.seed, least=0, below=2**32)
        check_range("evaluation.confidence", self.confidence, least=0.5, most=0.9999)
        check_range("evaluation.right_from", self.right_from)
        if self.responses > 1 and self.temperature == 0:
            raise ValueError(
                f"evaluation.temperature is 0, so all {self.responses} answers to a prompt would be the same. Use one"
                " above 0, or evaluation.responses: 1."
            )

    @property
    def is_greedy(self) -> bool:
        """Whether each prompt gets the one likeliest answer."""
        return self.responses == 1 and self.temperature in (None, 0)

    def engine(self, trained: Engine) -> Engine:
        """The engine that answers held-out prompts, made of the one that is trained with.

        An engine that cannot answer greedily answers as it does in training, if nothing else is asked for.
        """
        trained = sampler_of(trained)
        greedy = trained.greedy() if self.is_greedy else None
        base = trained if greedy is None else greedy
        changes = {name: value for name in OF_SAMPLER if (value := getattr(self, name)) is not None}
        if self.is_greedy:
            changes.pop("responses")
        return _changed(base, changes)

    def answers(self, trained: Engine) -> int:
        """The answers to each prompt; as many as are asked for if an engine of one's own does not tell."""
        told = self.engine(trained).responses
        return self.responses if told is None else told

    def counted(self, trained: Engine, mix: Mix) -> list[str]:
        """The metrics of right answers that this evaluation measures: pass@k and maj@k."""
        ks = sizes(self.answers(trained))
        votes = [k for k in ks if k >= VOTERS] if said_by(mix, self.right) is not None else []
        return [*(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in votes)]

    def check(self, trained: Engine, mix: Mix, policy: Policy, prompts: Prompts) -> None:
        """Refuses settings that the engine or the model cannot follow, and a reward that there is not."""
        self.engine(trained)
        trained = sampler_of(trained)
        longer = trained if self.max_tokens is None else _changed(trained, {"max_tokens": self.max_tokens})
        longer.check(policy, prompts)
        self.check_right(mix)

    def check_right(self, mix: Mix) -> None:
        """Refuses a reward that there is not. One may be a criterion that is known once its reward has been called."""
        undecided = tuple(f"{mix.labels[index]}/" for index in mix.undecided)
        if self.right is None or not self.right.startswith(undecided):
            self.column(mix)

    def column(self, mix: Mix) -> int | None:
        """The column of the reward that says which answers are right; None for the total reward."""
        if self.right is None:
            return None
        if self.right not in mix.names:
            raise ValueError(
                f"evaluation.right is {self.right}, and the rewards are {', '.join(mix.names)}. Name one of them, or"
                " leave it out: then the total reward says which answers are right."
            )
        return mix.names.index(self.right)


def _changed(engine: Engine, changes: dict[str, Any]) -> Engine:
    """The engine with other settings; one that has none of that kind is refused."""
    if not changes:
        return engine
    known = {each.name for each in dataclasses.fields(engine)} if dataclasses.is_dataclass(engine) else set()
    if not known.issuperset(OF_SAMPLER):
        raise ValueError(
            f"evaluation.{next(iter(changes))} is a setting of the native sampler, and this run has an engine of its"
            f" own ({type(engine).__name__}), which answers as it does in training. Leave it out of the evaluation."
        )
    return cast(Engine, dataclasses.replace(cast(Any, engine), **changes))
