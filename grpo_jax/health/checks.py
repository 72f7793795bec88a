"""All checks that are made after each step, in the order in which their warnings are printed."""

from grpo_jax.health import policy, responses, rewards, update
from grpo_jax.health.seen import Check

# Checks that two sampled answers illustrate, and checks that numbers do.
SHOWN_BY_ANSWERS: tuple[Check, ...] = (
    responses.failing_environment,
    rewards.no_scores,
    responses.cut_off,
    responses.empty_responses,
    rewards.equal_rewards,
    rewards.agreeing_groups,
    responses.growing_responses,
    policy.low_entropy,
    policy.rising_entropy,
    rewards.held_out_falls,
)
SHOWN_BY_NUMBERS: tuple[Check, ...] = (
    update.no_gradient,
    update.no_learning_rate,
    policy.mismatch,
    policy.runaway_kl,
    policy.coefficient_at_bound,
    update.clipping,
    update.learned_by_heart,
    update.spike,
    update.straggler,
)
CHECKS = SHOWN_BY_ANSWERS + SHOWN_BY_NUMBERS
