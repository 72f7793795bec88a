"""`grpo-jax data`."""

from grpo_jax.commands.data.command import run

__all__ = ["run"]
