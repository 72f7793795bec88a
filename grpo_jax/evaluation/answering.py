"""Asks held-out prompts, scores the answers, and counts: the same for a training and for `grpo-jax eval`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of, prompt_shards
from grpo_jax.devices.placing import everywhere, from_hosts, place_prompts, values_of_host
from grpo_jax.environments import Bounded, Environment
from grpo_jax.evaluation.estimators import VOTERS, average, majority_at, pass_at, sizes
from grpo_jax.evaluation.offered import with_environment
from grpo_jax.evaluation.questions import MAX_PROMPT_TOKENS, Questions
from grpo_jax.evaluation.result import Evaluated, intervals_of, with_ends
from grpo_jax.evaluation.settings import Evaluation
from grpo_jax.evaluation.voting import said_by
from grpo_jax.grpo import Phase
from grpo_jax.metrics import total_rewards
from grpo_jax.models import Model
from grpo_jax.rewards import Example, Mix, Said
from grpo_jax.rollout import answer
from grpo_jax.scoring import EarlyScoring, Rewards, aligned, score_rollouts
from grpo_jax.structs import Params
from grpo_jax.tasks import Task

TOLERANCE = 1e-6  # of a sum of float32 numbers that should be `right_from`
Tell = Callable[[int, int], None]  # how many prompts have been answered, and of how many


def evaluate(
    algorithm: Algorithm,
    model: Model,
    examples: Sequence[Example],
    params: Params,
    max_prompt_tokens: int = MAX_PROMPT_TOKENS,
    step: int = 0,
    phase: Phase = nullcontext,
    evaluation: Evaluation | None = None,
    environment: Environment | Bounded | None = None,
) -> Evaluated:
    """What answers to the examples earn: a mapping with `reward`, `rewards/NAME/mean`, `pass@1` and more, by default
    of one greedy answer to each.

    With an `environment`, answers are conversations with it. An engine that cannot answer greedily answers as it does
    in training, with the same key each time. `step` is for
    TRL's reward functions that ask for it.
    """
    if not examples:
        raise ValueError(
            "An evaluation asks at least one example; got none. Give it some that are not trained on, such as those of"
            " a task with held_out above 0."
        )
    if evaluation is not None:
        evaluation.check_right(algorithm.mix)
    model, task, bounded = with_environment(model, Task(examples, (), algorithm.mix, environment))
    questions = Questions(task.train, model, max_prompt_tokens, bounded)
    return evaluate_questions(algorithm, questions, params, step, phase, evaluation)


def evaluate_questions(
    algorithm: Algorithm,
    questions: Questions,
    params: Params,
    step: int,
    phase: Phase,
    evaluation: Evaluation | None = None,
    tell: Tell = lambda done, count: None,
) -> Evaluated:
    """As `evaluate`, with prompts that are encoded already. `tell` hears of each call how far it is."""
    evaluation = Evaluation() if evaluation is None else evaluation
    count, mesh = len(questions.examples), mesh_of(params)
    shards, calls = 1 if mesh is None else prompt_shards(mesh), []
    divided = calls_of(count, evaluation.responses_at_once // evaluation.answers(algorithm.engine), shards)
    for number, indices in enumerate(divided):
        calls.append(_ask(algorithm, questions, indices, params, step, phase, evaluation, number))
        tell(min(len(indices) * (number + 1), count), count)
    return _counted(algorithm.mix, calls, questions, step, evaluation)


def calls_of(count: int, most: int, shards: int) -> list[list[int]]:
    """The prompts of each call of the engine: at most about so many, all calls alike, as each size is a program.

    Prompts have to divide over the devices, so some are asked again; these are not counted.
    """
    calls = math.ceil(count / max(most, 1))
    size = math.ceil(count / calls / shards) * shards
    return [[index % count for index in range(start, start + size)] for start in range(0, count, size)]


@dataclass(frozen=True)
class _Call:
    """The answers of one call: their rewards, with the texts of this host's prompts, and their lengths in tokens."""

    rewards: Rewards
    length_PG: np.ndarray
    ended_PG: np.ndarray
    mesh: Mesh | None


def _ask(
    algorithm: Algorithm,
    questions: Questions,
    indices: Sequence[int],
    params: Params,
    step: int,
    phase: Phase,
    evaluation: Evaluation,
    number: int,
) -> _Call:
    """Answers to some prompts, with a key of their own for each call, and what they earn."""
    mesh, key = mesh_of(params), jax.random.key(evaluation.seed)
    key = jax.random.fold_in(key, number) if number else key
    chosen = questions.begin(indices, (evaluation.seed,))
    prompts, examples = chosen.prompts, chosen.examples
    engine = evaluation.engine(algorithm.engine)
    engine = engine.with_room(algorithm.policy, prompts, 1 if mesh is None else prompt_shards(mesh))
    prompts = prompts if mesh is None else place_prompts(prompts, mesh)
    partner = questions.partner(chosen, prompts, engine.responses)
    with EarlyScoring(algorithm, prompts, examples, partner) as early:
        with phase("evaluating"):
            rollouts = answer(engine, algorithm.policy, params, prompts, key, examples, **early.talks)
            rollouts = jax.block_until_ready(rollouts)
        rewards = score_rollouts(algorithm, rollouts, examples, step, early)
    length_pG, ended_pG = values_of_host(rollouts.action_PGT).sum(axis=2), values_of_host(rollouts.ended_PG)
    return _Call(rewards, *(everywhere(from_hosts(own_pG, mesh)) for own_pG in (length_pG, ended_pG)), mesh)


