"""What is wrong with a run: the checks of its health, the cause before what follows from it, each with a title."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from grpo_jax.health import CHECKS, whole
from grpo_jax.health.groups import extremes
from grpo_jax.health.seen import Limits, Seen
from grpo_jax.health.whole import WholeCheck
from grpo_jax.report.reading import Found

WHOLE: tuple[WholeCheck, ...] = (
    whole.not_finite,
    whole.follows_length,
    whole.constant_reward,
    whole.all_right,
    whole.all_wrong,
    whole.rate_too_high,
    whole.many_cut_off,
    whole.rate_too_low,
)
TITLES: Mapping[str, str] = {
    "not_finite": "Updates are not finite",
    "failing_environment": "The environment fails",
    "no_scores": "A reward gives no score",
    "mismatch": "Sampler and trainer disagree",
    "cut_off": "Answers are cut off",
    "many_cut_off": "Many answers are cut off and earn nothing",
    "empty_responses": "Answers are empty",
    "follows_length": "The reward is hacked by length",
    "constant_reward": "The reward is constant",
    "all_right": "All groups are right",
    "all_wrong": "All groups are wrong",
    "equal_rewards": "All rewards are equal",
    "agreeing_groups": "All groups agree",
    "rate_too_high": "The learning rate is too high",
    "held_out_falls": "The held-out reward falls",
    "rising_entropy": "The policy comes apart",
    "low_entropy": "The entropy is gone",
    "runaway_kl": "The policy runs away from its reference",
    "growing_responses": "Answers grow and earn no more",
    "clipping": "Most tokens are clipped",
    "learned_by_heart": "Answers are learned by heart",
    "no_learning_rate": "The learning rate is 0, or still rises",
    "no_gradient": "The gradient is 0",
    "rate_too_low": "The learning rate is too low",
    "coefficient_at_bound": "A coefficient is at its bound",
    "spike": "The gradient has a spike",
    "straggler": "A step was slow",
}
# What a cause brings with it, and is not said beside it.
EXPLAINS: Mapping[str, tuple[str, ...]] = {
    "failing_environment": ("no_scores", "no_gradient", "equal_rewards", "agreeing_groups"),
    "constant_reward": ("equal_rewards", "agreeing_groups", "low_entropy", "no_gradient"),
    "all_right": ("equal_rewards", "agreeing_groups", "low_entropy"),
    "all_wrong": ("equal_rewards", "agreeing_groups"),
    "cut_off": ("many_cut_off", "no_gradient", "all_wrong", "equal_rewards", "agreeing_groups"),
    "follows_length": ("growing_responses", "empty_responses", "cut_off", "many_cut_off"),
    "rate_too_high": ("rate_too_low", "equal_rewards", "agreeing_groups", "all_wrong", "low_entropy", "rising_entropy"),
    "low_entropy": ("equal_rewards", "agreeing_groups", "all_wrong", "rate_too_low"),
    "mismatch": ("clipping",),
}
FAILED = frozenset(check.__name__ for check in WHOLE) - {"many_cut_off"} | {
    "low_entropy",
    "mismatch",
    "held_out_falls",
    "failing_environment",
}
OF_A_STEP = ("spike", "straggler")  # which say nothing of a run, if they are there in its last step
SUCCESS = ("equal_rewards", "agreeing_groups", "low_entropy")  # where a run has learned to answer all its prompts


@dataclass(frozen=True)
class Diagnosis:
    """One cause: its title, the evidence with what to do, and answers that show it. `step` is None if it lasts."""

    cause: str
    title: str
    text: str
    step: int | None = None
    answers: Sequence[str] = ()


def diagnoses(found: Found) -> list[Diagnosis]:
    """What is wrong at the end of a run as far as it has come, in the order of `TITLES`."""
    seen, groups = found.seen, found.groups
    texts = {check.__name__: text for check in WHOLE if (text := check(seen, groups)) is not None}
    lasting = [check for check in CHECKS if check.__name__ not in OF_A_STEP]
    texts |= {check.__name__: text for check in lasting if (text := check(seen)) is not None}
    causes = _ordered(seen, texts)
    explained = {effect for cause in causes for effect in EXPLAINS.get(cause, ())} | _harmless(found)
    shown = {row["warning"]: row.get("answers") for row in found.warnings}
    return [
        Diagnosis(cause, title, _sentence(texts[cause]), answers=_texts(shown.get(cause)))
        for cause, title in TITLES.items()
        if cause in texts and cause in causes and cause not in explained
    ]


def _ordered(seen: Seen, found: Collection[str]) -> set[str]:
    """The causes that were found, without one of two that bring each other with them: the one that came first stays."""
    left_out = set()
    if {"low_entropy", "rate_too_high"} <= {*found}:
        too_fast = whole.moves_at_once(seen, "entropy") and seen.setup.only_rewards_teach
        left_out |= {"low_entropy" if too_fast else "rate_too_high"}
    if "cut_off" in found and not seen.setup.cut_off_earns_nothing and len({*found} & FAILED):
        left_out |= {"cut_off"}  # cut-off answers count, so they alone stop nothing
    return {*found} - left_out


def _harmless(found: Found) -> set[str]:
    """What is no fault in a run that has learned."""
    seen, fine = found.seen, set()
    if is_solved(found):
        fine |= {*SUCCESS}
    if not whole.learned(seen):
        return fine
    if min(seen.last("entropy", seen.limits.recent), default=0.0) >= Limits.entropy:
        fine |= {"low_entropy"}  # it fell as it does where a policy becomes sure of what is right
    if not seen.setup.cut_off_earns_nothing:
        fine |= {"cut_off"}
    evaluated = found.history.column("eval/reward")[1]
    if len(evaluated) < 2 or seen.above(float(evaluated[-1]), float(evaluated[0])):
        fine |= {"runaway_kl"}  # it has gone far, and to where the reward is higher
    return fine | {"no_learning_rate"}


def earlier(found: Found, now: Sequence[Diagnosis]) -> list[Diagnosis]:
    """The warnings that training printed, of causes that are not there any more."""
    causes = {diagnosis.cause for diagnosis in now}
    named = [(row["warning"], row) for row in found.warnings if row["warning"] not in causes]
    return [
        Diagnosis(cause, TITLES.get(cause, cause), _sentence(row["text"]), row["step"], _texts(row.get("answers")))
        for cause, row in named
    ]


def is_solved(found: Found) -> bool:
    """Whether the last answers are nearly all right, and were not at the start: there is little more to learn here."""
    seen, groups = found.seen, found.groups
    if not whole.learned(seen):
        return False
    agreed = whole.agreed(seen, groups)
    if agreed is not None and agreed.right >= whole.NEARLY * agreed.total:
        return True
    rewards, best = seen.last("reward", seen.limits.recent), extremes(groups)[1]
    return bool(rewards) and best > 0 and fmean(rewards) >= whole.AGREE * best


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
