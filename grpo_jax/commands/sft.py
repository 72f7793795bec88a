"""`grpo-jax sft`: as `grpo-jax train`, on given answers. The config that it gets has a section `sft`."""

from grpo_jax.commands.train import run

__all__ = ["run"]
