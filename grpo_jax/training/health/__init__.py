"""The warnings of a run, printed and kept as it goes. What is checked is in `grpo_jax.health`."""

from grpo_jax.health import CHECKS, Limits, Seen, Setup
from grpo_jax.training.health.saying import Health, setup_of

__all__ = ["CHECKS", "Health", "Limits", "Seen", "Setup", "setup_of"]
