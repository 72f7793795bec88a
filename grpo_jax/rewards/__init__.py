"""Rewards: plain Python functions of an example and a response, mixes of them, and scoring with them."""

from grpo_jax.rewards.answers import boxed_number, exact, last_number
from grpo_jax.rewards.batch import Batch
from grpo_jax.rewards.calling import Begun
from grpo_jax.rewards.code import PassesTests
from grpo_jax.rewards.conversation import Conversation
from grpo_jax.rewards.early import EarlyCalls
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.expressions import reaches_target
from grpo_jax.rewards.format import Matches, follows_template
from grpo_jax.rewards.guarded import Guarded
from grpo_jax.rewards.judging import Judged, arrange, ask, judge, score
from grpo_jax.rewards.mixing import Mix, Reward, as_mix
from grpo_jax.rewards.needs import check_examples, needs
from grpo_jax.rewards.of_environment import calls_work, environment
from grpo_jax.rewards.puzzles import SolvesPuzzle
from grpo_jax.rewards.rubrics import Rubric
from grpo_jax.rewards.says import Said, said_of, says
from grpo_jax.rewards.signatures import may_log
from grpo_jax.rewards.steps import Steps, place_steps
from grpo_jax.rewards.structured import follows_schema, same_json
from grpo_jax.rewards.symbolic import MathEqual
from grpo_jax.rewards.text import LanguageConsistency, RepetitionPenalty, alike

__all__ = [
    "Batch",
    "Begun",
    "Conversation",
    "EarlyCalls",
    "Example",
    "Guarded",
    "Judged",
    "LanguageConsistency",
    "Matches",
    "MathEqual",
    "Mix",
    "PassesTests",
    "RepetitionPenalty",
    "Reward",
    "Rubric",
    "Said",
    "SolvesPuzzle",
    "Steps",
    "alike",
    "arrange",
    "as_mix",
    "ask",
    "boxed_number",
    "calls_work",
    "check_examples",
    "environment",
    "exact",
    "follows_schema",
    "follows_template",
    "judge",
    "last_number",
    "may_log",
    "needs",
    "place_steps",
    "reaches_target",
    "said_of",
    "same_json",
    "says",
    "score",
]
