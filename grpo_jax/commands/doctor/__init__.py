"""`grpo-jax doctor`. Nothing here imports JAX or any other library at the top: they may be what is broken."""

from grpo_jax.commands.doctor.command import run

__all__ = ["run"]
