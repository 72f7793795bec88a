"""GRPO for language models as pure functions in JAX. Names are imported on first use, so this costs nothing."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULE_OF = {
    "Algorithm": "algorithm",
    "Batch": "structs",
    "Engine": "rollout",
    "Evaluated": "evaluation.result",
    "Evaluation": "evaluation.settings",
    "Example": "rewards",
    "Layout": "devices.mesh",
    "Mix": "rewards",
    "Objective": "objectives",
    "Policy": "structs",
    "Prompts": "structs",
    "Rewards": "scoring",
    "Rollouts": "structs",
    "Run": "training",
    "RunDirectory": "training",
    "Sampler": "rollout",
    "Settings": "training",
    "Supervised": "training",
    "Task": "tasks",
    "TrainState": "structs",
    "adafactor": "optimizers",
    "adamw": "optimizers",
    "as_engine": "rollout",
    "evaluate": "evaluation.answering",
    "export": "models",
    "init": "grpo",
    "load": "models",
    "lora": "models.lora",
    "prepare": "grpo",
    "sample": "grpo",
    "score": "grpo",
    "sft": "training",
    "step": "grpo",
    "tiny": "models",
    "token_logprobs": "learner",
    "train": "training",
    "update": "grpo",
}
_MODULES = ("objectives", "rewards", "tasks", "config")  # modules that are names of the package, too

__all__ = sorted([*_MODULE_OF, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"grpo_jax.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'grpo_jax' has no attribute {name!r}")
    return getattr(import_module(f"grpo_jax.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
