"""The health of a run in words: warnings that name a cause and the setting to change, found in its metrics."""

from grpo_jax.training.health.saying import CHECKS, Health, setup_of
from grpo_jax.training.health.seen import Limits, Seen, Setup

__all__ = ["CHECKS", "Health", "Limits", "Seen", "Setup", "setup_of"]
