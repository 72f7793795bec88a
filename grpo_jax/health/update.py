"""Checks of the update: gradient, learning rate and clipping; and of the time that a step takes."""

from itertools import pairwise
from statistics import fmean, median

from grpo_jax.health.seen import Seen, is_step, known, share


def no_gradient(seen: Seen) -> str | None:
    """The gradient is exactly 0 although rewards differ within groups."""
    steps = seen.limits.no_gradient
    norms, equal = seen.last("grad_norm", steps), seen.last("frac_reward_zero_std", steps)
    cut = seen.last("completions/clipped_ratio", steps)
    if not norms or max(norms) > 0 or not equal or min(equal) >= 1 or not seen.last("reward", steps):
        return None  # other checks say why groups are equal, or why there is no reward
    if seen.setup.cut_off_earns_nothing and cut and min(cut) > 0:
        if min(cut) >= seen.limits.cut_off:
            return None  # `cut_off` says it
        return (
            f"the gradient was exactly 0 in the last {steps} steps, so nothing is learned: this objective gives nothing"
            f" to responses that are cut off ({share(fmean(cut))} were), and the others earned the same. Raise"
            " rollout.max_tokens, or use an objective that counts them (objective: {use: dapo})."
        )
    return (
        f"the gradient was exactly 0 in the last {steps} steps although rewards differ, so nothing is learned: the"
        " objective gives every response the advantage 0, or its select, prune, masks and corrections leave no token."
    )


def no_learning_rate(seen: Seen) -> str | None:
    """The learning rate is 0, or still rises in the last step."""
    rates = seen.last("learning_rate", seen.limits.recent)
    if rates and max(map(abs, rates)) == 0:
        return (
            f"the learning rate was 0 in the last {seen.limits.recent} steps, so nothing is learned: look at the"
            " schedule of the optimizer, and at optimizer.learning_rate."
        )
    whole = known([row for row in seen.history if is_step(row)], "learning_rate")
    ended = bool(seen.history) and seen.history[-1].get("step") == seen.setup.steps
    if not ended or len(whole) < 3 or any(late <= early for early, late in pairwise(whole)):
        return None
    return (
        f"the learning rate still rises in the last step, to {whole[-1]:.3g}: the warm-up is as long as the run, or"
        " longer. Lower optimizer.warmup_steps, or raise train.steps."
    )


def clipping(seen: Seen) -> str | None:
    """Most tokens have an advantage and no gradient, because the ratio has left the clip range."""
    ratios = seen.last("clip_ratio/region_mean", seen.limits.recent)
    if not ratios or fmean(ratios) < seen.limits.clipped:
        return None
    return (
        f"{share(fmean(ratios))} tokens were clipped in the last {seen.limits.recent} steps, and taught nothing: the"
        " policy moves too far within a step. Lower optimizer.learning_rate or algorithm.minibatches, or widen the clip"
        " range (objective.clip, or clip_low and clip_high)."
    )


def learned_by_heart(seen: Seen) -> str | None:
    """The loss of held-out answers rises, and that of the answers that are learned does not."""
    losses = [(row["step"], row["eval/loss"]) for row in seen.history if row.get("eval/loss") is not None]
    trained = seen.last("loss", seen.limits.recent)
    if len(losses) < 4 or not trained:
        return None
    step, best = min(losses[:-2], key=lambda pair: pair[1])
    after = min(loss for _, loss in losses[-2:])
    if after < seen.limits.loss_rose * best or fmean(trained) > best:
        return None
    return (
        f"the loss of held-out answers rises ({best:.3g} at step {step} -> {losses[-1][1]:.3g}) while that of the"
        f" answers that are learned is {fmean(trained):.3g}: they are learned by heart. Learn more examples, lower"
        f" optimizer.learning_rate, or end at step {step} (train.steps)."
    )


def spike(seen: Seen) -> str | None:
    """The norm of the gradient is far above what it usually is."""
    *norms, last = seen.last("grad_norm", 2 * seen.limits.before) or [0.0]
    before = [norm for norm in norms if norm > 0]  # of steps that taught something
    if len(before) < seen.limits.before or last <= seen.limits.spike * median(before):
        return None
    return (
        f"the norm of the gradient was {last:.3g}, {last / median(before):.0f} times its median. Larger"
        " norms than optimizer.clip_norm are scaled down to it: lower that, or optimizer.learning_rate, if the reward"
        " falls; train.skip_spikes=10 leaves such updates out."
    )


def straggler(seen: Seen) -> str | None:
    """A step took several times as long as usual, compiling aside."""
    limits = seen.limits
    rows = seen.rows(limits.before)
    totals, compiled = known(rows, "step_time"), known(rows, "time/compile")
    if not totals or not compiled:
        return None
    seconds = [total - part for total, part in zip(totals, compiled, strict=True)]
    usual = median(seconds[:-1])
    if seconds[-1] < limits.straggler * usual or seconds[-1] - usual < limits.straggler_seconds:
        return None
    names = [name for name in rows[-1] if name.startswith("time/") and name not in ("time/compile", "time/over_median")]
    above = {name: known(rows[-1:], name)[0] - median(known(rows[:-1], name) or [0.0]) for name in names}
    slow = max(above, key=lambda name: above[name])
    return (
        f"this step took {seconds[-1]:.1f} s, {seconds[-1] / max(usual, 1e-9):.0f} times the median of the steps"
        f" before, most of it in {slow.removeprefix('time/')}: {_slow(slow)}"
    )


def _slow(phase: str) -> str:
    if phase == "time/scoring":
        return "a reward was slow (a judge, a network?)."
    return "look for other processes on this machine, and for responses far longer than usual."
