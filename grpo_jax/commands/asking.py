"""Which prompts a step learns from: those whose turn it is, and more of them while too many groups agree."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.grpo import Algorithm, Answers, Watch, answer
from grpo_jax.objectives import scored_of
from grpo_jax.rewards import as_mix
from grpo_jax.runtime.order import pick
from grpo_jax.runtime.sharding import place_prompts
from grpo_jax.shaping import lively as lively_in_total
from grpo_jax.shaping import lively_in_parts
from grpo_jax.structs import Prompts, Rollouts, Scored, TrainState


def ask(
    session: Any, state: TrainState, index: int, retired: Collection[int], watch: Watch
) -> tuple[Answers, list[int], dict[int, float]]:
    """Answers to as many prompts as a step has, which examples they are, and the mean reward of all that were asked.

    With `train.resample`, other prompts are asked until enough groups differ in reward, for so many rounds at most;
    groups that agree fill what is left then (dynamic sampling, DAPO, arXiv:2503.14476).
    """
    settings, algorithm = session.settings, session.algorithm
    rounds: list[Answers] = []
    asked: list[int] = []
    key = jax.random.fold_in(jax.random.key(settings.seed), index)
    for turn in range(settings.resample):
        left_out = {*retired, *asked}
        total = len(session.questions.examples)
        if turn and total - len(left_out) < settings.prompts:
            break
        chosen = pick(settings.seed, index, settings.prompts, total, left_out, turn)
        prompts, examples = session.questions.choose(chosen)
        prompts = place_prompts(prompts, session.mesh)
        own_key = jax.random.fold_in(key, turn) if turn else key
        rounds.append(answer(algorithm, state, prompts, examples, own_key, watch))
        asked += chosen
        if sum(lively(algorithm, answers).sum() for answers in rounds) >= settings.prompts:
            break
    rewards = [np.asarray(scored(algorithm, answers).rewards_PG) for answers in rounds]
    means_P = np.nan_to_num(np.concatenate(rewards), nan=-np.inf).mean(axis=1)
    means = dict(zip(asked, means_P.tolist(), strict=True))
    if len(rounds) == 1:
        return rounds[0], asked, means
    everyone = np.concatenate([lively(algorithm, answers) for answers in rounds])
    places = np.sort(np.argsort(~everyone, kind="stable")[: settings.prompts])
    return merge(rounds, places, session.mesh), [asked[place] for place in places], means


def lively(algorithm: Algorithm, answers: Answers) -> np.ndarray:
    """Which groups have rewards that differ, after what the objective makes of them; or some part that does, where it
    compares by part.
    """
    shaped, objective = scored(algorithm, answers), algorithm.objective
    for shape in objective.shaping:
        shaped = shape(shaped)
    select = lively_in_parts if lively_in_parts in objective.select else lively_in_total
    return np.asarray(select(shaped)).any(axis=1)


def scored(algorithm: Algorithm, answers: Answers) -> Scored:
    """The rewards of answers with their total."""
    weights_R = jnp.asarray(as_mix(algorithm.reward).weights_R)
    return scored_of(jnp.asarray(answers.rewards_PGR), weights_R, answers.rollouts)


def merge(rounds: Sequence[Answers], places: np.ndarray, mesh: jax.sharding.Mesh) -> Answers:
    """Some of the answers of several rounds, as if they had been given in one."""
    L = max(answers.rollouts.prompts.tokens_PL.shape[1] for answers in rounds)
    rollouts = [jax.tree.map(np.asarray, answers.rollouts) for answers in rounds]
    rollouts = [replace(some, prompts=_padded(some.prompts, L)) for some in rollouts]
    merged: Rollouts = jax.tree.map(lambda *arrays: np.concatenate(arrays)[places], *rollouts)
    examples = [example for answers in rounds for example in answers.examples]
    responses = [group for answers in rounds for group in answers.responses]

    def joined(name: str) -> np.ndarray | None:
        arrays = [getattr(answers, name) for answers in rounds]
        if all(array is None for array in arrays):
            return None
        nowhere_PGT = np.full(rollouts[0].action_PGT.shape, np.nan, np.float32)  # no step was judged in this round
        return np.concatenate([nowhere_PGT if array is None else array for array in arrays])[places]

    return Answers(
        place_prompts(merged, mesh),
        [examples[place] for place in places],
        [responses[place] for place in places],
        joined("rewards_PGR"),
        joined("steps_PGT"),
        joined("greedy_P1R"),
    )


def _padded(prompts: Prompts, L: int) -> Prompts:
    return jax.tree.map(lambda a_PL: np.pad(a_PL, ((0, 0), (L - a_PL.shape[1], 0))), prompts)
