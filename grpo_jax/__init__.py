"""GRPO for language models as pure functions in JAX. Names are imported on first use, so this costs nothing."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Algorithm": "algorithm",
    "Answers": "grpo",
    "Watch": "grpo",
    "begin": "grpo",
    "chosen_tokens": "grpo",
    "prepare": "grpo",
    "step": "grpo",
    "update": "grpo",
    "Batch": "structs",
    "Policy": "structs",
    "Prompts": "structs",
    "Rollouts": "structs",
    "TrainState": "structs",
    "Objective": "objectives",
    "token_logprobs": "learner.logprobs",
    "Sampler": "rollout",
    "load": "models",
    "tiny": "models",
    "Example": "rewards",
    "Task": "tasks",
    "Mix": "rewards",
    "score": "rewards",
    "adamw": "optimizers",
    "Layout": "devices.mesh",
    "keep_pages": "devices.pages",
    "keep_programs": "devices.cache",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'grpo_jax' has no attribute {name!r}")
    return getattr(import_module(f"grpo_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
