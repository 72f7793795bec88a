"""`grpo-jax eval`: what a model, or a run beside its base model, earns on held-out prompts."""

from grpo_jax.commands.eval.command import run

__all__ = ["run"]
