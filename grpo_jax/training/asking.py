"""Which prompts a step learns from: those whose turn it is, and more of them while too many groups agree."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.sharding import PROMPTS, everywhere, fit, place_prompts
from grpo_jax.grpo import Answers, Watch, answer
from grpo_jax.learner.microbatches import joined
from grpo_jax.objectives import scored_of
from grpo_jax.objectives.shaping import lively as lively_in_total
from grpo_jax.objectives.shaping import lively_in_parts
from grpo_jax.rewards import as_mix
from grpo_jax.structs import Prompts, Scored, TrainState
from grpo_jax.training.order import pick


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
    rewards = [everywhere(scored(algorithm, answers).rewards_PG) for answers in rounds]
    means_P = np.nan_to_num(np.concatenate(rewards), nan=-np.inf).mean(axis=1)
    means = dict(zip(asked, means_P.tolist(), strict=True))
    if len(rounds) == 1:
        return rounds[0], asked, means
    everyone = np.concatenate([lively(algorithm, answers) for answers in rounds])
    places = np.sort(np.argsort(~everyone, kind="stable")[: settings.prompts])
    return merge(rounds, places), [asked[place] for place in places], means


def lively(algorithm: Algorithm, answers: Answers) -> np.ndarray:
    """Which groups have rewards that differ, after what the objective makes of them; or some part that does, where it
    compares by part.
    """
    shaped, objective = scored(algorithm, answers), algorithm.objective
    for shape in objective.shaping:
        shaped = shape(shaped)
    select = lively_in_parts if lively_in_parts in objective.select else lively_in_total
    return everywhere(select(shaped)).any(axis=1)


def scored(algorithm: Algorithm, answers: Answers) -> Scored:
    """The rewards of answers with their total."""
    weights_R = jnp.asarray(as_mix(algorithm.reward).weights_R)
    rewards_PGR, mesh = answers.rewards_PGR, mesh_of(answers.rollouts)
    rewards_PGR = jnp.asarray(rewards_PGR) if mesh is None else place_prompts(rewards_PGR, mesh)
    rollouts = answers.rollouts
    return scored_of(rewards_PGR, weights_R, rollouts if rollouts.shares == 1 else joined(rollouts, rollouts.shares))


def merge(rounds: Sequence[Answers], places: np.ndarray) -> Answers:
    """Some of the answers of several rounds, as if they had been given in one. Texts stay on the host that has them."""
    first = rounds[0].rollouts
    P, L = len(first.tokens_PGT), max(answers.rollouts.prompts.tokens_PL.shape[1] for answers in rounds)
    mesh, rows = mesh_of(first), (places[:, None] * first.shares + np.arange(first.shares)[None]).reshape(-1)

    def joined(arrays: Sequence[Any]) -> Any:
        return None if arrays[0] is None else np.concatenate(arrays)[places]

    steps = [answers.steps_PGT for answers in rounds]
    if any(array is not None for array in steps):  # where no step was judged in a round, there are none
        steps = [jnp.full_like(first.logprobs_PGT, jnp.nan) if a is None else a for a in steps]
    rollouts = [replace(answers.rollouts, prompts=_padded(answers.rollouts.prompts, L)) for answers in rounds]
    merged, steps_PGT = _chosen(list(zip(rollouts, steps, strict=True)), rows, mesh)
    here = [
        (new, answers, row)
        for new, place in enumerate(rows)
        for answers in (rounds[place // P],)
        for row in np.flatnonzero(answers.place_p == place % P)
    ]
    return Answers(
        merged,
        [answers.examples[row] for _, answers, row in here],
        [answers.responses[row] for _, answers, row in here],
        joined([answers.rewards_PGR for answers in rounds]),
        steps_PGT,
        joined([answers.greedy_P1R for answers in rounds]),
        np.array([new for new, _, _ in here], int),
    )


@partial(jax.jit, static_argnames="mesh")
def _chosen(rounds: Sequence[Any], places: Array, mesh: Mesh | None) -> Any:
    """Some prompts of several trees, laid out as one."""
    merged = jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[places], *rounds)
    if mesh is None:
        return merged
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, fit(PROMPTS, a.shape, mesh)), merged)


def _padded(prompts: Prompts, L: int) -> Prompts:
    return jax.tree.map(lambda a_PL: jnp.pad(a_PL, ((0, 0), (L - a_PL.shape[1], 0))), prompts)
