"""Checks of a whole run, which its report makes: they compare its beginning with its end, and look into its answers.

Each gives a sentence with the evidence and the setting to change, or None where nothing is wrong or too little is
known, as the checks after each step do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev, pvariance
from typing import Protocol

from grpo_jax.health.groups import SAME, Agreement, Groups, agreement, extremes, follows
from grpo_jax.health.seen import Seen, share

AGREE = 0.9  # of the groups, from which on nearly nothing is learned
NEARLY = 0.6  # of the groups that agree, which have to be right (or wrong) to say so
FOLLOWS = 0.8  # correlation of reward and length, from which on one is nearly the other
LENGTH_MOVED = 1.5  # times the first length, or its inverse
SURELY = 0.9  # correlation of reward and length, to which there is hardly an exception
FELL = 0.4  # of the reward's range
MANY_CUT = 0.5  # of the responses
FAINT = 2e-6  # the sum of all rates of a run, below which Adam moves no weight by a part that matters
USUAL = 1e-6  # a learning rate that is usual for all weights of a language model
MOVED = ("reward", "entropy", "completions/mean_length")  # what changes when a policy learns
AT_ONCE, EARLY = 3, 2  # steps
SURE, SPREAD = 2.0, 10  # standard errors of so many steps at most, by which a reward rises more than by chance
LEAST, ENOUGH = 6, 20  # steps, to say that a rate is faint, and that nothing has changed


class WholeCheck(Protocol):
    """A function that looks at a whole run and its answers. Its name is that of the cause."""

    __name__: str

    def __call__(self, seen: Seen, groups: Groups, /) -> str | None:
        """The sentence; None where nothing is wrong."""
        ...


def not_finite(seen: Seen, groups: Groups) -> str | None:
    """Updates were left out because they were not finite."""
    skipped = [int(row["step"]) for row in seen.history if row.get("skipped_updates")]
    spikes = [row for row in seen.history if row.get("skipped_updates") and row.get("skipped_spikes")]
    if not skipped or len(spikes) == len(skipped):
        return None
    return (
        f"{len(skipped)} step(s), the last of them step {skipped[-1]}, had updates that are not finite and were left"
        " out. What a warning of that step names is the cause; a lower optimizer.learning_rate or optimizer.clip_norm,"
        " and model.activations=float32, are what helps most often."
    )


def rate_too_high(seen: Seen, groups: Groups) -> str | None:
    """The reward has fallen far below what it was, while the policy has moved far."""
    rewards = [(int(row["step"]), float(row["reward"])) for row in seen.history if row.get("reward") is not None]
    if len(rewards) < 6:
        return None
    fall = _fall([value for _, value in rewards])
    moved = _moved(seen, fall.start, fall.width)
    if fall.is_large and moved is not None:
        step = rewards[fall.start + fall.width - 1][0]
        told = f"the reward fell from {fall.before:.3g} to {fall.after:.3g} after step {step}"
        return f"{told}, and {moved}: {_slower(seen, 'the fall')}"
    if moves_at_once(seen, "entropy") and seen.setup.only_rewards_teach and not learned(seen):
        entropies = [float(row["entropy"]) for row in seen.history if row.get("entropy") is not None]
        return (
            f"the entropy went from {entropies[0]:.3g} to {entropies[-1]:.3g} nats within few steps, and the reward is"
            f" {fall.after:.3g} where it was {rewards[0][1]:.3g}: {_slower(seen, 'that')}"
        )
    return None


@dataclass(frozen=True)
class _Fall:
    """The mean reward of the best steps, from the index `start` on, and of the last ones."""

    start: int
    width: int
    before: float
    after: float
    is_large: bool


def _fall(values: Sequence[float]) -> _Fall:
    """How far the reward has fallen since its best steps, or since the first two if it never came near them again."""
    width = min(10, len(values) // 3)
    after, reach = fmean(values[-width:]), max(abs(max(values)), max(values) - min(values))
    early = fmean(values[:EARLY])
    if min(values[:EARLY]) > max(values[-width:]) and early - after >= FELL * reach:
        return _Fall(0, EARLY, early, after, is_large=True)
    means = [fmean(values[end - width : end]) for end in range(width, len(values) + 1)]
    best = max(range(len(means) - width + 1), key=lambda index: means[index])
    noise = 4 * pstdev(values[best : best + width]) / math.sqrt(width)
    fall = means[best] - after
    return _Fall(best, width, means[best], after, fall >= FELL * reach and fall > noise)


def _slower(seen: Seen, event: str) -> str:
    """What to do about updates that are too large."""
    rate = seen.last("learning_rate", 1)
    lower = f" (it is {rate[0]:.3g}; try {rate[0] / 10:.3g})" if rate and rate[0] > 0 else ""
    return (
        f"the updates are too large. Lower optimizer.learning_rate{lower}, go on from a checkpoint before {event}, and"
        " keep the policy near its reference (objective.kl)."
    )


def _moved(seen: Seen, best: int, width: int) -> str | None:
    """What shows that the policy has moved far since the steps from `best` on; None if nothing does."""
    for name, what in (("entropy", "the entropy went"), ("completions/mean_length", "the mean length went")):
        values = [float(row[name]) for row in seen.history if row.get(name) is not None]
        if len(values) < best + width:
            continue
        then, now = fmean(values[best : best + width]), fmean(values[-width:])
        if now > 2 * then or now < then / 2:
            return f"{what} from {then:.3g} to {now:.3g}"
    kl = seen.last("kl", 3)
    if kl and fmean(kl) > 0.5:
        return f"the KL to the reference is {fmean(kl):.3g} nats a token"
    norms = [float(row["grad_norm"]) for row in seen.history if row.get("grad_norm") is not None]
    if len(norms) >= best + width and fmean(norms[-width:]) > 5 * fmean(norms[best : best + width]):
        return f"the norm of the gradient grew to {fmean(norms[-width:]):.3g}"
    clipped = seen.last("clip_ratio/region_mean", 3)
    return f"{fmean(clipped):.0%} of the tokens are clipped" if clipped and fmean(clipped) > 0.3 else None


def rate_too_low(seen: Seen, groups: Groups) -> str | None:
    """Groups differ and gradients are there, but nothing about the answers has changed since the start."""
    rows = [row for row in seen.history if row.get("reward") is not None]
    rates = [abs(float(row["learning_rate"])) for row in rows if row.get("learning_rate") is not None]
    norms = [float(row["grad_norm"]) for row in rows if row.get("grad_norm") is not None]
    if len(rows) < LEAST or not rates or max(rates) == 0 or not norms or sorted(norms)[len(norms) // 2] == 0:
        return None
    faint = fmean(rates) * max(seen.setup.steps, len(rows)) < FAINT
    changes = {name: _change(seen, name, 4.0 if faint else 2.5) for name in MOVED}
    still = [text for text in changes.values() if text is not None]
    if len(still) < len(changes) or not (faint or len(rows) >= ENOUGH):
        return None
    usual = f", where {USUAL:g} to {10 * USUAL:g} is usual for all weights of a model" if max(rates) < USUAL else ""
    return (
        f"nothing has changed in {len(rows)} steps, though groups differ and the gradient is not 0:"
        f" {', '.join(still)}. The learning rate was {max(rates):.3g} at most{usual}: raise optimizer.learning_rate"
        " tenfold, and look whether optimizer.warmup_steps is short against train.steps."
    )


def _change(seen: Seen, name: str, errors: float) -> str | None:
    """How little a metric has changed from the first third of the steps to the last; None if by more `errors`."""
    values = [float(row[name]) for row in seen.history if row.get(name) is not None]
    third = max(len(values) // 3, 2)
    if len(values) < 4:
        return None
    first, last = values[:third], values[-third:]
    noise = math.sqrt((pstdev(first) ** 2 + pstdev(last) ** 2) / max(third - 1, 1))
    gap = abs(fmean(last) - fmean(first))
    if gap > errors * noise + 1e-3 * max(abs(fmean(first)), 1e-9):
        return None
    return f"{name.removeprefix('completions/').replace('_', ' ')} {fmean(first):.3g} -> {fmean(last):.3g}"


def follows_length(seen: Seen, groups: Groups) -> str | None:
    """The reward is nearly a function of the length, and the length has moved where it pays."""
    found = follows([group for each in groups.values() for group in each])
    lengths = [float(row["completions/mean_length"]) for row in seen.history if row.get("completions/mean_length")]
    if not abs(found) >= FOLLOWS or len(lengths) < 6:
        return None
    few = min(3, len(lengths) // 2)
    first, last = fmean(lengths[:few]), fmean(lengths[-few:])
    grew = last / first if found > 0 else first / max(last, 1.0)
    surely = found >= SURELY and grew >= 1 and learned(seen)  # lengths cannot grow much where many were cut off
    if grew < LENGTH_MOVED and not surely:
        return None
    kind = "longer" if found > 0 else "shorter"
    return (
        f"the reward pays for length: within groups its correlation with the length is {found:.2f}, and answers became"
        f" {kind} ({first:.3g} -> {last:.3g} tokens). The policy learns to be {kind}, not to be right: read the answers"
        " below, change rewards so that length alone earns nothing, or take a part of the total away for it"
        " (a reward with a negative weight)."
    )


def all_right(seen: Seen, groups: Groups) -> str | None:
    """Nearly all groups earn the most that there is, and did so from the start."""
    found = agreed(seen, groups)
    if found is None or _constant(groups) or found.right < NEARLY * found.total or learned(seen):
        return None
    return (
        f"{share(found.total)} groups teach nothing, because all their answers are right (reward {found.reward:.3g}):"
        " the prompts are too easy for this model. Ask harder ones (task), leave out those that are solved"
        " (train.retire), or ask until groups differ (train.resample)."
    )


def all_wrong(seen: Seen, groups: Groups) -> str | None:
    """Nearly all groups earn the least that there is."""
    found = agreed(seen, groups)
    if found is None or _constant(groups) or found.wrong < NEARLY * found.total:
        return None
    low, high = extremes(groups)
    never = low == high and any(group.scored for each in groups.values() for group in each)
    fired = "; the reward has never fired in the answers that were read" if never else ""
    ratios = seen.last("completions/clipped_ratio", seen.limits.recent)
    if ratios and fmean(ratios) >= MANY_CUT:
        fired += f"; {share(fmean(ratios))} answers are cut off"
    return (
        f"{share(found.total)} groups teach nothing, because all their answers are wrong (reward {found.reward:.3g})"
        f"{fired}. The prompts are too hard for this model, or rewards do not read its answers. Read some below, ask"
        " easier prompts (task), add a reward for a part of the way such as the format, ask more responses"
        " (rollout.responses), and see that rollout.max_tokens leaves room for an answer."
    )


def constant_reward(seen: Seen, groups: Groups) -> str | None:
    """Every answer earns the same number, whatever it says."""
    found = agreed(seen, groups)
    if found is None or not _constant(groups):
        return None
    known = [has for each in groups.values() for group in each for has in group.gold]
    evidence = (
        f" {share(sum(known) / len(known))} answers that were read have the expected answer in them." if known else ""
    )
    evidence += " If all of them are right, ask harder prompts (task)." if abs(found.reward - 1) <= SAME else ""
    return (
        f"every answer earned {found.reward:.4g}, right or wrong, so no group differs and nothing is learned.{evidence}"
        f" Look at rewards: {' and '.join(seen.setup.rewards) or 'they'} must tell a right answer from a wrong one, and"
        " grpo-jax data shows what they give for both."
    )


def many_cut_off(seen: Seen, groups: Groups) -> str | None:
    """Most answers are cut off, and the objective gives those nothing."""
    ratios = seen.last("completions/clipped_ratio", seen.limits.cut_off_steps)
    if not seen.setup.cut_off_earns_nothing or not ratios or fmean(ratios) < MANY_CUT or learned(seen):
        return None
    return (
        f"{share(fmean(ratios))} responses of the last {len(ratios)} steps were cut off, and this objective gives those"
        " nothing whatever they say: raise rollout.max_tokens, ask for shorter answers (task.system), or use an"
        " objective that counts them (objective: {use: dapo})."
    )


def agreed(seen: Seen, groups: Groups) -> Agreement | None:
    """How the groups of the last steps agree, if nearly all do; from metrics where no answers were read."""
    steps = seen.limits.equal
    equal = seen.last("frac_reward_zero_std", min(seen.limits.agreeing, max(len(seen.history) - 1, steps)))
    if seen.setup.responses == 1 or not equal or fmean(equal) < AGREE:
        return None
    low, high = extremes(groups)
    late = sorted(groups)[-max(len(groups) // 2, 1) :]
    found = agreement([group for step in late for group in groups[step]], low, high)
    if found is not None and found.total > 0:
        return found
    rewards = seen.last("reward", steps)
    if not rewards or max(rewards) - min(rewards) > 1e-6:
        return None
    value = rewards[-1]
    return Agreement(float(value > 0), float(value <= 0), 0.0, value)


def _constant(groups: Groups) -> bool:
    """Whether all answers earned one number that their text does not explain: neither all right nor all wrong."""
    low, high = extremes(groups)
    each = [group for some in groups.values() for group in some]
    if high > low or not any(group.scored for group in each):
        return False
    gold = [has for group in each for has in group.gold]
    right = sum(gold) / len(gold) if gold else None
    if low <= 0:
        return right > 0.5 if right is not None else low < 0
    usual = abs(low - 1) <= SAME  # what a right answer earns as a rule
    return right < (0.5 if usual else 0.9) if right is not None else not usual


def moves_at_once(seen: Seen, name: str) -> bool:
    """Whether a metric left its first level far behind within a few steps, and stayed there to the end."""
    values = [float(row[name]) for row in seen.history if row.get(name) is not None]
    if len(values) < 4 or values[0] <= 0:
        return False
    far = [value < values[0] / 10 or value > 2 * values[0] + 1 for value in values]
    near = [values[0] / 2 < value < 1.5 * values[0] + 0.5 for value in values]
    last_near = max(index for index, is_near in enumerate(near) if is_near) if any(near) else 0
    return last_near + AT_ONCE < len(values) and all(far[last_near + AT_ONCE :])


def learned(seen: Seen) -> bool:
    """Whether the reward has risen from the first steps to the last: then right answers are what was wanted.

    It has to rise by a tenth, and by more than chance, of which the last steps tell: the first ones also differ where
    a run learns fast.
    """
    rewards = [float(row["reward"]) for row in seen.history if row.get("reward") is not None]
    few = min(3, len(rewards) // 2)
    if not few:
        return False
    first, last = fmean(rewards[:few]), fmean(rewards[-few:])
    many = max(few, min(len(rewards) // 5, SPREAD))
    before, now = rewards[:many], rewards[-many:]
    chance = SURE * math.sqrt(2 * pvariance(now) / many)
    return last - first > 0.1 * max(abs(first), abs(last)) and fmean(now) - fmean(before) > chance


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of these steps, evenly spread, with the first and the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]