@dataclass(frozen=True)
class _Numbers:
    """The rewards and lengths of all calls, one call after the other; `right_PG` is 1, 0, or NaN without a score."""

    parts_PGR: np.ndarray
    totals_PG: np.ndarray
    right_PG: np.ndarray
    length_PG: np.ndarray
    ended_PG: np.ndarray


def _numbers(mix: Mix, calls: Sequence[_Call], evaluation: Evaluation) -> _Numbers:
    parts_PGR = np.concatenate([call.rewards.parts_PGR for call in calls])
    totals_PG = total_rewards(parts_PGR, mix)
    column = evaluation.column(mix)
    decisive_PG = totals_PG if column is None else parts_PGR[:, :, column]
    right_PG = np.where(np.isnan(decisive_PG), np.nan, decisive_PG >= evaluation.right_from - TOLERANCE)
    lengths = (np.concatenate([getattr(call, name) for call in calls]) for name in ("length_PG", "ended_PG"))
    return _Numbers(parts_PGR, totals_PG, right_PG, *lengths)


def _counted(mix: Mix, calls: Sequence[_Call], questions: Questions, step: int, evaluation: Evaluation) -> Evaluated:
    """The metrics of all calls, without prompts that were asked again."""
    calls = [replace(call, rewards=aligned(call.rewards, mix.names)) for call in calls]
    numbers, prompts = _numbers(mix, calls, evaluation), [repr(example.prompt) for example in questions.examples]
    values = {"reward": average(numbers.totals_PG)}
    values |= {f"rewards/{name}/mean": average(numbers.parts_PGR[:, :, r]) for r, name in enumerate(mix.names)}
    G = numbers.right_PG.shape[1]
    ks, said, left_out = sizes(G), said_by(mix, evaluation.right), {}
    values |= {f"pass@{k}": pass_at(numbers.right_PG, k) for k in ks}
    votes = [k for k in ks if k >= VOTERS]
    if said is not None and votes:
        values |= _majorities(calls, numbers.right_PG, said, votes)
    elif votes:
        left_out["maj@k"] = "no reward says which answers are the same (with a method said(response))"
    values = {name: values_P[: len(prompts)] for name, values_P in values.items()}
    metrics = {name: _mean(values_P) for name, values_P in values.items()}
    metrics |= {
        "length": float(numbers.length_PG[: len(prompts)].mean()),  # in tokens
        "truncated": float(1 - numbers.ended_PG[: len(prompts)].mean()),
        "unscored": float(np.isnan(numbers.totals_PG[: len(prompts)]).sum()),
    }
    intervals = intervals_of(values, evaluation.confidence)
    rows = list(_rows(mix, calls, numbers, len(prompts), step))
    return Evaluated(
        with_ends(metrics, intervals), values, intervals, rows, prompts, evaluation.confidence, left_out, G
    )


def _mean(values_P: np.ndarray) -> float:
    known = values_P[~np.isnan(values_P)]
    return float(known.mean()) if known.size else math.nan


def _majorities(calls: Sequence[_Call], right_PG: np.ndarray, said: Said, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """maj@k of each prompt: each host reads the texts of its own, and all have the numbers."""
    found = []
    for start, call in zip(_starts(calls), calls, strict=True):
        right_pG = right_PG[start : start + len(call.length_PG)][call.rewards.index_p]
        answers = [[said(text) for text in texts] for texts in call.rewards.texts]
        own_pX = np.stack([majority_at(right_pG, answers, k) for k in ks], axis=1)
        found.append(everywhere(from_hosts(own_pX, call.mesh)))
    majority_PX = np.concatenate(found)
    return {f"maj@{k}": majority_PX[:, x] for x, k in enumerate(ks)}


def _starts(calls: Sequence[_Call]) -> list[int]:
    """The position of the first prompt of each call among those of all."""
    lengths = [len(call.length_PG) for call in calls]
    return [sum(lengths[:number]) for number in range(len(calls))]


def _rows(mix: Mix, calls: Sequence[_Call], numbers: _Numbers, count: int, step: int) -> Iterator[dict[str, Any]]:
    """One row for each answer of this host's prompts: what was asked and said, every reward, and its length."""
    for start, call in zip(_starts(calls), calls, strict=True):
        rewards = call.rewards
        index_p = start + np.arange(len(call.length_PG))[rewards.index_p]
        own = zip(index_p, rewards.examples, rewards.texts, strict=True)
        for p, (index, example, texts) in enumerate(own):
            for g, text in enumerate(texts if index < count else ()):
                row = {"step": step, "prompt": example.prompt, "answer": example.answer, "completion": text}
                row |= {f"rewards/{name}": numbers.parts_PGR[index, g, r].item() for r, name in enumerate(mix.names)}
                row |= {name: values[p][g] for name, values in rewards.extras.items()}
                row |= {"reward": numbers.totals_PG[index, g].item(), "length": int(numbers.length_PG[index, g])}
                yield row | {"truncated": not numbers.ended_PG[index, g], "sample": g}
