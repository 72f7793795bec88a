"""Tasks: questions with answers, their wording as prompts, and a reward. Each function below makes a task."""

from grpo_jax.rewards.example import Example
from grpo_jax.tasks.arithmetic import arithmetic
from grpo_jax.tasks.boxed_math import boxed_math
from grpo_jax.tasks.calculator import calculator
from grpo_jax.tasks.countdown import countdown
from grpo_jax.tasks.data import data
from grpo_jax.tasks.grounded import grounded
from grpo_jax.tasks.gsm8k import gsm8k
from grpo_jax.tasks.guess import guess
from grpo_jax.tasks.json_format import json_format
from grpo_jax.tasks.jsonl import jsonl
from grpo_jax.tasks.kept import kept
from grpo_jax.tasks.letters import letter_counting, reverse_text
from grpo_jax.tasks.search import search_articles
from grpo_jax.tasks.task import Task
from grpo_jax.tasks.travel import travel

__all__ = [
    "Example",
    "Task",
    "arithmetic",
    "boxed_math",
    "calculator",
    "countdown",
    "data",
    "grounded",
    "gsm8k",
    "guess",
    "json_format",
    "jsonl",
    "kept",
    "letter_counting",
    "reverse_text",
    "search_articles",
    "travel",
]
