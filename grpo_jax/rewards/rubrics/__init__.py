"""Rubrics: rewards of several criteria, which are read from a file and judged by rules or by a judge."""

from grpo_jax.rewards.rubrics.criterion import Asked, AsyncJudge, Criterion, Judge, Sheet
from grpo_jax.rewards.rubrics.reading import Criteria, read_criteria
from grpo_jax.rewards.rubrics.rubric import Rubric

__all__ = ["Asked", "AsyncJudge", "Criteria", "Criterion", "Judge", "Rubric", "Sheet", "read_criteria"]
