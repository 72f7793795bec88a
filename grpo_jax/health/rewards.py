"""Checks of rewards: nothing is scored, nothing differs, or the reward rises only where it is trained."""

import math
from statistics import fmean

from grpo_jax.health.seen import Row, Seen, known

NOTHING = 0.02  # of the largest held-out reward: a smaller change is none, whatever the interval


def no_scores(seen: Seen) -> str | None:
    """No response has a score, or one of several rewards gives none."""
    steps = seen.limits.unscored
    rows = seen.rows(steps)
    silent = [name for name in seen.setup.rewards if all(row.get(f"rewards/{name}/mean", 0.0) is None for row in rows)]
    if not rows or not silent:
        return None
    names = " and ".join(silent)
    lost = "so nothing was learned" if all(row["reward"] is None for row in rows) else "so it did not count"
    return (
        f"no response got a score from {names} in the last {steps} steps, {lost}: it returned None each time. Look at"
        " what it asks (a judge that is down?); stop the run, and go on with --resume once it answers."
    )


def equal_rewards(seen: Seen) -> str | None:
    """All rewards of several steps are the same number."""
    steps = seen.limits.equal
    rewards = seen.last("reward", steps)
    if not rewards or seen.setup.responses == 1 or min(seen.last("frac_reward_zero_std", steps), default=0.0) < 1:
        return None
    spread = [value for name in seen.setup.rewards for value in known(seen.rows(steps), f"rewards/{name}/std")]
    tolerance = 1e-6 * max(1.0, abs(rewards[-1]))
    if max(rewards) - min(rewards) > tolerance or max(spread, default=0.0) > tolerance:
        return None
    text = f"no group differed in the last {steps} steps: every response earned {rewards[-1]:.4g}"
    if rewards[-1] == 0:
        return (
            f"{text}, so nothing is learned. Ask easier prompts (task), or add a reward for a part of the way, such as"
            " one for the format of the answer; rollout.max_tokens must leave room for an answer."
        )
    return (
        f"{text}, so nothing is learned. If this is the most that can be earned, ask harder prompts (task); if not,"
        f" {' and '.join(seen.setup.rewards)} cannot tell these answers apart: look at rewards."
    )


def agreeing_groups(seen: Seen) -> str | None:
    """Rewards differ between prompts, but not between the responses to any prompt."""
    steps = seen.limits.agreeing
    equal = min(seen.last("frac_reward_zero_std", steps), default=0.0) >= 1
    learns = seen.setup.only_rewards_teach and max(seen.last("grad_norm", steps), default=0.0) > 0
    if not equal or learns or seen.setup.responses == 1 or equal_rewards(seen) is not None:
        return None
    mean = fmean(seen.last("reward", steps) or [math.nan])
    return (
        f"no group differed in the last {steps} steps: all responses to a prompt earned the same, {mean:.4g} on"
        " average, and an objective that compares the responses of a group learns nothing from that. Some prompts are"
        " always solved, the others never: ask more responses (rollout.responses"
        f"{'' if seen.setup.responses is None else f', now {seen.setup.responses}'}) at a higher rollout.temperature,"
        " other prompts (train.resample asks until groups differ), or add a reward for a part of the way."
    )


def held_out_falls(seen: Seen) -> str | None:
    """The reward falls on held-out prompts by more than chance, and does not on those of training."""
    rows = [(index, row["eval/reward"]) for index, row in enumerate(seen.history) if row.get("eval/reward") is not None]
    if len(rows) < 4:
        return None
    index, best = max(rows[:-2], key=lambda row: row[1])
    fallen = [value for _, value in rows[-2:]]
    few = seen.limits.recent
    then = known([row for row in seen.history[max(index - few, 0) : index + few] if "reward" in row], "reward")
    now = seen.last("reward", few)
    noise = _noise(seen, seen.history[index], seen.history[rows[-1][0]], max(abs(value) for _, value in rows))
    if not then or not now or max(fallen) >= best - noise or fmean(then) - fmean(now) > (best - fallen[-1]) / 2:
        return None  # where the training reward falls as well, it is not the prompts
    step = seen.history[index]["step"]
    moved = "rises" if seen.above(fmean(now), fmean(then)) else "stays"
    return (
        f"the reward {moved} ({fmean(then):.3g} -> {fmean(now):.3g} since step {step}) while the held-out reward"
        f" falls ({best:.3g} -> {fallen[-1]:.3g}): the policy learns these prompts by heart, or a weakness of the"
        " reward. Use more training prompts (task), a KL term (objective.kl) or a lower optimizer.learning_rate, or end"
        f" at step {step}."
    )


def _noise(seen: Seen, first: Row, last: Row, size: float) -> float:
    """By how much two evaluations may differ by chance: as their intervals say, else that of 0-or-1 rewards."""
    ends = [[row.get(f"eval/reward/{side}") for side in ("low", "high")] for row in (first, last)]
    known_ends = [(low, high) for low, high in ends if low is not None and high is not None]
    if len(known_ends) == 2:
        return max(math.hypot(*((high - low) / 2 for low, high in known_ends)), NOTHING * size)
    return seen.limits.deviations * 0.5 * size / math.sqrt(max(seen.setup.held_out, 1))
