"""`grpo-jax bench`."""

from grpo_jax.commands.bench.command import run

__all__ = ["run"]
