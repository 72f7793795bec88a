"""What may go wrong in a run: each cause as a pure function of metrics, in words that name the setting to change."""

from grpo_jax.health.checks import CHECKS, SHOWN_BY_ANSWERS
from grpo_jax.health.seen import Check, Limits, Row, Seen, Setup

__all__ = ["CHECKS", "SHOWN_BY_ANSWERS", "Check", "Limits", "Row", "Seen", "Setup"]
