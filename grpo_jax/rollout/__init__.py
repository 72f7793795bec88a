"""Engines: callables `sample(policy, params, prompts, key) -> Rollouts`."""

from grpo_jax.rollout.native import Sampler, programs

__all__ = ["Sampler", "programs"]
