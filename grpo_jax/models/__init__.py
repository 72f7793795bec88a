"""Language models as policies. The only folder that imports Flax."""

from grpo_jax.models.load import Model, load, tiny

__all__ = ["Model", "load", "tiny"]
