"""Rewards: plain Python functions of an example and a response, mixes of them, and scoring with them."""

from grpo_jax.rewards.answers import exact, last_number
from grpo_jax.rewards.batch import Batch
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.expressions import reaches_target
from grpo_jax.rewards.format import Matches, follows_template
from grpo_jax.rewards.guarded import Guarded
from grpo_jax.rewards.judging import Judged, arrange, ask, judge, score
from grpo_jax.rewards.mixing import Mix, Reward, as_mix
from grpo_jax.rewards.needs import check_examples, needs
from grpo_jax.rewards.rubrics import Rubric
from grpo_jax.rewards.signatures import may_log
from grpo_jax.rewards.steps import Steps, place_steps

__all__ = [
    "Batch",
    "Example",
    "Guarded",
    "Judged",
    "Matches",
    "Mix",
    "Reward",
    "Rubric",
    "Steps",
    "arrange",
    "as_mix",
    "ask",
    "check_examples",
    "exact",
    "follows_template",
    "judge",
    "last_number",
    "may_log",
    "needs",
    "place_steps",
    "reaches_target",
    "score",
]
