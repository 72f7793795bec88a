"""A run, callable from Python: its parts, its loop, and what it leaves on disk."""

from grpo_jax.training.evaluation import evaluate
from grpo_jax.training.loop import Trained, finish, start, train
from grpo_jax.training.record import Run, RunDirectory
from grpo_jax.training.session import Settings

__all__ = ["Run", "RunDirectory", "Settings", "Trained", "evaluate", "finish", "start", "train"]
