"""Cutting a batch into microbatches, and putting what they give together again.

A user says how many responses a device learns from at once, and everything else follows: each microbatch has the same
number of prompts on every device. If the devices do not divide the prompts, a group is spread over several devices,
each of which reads the prompt; where one group is more than a device may learn from at once, it is split in turn.
What is cut are tokens, masks and numbers for each token: small arrays, wherever they live.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.devices.mesh import prompt_shards
from grpo_jax.devices.programs import program
from grpo_jax.devices.sharding import PROMPTS, devices_per_group, fit
from grpo_jax.learner.packing import Microbatch, divide
from grpo_jax.structs import Prompts, Rollouts

REPLICATED = PartitionSpec()


@dataclass(frozen=True)
class Cut:
    """How minibatches are cut.

    A group is spread over `spread` devices, as so many subgroups of its responses. A microbatch has `subgroups` of them
    over all devices, and 1 / `splits` of the responses in each.
    """

    spread: int
    subgroups: int
    splits: int


def cut(P: int, G: int, minibatches: int, responses_at_once: int | None, mesh: Mesh | None) -> Cut:
    """The largest microbatches in which no device learns from more than so many responses; None sets no bound."""
    shards = 1 if mesh is None else prompt_shards(mesh)
    spread = devices_per_group(P // minibatches, G, mesh)
    subgroups, each = P // minibatches * spread // shards, G // spread  # of each device
    bound = subgroups * each if responses_at_once is None else max(responses_at_once, 1)
    at_once = max([n for n in _divisors(subgroups) if n * each <= bound], default=1)
    splits = min(n for n in _divisors(each) if each // n <= bound)
    return Cut(spread, at_once * shards, splits)


def check_cut(P: int, G: int | None, minibatches: int, mesh: Mesh | None) -> None:
    """Refuses minibatches that do not divide the prompts, or that the devices could not share evenly."""
    if P % minibatches:
        *most, last = map(str, _divisors(P))
        choices = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(
            f"{P} prompts do not divide into {minibatches} minibatches; choose {choices} for algorithm.minibatches."
        )
    if G is not None:
        devices_per_group(P // minibatches, G, mesh)


def arrange(rollouts: Rollouts, minibatches: int, how: Cut, mesh: Mesh | None) -> list[list[Microbatch]]:
    """The microbatches of each minibatch. A minibatch takes every n-th prompt, to have some on every device."""
    P, G, T = rollouts.tokens_PGT.shape
    length_PG = np.asarray(lengths(rollouts.valid_PGT | rollouts.action_PGT, mesh))
    length_ng = length_PG.reshape(P * how.spread, G // how.spread)
    shards = 1 if mesh is None else prompt_shards(mesh)
    arranged = []
    for minibatch in range(minibatches):
        subgroup_n = np.arange(P * how.spread).reshape(P, how.spread)[minibatch::minibatches].reshape(-1)
        found = divide(length_ng[subgroup_n], T, how.subgroups, how.splits, shards)
        arranged.append([_of_prompts(subgroup_n[each.index_p], each, how.spread, G) for each in found])
    return arranged


def _of_prompts(subgroup_n: np.ndarray, found: Microbatch, spread: int, G: int) -> Microbatch:
    """A microbatch of subgroups, as the prompts and responses that these are made of."""
    index_p, position_n = np.divmod(subgroup_n, spread)
    return Microbatch(index_p, found.index_pg + position_n[:, None] * (G // spread), found.slots_PBW)


@program(static_argnames="mesh")
def lengths(used_PGT: Array, mesh: Mesh | None) -> Array:
    """Tokens of each response up to the last that is used, on every device."""
    count_11T = jnp.arange(1, used_PGT.shape[2] + 1)[None, None]
    length_PG = jnp.max(jnp.where(used_PGT, count_11T, 0), axis=2)
    return length_PG if mesh is None else jax.lax.with_sharding_constraint(length_PG, NamedSharding(mesh, REPLICATED))


@program(static_argnames="mesh")
def choose(tree: Any, index_p: Array | np.ndarray, index_pg: Array | np.ndarray, mesh: Mesh | None) -> Any:
    """Some prompts of a batch or of rollouts, and some responses of each. Scalars and coefficients stay as they are."""

    def take(node: Any) -> Any:
        if isinstance(node, Prompts):
            return jax.tree.map(lambda a_PL: a_PL[index_p], node)
        return node[index_p[:, None], index_pg] if node.ndim > 1 else node

    chosen = jax.tree.map(take, tree, is_leaf=lambda node: isinstance(node, Prompts))
    if mesh is None:
        return chosen

    def divide_by_prompts(a: Array) -> Array:
        return jax.lax.with_sharding_constraint(a, fit(PROMPTS, a.shape, mesh)) if a.ndim > 1 else a

    return jax.tree.map(divide_by_prompts, chosen)


@program(static_argnames="mesh", donate_argnames="all_PGT")
def put(
    all_PGT: Array, index_p: Array | np.ndarray, index_pg: Array | np.ndarray, some_pgT: Array, mesh: Mesh | None
) -> Array:
    """The values of a microbatch where they belong in the batch."""
    all_PGT = all_PGT.at[index_p[:, None], index_pg].set(some_pgT)
    return all_PGT if mesh is None else jax.lax.with_sharding_constraint(all_PGT, fit(PROMPTS, all_PGT.shape, mesh))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
