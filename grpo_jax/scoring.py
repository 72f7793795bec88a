"""From rollouts to rewards: each host decodes and scores the responses to its own prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jaxtyping import Float

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import everywhere, from_hosts, place_prompts, prompts_of_host, values_of_host
from grpo_jax.objectives import scored_of
from grpo_jax.rewards import as_mix, judge, place_steps
from grpo_jax.structs import Rollouts, Scored

FAILED = 2  # what a host says whose reward failed


@dataclass(frozen=True)
class Rewards:
    """What the responses of a step earned: `parts_PGR` of all prompts, NaN where a reward could not judge.

    `steps_PGT` are rewards of single tokens, None without any; `greedy_P1R` those of greedy answers, where the
    objective compares with them. `examples` and `texts` are of the prompts `index_p` alone, which this host scored.
    """

    parts_PGR: Float[np.ndarray, "P G R"]
    steps_PGT: Array | None = None
    greedy_P1R: Float[np.ndarray, "P 1 R"] | None = None
    examples: Sequence[Any] = ()
    texts: Sequence[Sequence[str]] = ()
    index_p: np.ndarray | slice = field(default_factory=lambda: slice(None))


class FailedOnAHost(Exception):
    """A reward failed on one of several hosts; all raise this at the same point. `own` is the error if it was here."""

    def __init__(self, own: Exception | None) -> None:
        super().__init__("A reward failed on another host." if own is None else str(own))
        self.own = own


def score_rollouts(algorithm: Algorithm, rollouts: Rollouts, examples: Sequence[Any], step: int) -> Rewards:
    """The rewards of all responses. `step` is for TRL's reward functions that ask for it."""
    ids, mesh = chosen_tokens(rollouts), mesh_of(rollouts)
    index_p = prompts_of_host(mesh, len(examples))
    own = [examples[index] for index in index_p]
    texts = decoded(algorithm.decode, ids)
    failure: Exception | None = None
    try:
        parts_pGR, ends = judge(algorithm.reward, own, texts, ids, step, algorithm.reward_seconds)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        failure, ends = error, {}  # the other hosts have to know before they compute with the rewards
        parts_pGR = np.zeros((len(own), len(ids[0]), len(as_mix(algorithm.reward).parts)), np.float32)
    unknown = bool(np.isnan(parts_pGR).all())  # whether there would have been rewards of steps, too
    steps_PGT = None
    most = _most_of_any_host(FAILED if failure is not None else int(bool(ends) or unknown))
    if most == FAILED:
        raise FailedOnAHost(failure)
    if most:
        steps_PGT = from_hosts(place_steps(ends, ids, algorithm.decode, values_of_host(rollouts.action_PGT)), mesh)
    parts_PGR, greedy_P1R = everywhere(from_hosts(parts_pGR, mesh)), None
    if rollouts.greedy is not None:
        greedy_P1R = score_rollouts(algorithm, rollouts.greedy, examples, step).parts_PGR
    return Rewards(parts_PGR, steps_PGT, greedy_P1R, own, texts, index_p)


def chosen_tokens(rollouts: Rollouts) -> list[list[list[int]]]:
    """The ids that the policy chose in each response of this host's prompts, end tokens included."""
    tokens_pGT, action_pGT = values_of_host(rollouts.tokens_PGT), values_of_host(rollouts.action_PGT)
    pairs = zip(tokens_pGT, action_pGT, strict=True)
    return [[ids[chosen].tolist() for ids, chosen in zip(*group, strict=True)] for group in pairs]


def decoded(decode: Callable[[Sequence[int]], str], ids: Sequence[Sequence[Sequence[int]]]) -> list[list[str]]:
    """The text of each response."""
    return [[decode(response) for response in group] for group in ids]


def _most_of_any_host(number: int) -> int:
    """The largest of the hosts' numbers: 1 if a host wants what all have to do together, `FAILED` if it failed."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(number)).max())


def scored(algorithm: Algorithm, rollouts: Rollouts, rewards: Rewards) -> Scored:
    """The rewards with their weighted total, on the devices of the rollouts, as an objective sees them."""
    weights_R, mesh = jnp.asarray(as_mix(algorithm.reward).weights_R), mesh_of(rollouts)

    def on_devices(parts_PGR: np.ndarray) -> Array:
        return jnp.asarray(parts_PGR) if mesh is None else place_prompts(parts_PGR, mesh)

    greedy_P1 = None
    if rewards.greedy_P1R is not None:
        greedy_P1 = scored_of(on_devices(rewards.greedy_P1R), weights_R, rollouts).rewards_PG
    return scored_of(
        on_devices(rewards.parts_PGR), weights_R, rollouts, steps_PGT=rewards.steps_PGT, greedy_P1=greedy_P1
    )
