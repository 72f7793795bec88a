"""`grpo-jax plan`."""

from grpo_jax.commands.plan.command import run

__all__ = ["run"]
