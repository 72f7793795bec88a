"""Engines, which answer prompts: the protocol, and the package's own sampler."""

from grpo_jax.rollout.engine import Engine, Heard, answer, as_engine
from grpo_jax.rollout.native import Sampler, native_sampler, programs

__all__ = ["Engine", "Heard", "Sampler", "answer", "as_engine", "native_sampler", "programs"]
