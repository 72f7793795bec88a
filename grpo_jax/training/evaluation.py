"""Evaluation: the mean rewards of answers to prompts that nothing is learned from."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import jax

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of, prompt_shards
from grpo_jax.devices.placing import place_prompts
from grpo_jax.grpo import Phase
from grpo_jax.metrics import describe_rewards
from grpo_jax.models import Model
from grpo_jax.rewards import Example
from grpo_jax.rollout import answer
from grpo_jax.scoring import EarlyScoring, score_rollouts
from grpo_jax.structs import Params
from grpo_jax.training.session import Questions, Settings


def evaluate(
    algorithm: Algorithm,
    model: Model,
    examples: Sequence[Example],
    params: Params,
    max_prompt_tokens: int = Settings.max_prompt_tokens,
    step: int = 0,
    phase: Phase = nullcontext,
) -> dict[str, float]:
    """The mean reward of greedy answers to the examples, and the mean of each of its parts: `reward` and
    `rewards/NAME/mean`.

    An engine that cannot answer greedily answers as it does in training, with the same key each time. `step` is for
    TRL's reward functions that ask for it.
    """
    return evaluate_questions(algorithm, Questions(examples, model, max_prompt_tokens), params, step, phase)


def evaluate_questions(
    algorithm: Algorithm, questions: Questions, params: Params, step: int, phase: Phase
) -> dict[str, float]:
    """As `evaluate`, with prompts that are encoded already."""
    count, mesh = len(questions.examples), mesh_of(params)
    shards = 1 if mesh is None else prompt_shards(mesh)
    filled = math.ceil(count / shards) * shards  # prompts have to divide over the devices: the first are asked again
    prompts, examples = questions.choose([index % count for index in range(filled)])
    engine = algorithm.engine.greedy() or algorithm.engine
    engine = engine.with_room(algorithm.policy, prompts, shards)
    prompts = prompts if mesh is None else place_prompts(prompts, mesh)
    inputs = (algorithm.policy, params, prompts, jax.random.key(0), examples)
    with EarlyScoring(algorithm, prompts, examples) as early:
        with phase("evaluating"):
            rollouts = jax.block_until_ready(answer(engine, *inputs, early.heard))
        parts_PGR = score_rollouts(algorithm, rollouts, examples, step, early).parts_PGR[:count]
    described = describe_rewards(parts_PGR, algorithm.mix)
    return {name: value for name, value in described.items() if name == "reward" or name.endswith("/mean")}
