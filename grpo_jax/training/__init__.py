"""A run, callable from Python: its parts, its loop, and what it leaves on disk. Names are imported on first use."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "Run": "record",
    "RunDirectory": "record",
    "Settings": "session",
    "Supervised": "supervised",
    "Trained": "loop",
    "finish": "loop",
    "sft": "supervised",
    "start": "loop",
    "train": "loop",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'grpo_jax.training' has no attribute {name!r}")
    return getattr(import_module(f"grpo_jax.training.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
