"""Judges of answers: a language model in this process, or one behind an endpoint. Each function below makes a judge.

In a config the section `judge` names one of them; rubrics then ask it about the criteria that have no rule.
"""

from grpo_jax.judges.endpoint import Endpoint, endpoint
from grpo_jax.judges.in_process import ModelJudge, model
from grpo_jax.rewards.rubrics import Judge

__all__ = ["Endpoint", "Judge", "ModelJudge", "endpoint", "model"]
