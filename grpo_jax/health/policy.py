"""Checks of the policy: its entropy, its distance from the reference, and whether sampler and trainer agree."""

from statistics import fmean, median

from grpo_jax.health.seen import Seen


def low_entropy(seen: Seen) -> str | None:
    """The policy has become nearly certain of every token, and the reward does not rise."""
    limits = seen.limits
    values, start = seen.last("entropy", limits.recent), seen.first("entropy", limits.recent)
    if not values or not start or seen.rises:
        return None
    now, begun = fmean(values), fmean(start)
    if now >= limits.entropy and (now >= limits.entropy_fell * begun or len(seen.history) <= 2 * limits.before):
        return None
    if begun < limits.entropy:
        return (
            f"the entropy has been near 0 from the start ({now:.2g} nats): answers hardly differ, so there is little to"
            " learn from. Raise rollout.temperature, or widen rollout.top_k and rollout.top_p."
        )
    return (
        f"the entropy has collapsed ({begun:.2g} -> {now:.2g} nats), and the reward does not rise: answers hardly"
        " differ any more. Go on from an earlier checkpoint with a lower optimizer.learning_rate, a higher"
        " objective.clip_high, an entropy bonus (objective.terms), or a higher rollout.temperature."
    )


def rising_entropy(seen: Seen) -> str | None:
    """The policy comes apart: its entropy has risen far, and the reward is no higher than at the start."""
    limits = seen.limits
    values, start = seen.last("entropy", limits.recent), seen.first("entropy", limits.recent)
    rewards, earned = seen.last("reward", limits.recent), seen.first("reward", limits.recent)
    if not (values and start and rewards and earned) or seen.above(fmean(rewards), fmean(earned)):
        return None
    now, begun = fmean(values), fmean(start)
    if now < limits.entropy_rose * begun or now - begun < 1:
        return None
    return (
        f"the entropy has risen ({begun:.2g} -> {now:.2g} nats) and the reward has not: the policy comes apart. Go on"
        " from an earlier checkpoint with a lower optimizer.learning_rate or optimizer.clip_norm, or with a KL term"
        " (objective.kl)."
    )


def mismatch(seen: Seen) -> str | None:
    """Sampler and trainer disagree about the probabilities of tokens."""
    limits = seen.limits
    ratio, count = "sampling/importance_sampling_ratio", limits.recent
    sizes, gaps = seen.last("sampling/effective_sample_size", count), seen.last("sampling/k3", count)
    lows, highs = seen.last(f"{ratio}/p01", count), seen.last(f"{ratio}/p99", count)
    start = seen.first("sampling/k3", count)
    if not (sizes and gaps and lows and highs):
        return None
    size, gap, low, high = fmean(sizes), fmean(gaps), fmean(lows), fmean(highs)
    grows = bool(start) and gap > limits.k3_grew * fmean(start) and gap > limits.k3
    agree = size >= limits.sample_size and 1 / limits.ratio < low and high < limits.ratio and gap < limits.k3_most
    if agree and not grows:
        return None
    return (
        f"trainer and sampler disagree about the tokens' probabilities: effective sample size {size:.2g}, k3 {gap:.2g}"
        f" nats, ratios {low:.2g} to {high:.2g} for 98 % of the tokens. Use rollout.int8_cache=false and"
        " model.activations=float32, or weight tokens by their ratio (objective.corrections; verifiable does), and"
        " lower optimizer.learning_rate if it grows from step to step."
    )


def runaway_kl(seen: Seen) -> str | None:
    """The policy leaves its reference quickly."""
    limits = seen.limits
    values = seen.last("kl", limits.recent)
    before = seen.last("kl", limits.recent + limits.before)[: limits.before]
    if not values:
        return None
    now = fmean(values)
    grew = bool(before) and now > limits.kl_small and now > limits.kl_grew * median(before)
    if now < limits.kl and not grew:
        return None
    since = f", {median(before):.2g} in the steps before" if before else ""
    return (
        f"the policy runs away from its reference: KL {now:.2g} nats a token{since}. Raise the coefficient of the KL"
        " term (objective.kl), or go on from an earlier checkpoint with a lower optimizer.learning_rate."
    )


def coefficient_at_bound(seen: Seen) -> str | None:
    """An adaptive coefficient is as large as it may be, so that it has no effect on the metric that it follows."""
    steps = seen.limits.before
    for name, (most, metric) in seen.setup.bounds.items():
        used = seen.last(f"coefficient/{name}", steps)
        if used and min(used) >= most:
            return (
                f"the adaptive coefficient of {name} has been at its largest value {most:g} for {steps} steps, and"
                f" {metric} still misses its target: raise `most` of that coefficient, or change its target."
            )
    return None
