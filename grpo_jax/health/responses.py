"""Checks of responses: ended by an error of their environment, cut off, empty, or ever longer."""

import math
from statistics import fmean

from grpo_jax.health.seen import Seen, share


def failing_environment(seen: Seen) -> str | None:
    """Errors of the environment end most conversations of a step."""
    failed = seen.last("environment/ended_by_error", 1)
    if not failed or failed[0] < seen.limits.failed:
        return None
    return (
        f"the environment failed in {share(failed[0])} conversations of this step, and nothing is learned from them:"
        " `errors` of the answers (completions/ in the directory of the run) says what was raised, and where. With"
        " environment.on_error=stop the first error ends the run, which helps while an environment is written."
    )


def cut_off(seen: Seen) -> str | None:
    """Nearly all responses reach the limit of their length."""
    limits = seen.limits
    ratios = seen.last("completions/clipped_ratio", limits.cut_off_steps)
    if not ratios or min(ratios) < limits.cut_off:
        return None
    longest = max(seen.last("completions/max_length", limits.cut_off_steps), default=math.nan)
    nothing = ", and this objective gives those nothing" if seen.setup.cut_off_earns_nothing else ""
    return (
        f"{share(fmean(ratios))} responses of the last {limits.cut_off_steps} steps were cut off at {longest:.0f}"
        f" tokens{nothing}: raise rollout.max_tokens, or ask for shorter answers (task.system)."
    )


def empty_responses(seen: Seen) -> str | None:
    """Responses are their end token alone, or a tenth of what they were, and earn no more."""
    limits = seen.limits
    length, cut = (seen.last(f"completions/{name}", limits.recent) for name in ("mean_length", "clipped_ratio"))
    if not length or not cut:
        return None
    if max(length) <= limits.empty and max(cut) == 0:
        return (
            f"the responses of the last {limits.recent} steps are empty: they are their end token alone. Set"
            " rollout.min_tokens, and see whether a reward is highest for saying nothing; go on from an earlier"
            " checkpoint with a lower optimizer.learning_rate."
        )
    start = seen.first("completions/mean_length", limits.before)
    if not start or fmean(length) > limits.length_fell * fmean(start) or seen.rises:
        return None
    return (
        f"responses have become short ({fmean(start):.4g} -> {fmean(length):.4g} tokens) and earn no more for it: see"
        " whether a reward or objective prefers short answers, set rollout.min_tokens, or lower"
        " optimizer.learning_rate."
    )


def growing_responses(seen: Seen) -> str | None:
    """Responses become much longer and earn no more for it."""
    limits = seen.limits
    lengths = seen.last("completions/mean_length", 3 * limits.before)
    if not lengths or seen.rises:
        return None
    before, now = fmean(lengths[: limits.before]), fmean(lengths[-limits.recent :])
    rewards = seen.last("reward", 3 * limits.before)
    risen = not rewards or seen.above(fmean(rewards[-limits.recent :]), fmean(rewards[: limits.before]))
    if now < limits.length_grew * before or risen:
        return None
    return (
        f"responses grow ({before:.4g} -> {now:.4g} tokens in {3 * limits.before} steps) and earn no more for it. An"
        " objective that divides by each response's length (grpo) punishes long wrong answers less: use dr_grpo or"
        " verifiable, or a penalty for length (dapo's overlong), or a lower rollout.max_tokens."
    )
