"""`grpo-jax plan`."""

from grpo_jax.commands.plan.report import run

__all__ = ["run"]
