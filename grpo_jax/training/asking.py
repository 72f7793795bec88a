"""Which prompts a step learns from: the next ones in order, and more while too many groups have equal rewards."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import everywhere, place_prompts
from grpo_jax.devices.programs import program
from grpo_jax.devices.sharding import PROMPTS, fit
from grpo_jax.grpo import Phase, sample, score
from grpo_jax.objectives.selection import lively as lively_in_total
from grpo_jax.objectives.selection import lively_in_parts
from grpo_jax.scoring import EarlyScoring, Rewards, aligned, means_of, scored
from grpo_jax.structs import Prompts, Rollouts, TrainState
from grpo_jax.training.order import pick, step_key
from grpo_jax.training.session import Session


@dataclass(frozen=True)
class Answers:
    """What a step learns from: the responses to the examples at `indices`, and their rewards.

    `means` are the mean rewards of all examples that were asked, by their index; -inf if a response has no reward.
    """

    rollouts: Rollouts
    rewards: Rewards
    indices: list[int]
    means: dict[int, float]


def ask(session: Session, state: TrainState, index: int, retired: Collection[int], phase: Phase) -> Answers:
    """Answers to as many prompts as a step has.

    With `train.resample`, other prompts are asked until enough groups differ in reward, for so many rounds at most;
    groups with equal rewards fill what is left then (dynamic sampling, DAPO, arXiv:2503.14476).
    """
    settings, algorithm, G = session.settings, session.algorithm, session.algorithm.engine.responses
    rounds: list[tuple[Rollouts, Rewards]] = []
    asked: list[int] = []
    for number in range(settings.resample if algorithm.objective.needs_rewards else 1):
        left_out = {*retired, *asked}
        total = len(session.questions.examples)
        if number and total - len(left_out) < settings.prompts:
            break
        chosen = pick(settings.seed, index, settings.prompts, total, left_out, number)
        begun = session.questions.begin(chosen, (settings.seed, index, number))
        prompts, examples = place_prompts(begun.prompts, session.mesh), begun.examples
        key, partner = step_key(settings.seed, index, number), session.questions.partner(begun, prompts, G)
        with EarlyScoring(algorithm, prompts, examples, partner) as early:
            rollouts = sample(algorithm, state, prompts, examples, key, phase, early)
            rounds.append((rollouts, score(algorithm, rollouts, examples, phase, int(state.step), early)))
        rounds = [(before, aligned(rewards, algorithm.mix.names)) for before, rewards in rounds]
        asked += chosen
        if sum(lively(algorithm, *answers).sum() for answers in rounds) >= settings.prompts:
            break
    totals = [everywhere(scored(algorithm, *answers).rewards_PG) for answers in rounds]
    means_P = np.nan_to_num(np.concatenate(totals), nan=-np.inf).mean(axis=1)
    means = dict(zip(asked, means_P.tolist(), strict=True))
    if len(rounds) == 1:
        return Answers(*rounds[0], asked, means)
    lively_P = np.concatenate([lively(algorithm, *answers) for answers in rounds])
    kept_p = np.sort(np.argsort(~lively_P, kind="stable")[: settings.prompts])
    return Answers(*merge(rounds, kept_p), [asked[index] for index in kept_p], means)


def lively(algorithm: Algorithm, rollouts: Rollouts, rewards: Rewards) -> np.ndarray:
    """Which groups have different rewards after shaping; with `lively_in_parts`, those in which any part of the reward
    differs.
    """
    shaped, objective = scored(algorithm, rollouts, rewards), algorithm.objective
    for shape in objective.shaping:
        shaped = shape(shaped)
    select = lively_in_parts if lively_in_parts in objective.select else lively_in_total
    return np.asarray(everywhere(select(shaped)).any(axis=1))


def merge(rounds: Sequence[tuple[Rollouts, Rewards]], index_p: np.ndarray) -> tuple[Rollouts, Rewards]:
    """Some of the prompts of several rounds, as if they had been asked in one. Texts stay on the host that has them."""
    first = rounds[0][0]
    P, L = len(first.tokens_PGT), max(rollouts.prompts.tokens_PL.shape[1] for rollouts, _ in rounds)

    def joined(arrays: Sequence[Any]) -> Any:
        return None if arrays[0] is None else np.concatenate(arrays)[index_p]

    steps = [rewards.steps_PGT for _, rewards in rounds]
    if any(array is not None for array in steps):  # where no step was judged in a round, there are none
        steps = [jnp.full_like(first.logprobs_PGT, jnp.nan) if a is None else a for a in steps]
    padded = [replace(rollouts, prompts=_padded(rollouts.prompts, L), greedy=None) for rollouts, _ in rounds]
    merged, steps_PGT = _chosen(list(zip(padded, steps, strict=True)), index_p, mesh_of(first))
    own = [
        (new, rewards, position)
        for new, index in enumerate(index_p)
        for rewards in (rounds[index // P][1],)
        for position in np.flatnonzero(rewards.index_p == index % P)
    ]
    return merged, Rewards(
        joined([rewards.parts_PGR for _, rewards in rounds]),
        steps_PGT,
        joined([rewards.greedy_P1R for _, rewards in rounds]),
        [rewards.examples[position] for _, rewards, position in own],
        [rewards.texts[position] for _, rewards, position in own],
        np.array([new for new, _, _ in own], int),
        means_of([rewards.metrics for _, rewards in rounds]),
        _extras([(rewards, int(position)) for _, rewards, position in own]),
        rounds[0][1].columns,
    )


def _extras(own: Sequence[tuple[Rewards, int]]) -> dict[str, list[Sequence[Any]]]:
    """What rewards have logged beside the responses to these prompts; None for those of a round without it."""
    names = {name for rewards, _ in own for name in rewards.extras}
    nothing = [[None] * len(rewards.texts[position]) for rewards, position in own]
    return {
        name: [
            rewards.extras[name][position] if name in rewards.extras else empty
            for (rewards, position), empty in zip(own, nothing, strict=True)
        ]
        for name in sorted(names)
    }


@program(static_argnames="mesh")
def _chosen(rounds: Sequence[Any], index_p: Array | np.ndarray, mesh: Mesh | None) -> Any:
    """Some prompts of several trees, as one tree that is sharded by prompts."""
    merged = jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[index_p], *rounds)
    if mesh is None:
        return merged
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, fit(PROMPTS, a.shape, mesh)), merged)


def _padded(prompts: Prompts, L: int) -> Prompts:
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (L - a.shape[1], 0), *((0, 0),) * (a.ndim - 2))), prompts)
