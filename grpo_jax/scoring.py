"""From rollouts to rewards: each host decodes and scores the responses to its own prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from grpo_jax.environments import Conversations
from grpo_jax.environments.conversations import totals
from grpo_jax.hosts.signals import StopRequested
from grpo_jax.objectives import scored_of
from grpo_jax.rewards import Batch, Begun, Conversation, EarlyCalls, Judged, Mix, arrange, ask, may_log, place_steps
from grpo_jax.rollout import Heard
from grpo_jax.structs import Prompts, Rollouts, Scored

STOPPED, FAILED = 2, 3  # what a host says whose reward did not return when the run was told to stop, or failed
TEXT_BYTES = 2**14  # that a host may tell the others of its rewards


@dataclass(frozen=True)
class Rewards:
    """What the responses of a step earned: `parts_PGR` of all prompts, NaN where a reward could not judge.

    `steps_PGT` are rewards of single tokens, None without any; `greedy_P1R` those of greedy answers, where the
    objective compares with them. `examples` and `texts` are of the prompts `index_p` alone, which this host scored,
    and so are `extras`, which rewards have logged beside each response. `metrics` are what they logged of the step.
    """

    parts_PGR: Float[np.ndarray, "P G R"]
    steps_PGT: Array | None = None
    greedy_P1R: Float[np.ndarray, "P 1 R"] | None = None
    examples: Sequence[Any] = ()
    texts: Sequence[Sequence[str]] = ()
    index_p: np.ndarray | slice = field(default_factory=lambda: slice(None))
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()  # the names of R


class FailedOnAHost(Exception):
    """A reward failed on one of several hosts; all raise this at the same point. `own` is the error if it was here."""

    def __init__(self, own: Exception | None) -> None:
        super().__init__("A reward failed on another host." if own is None else str(own))
        self.own = own


class EarlyScoring:
    """Scoring of the responses to some prompts that begins while they are sampled, group by group.

    An engine calls `heard` for each group whose last response has ended; it is None if no reward can begin early. At
    the end of the `with` block nothing goes on. Responses of several turns are scored when all have ended; `partner`
    is who answers the model in these.
    """

    def __init__(
        self, algorithm: Algorithm, prompts: Prompts, examples: Sequence[Any], partner: Conversations | None = None
    ):
        self.partner = partner
        own = [examples[index] for index in prompts_of_host(mesh_of(prompts), len(examples))]
        self.decode = algorithm.decode
        self.calls = EarlyCalls(algorithm.mix, own, algorithm.reward_seconds)
        self.ids: dict[int, list[list[int]]] = {}
        self.texts: dict[int, list[str]] = {}

    @property
    def heard(self) -> Heard | None:
        """What an engine is given, to call it for each group."""
        return self._begin if self.calls.parts and self.partner is None else None

    @property
    def talks(self) -> dict[str, Any]:
        """What an engine is given beside the prompts: who is told of its groups, and who answers its replies."""
        return {"heard": self.heard, "partner": self.partner}

    def _begin(self, p: int, ids: list[list[int]]) -> None:
        (self.texts[p],) = decoded(self.decode, [ids])
        self.ids[p] = ids
        self.calls.begin(p, self.texts[p])

    def begun(self, ids: Sequence[Sequence[Sequence[int]]]) -> Begun:
        """The calls that have begun; refused if the responses that they judge are not those that were sampled."""
        wrong = [p for p, heard in self.ids.items() if p >= len(ids) or heard != ids[p]]
        if wrong:
            raise ValueError(
                f"The engine called `heard` for prompt {wrong[0]} with other responses than it then returned. It must"
                " be called once for each prompt of this host, with the ids of all its responses up to their ends."
            )
        return self.calls.taken()

    def __enter__(self) -> "EarlyScoring":
        return self

    def __exit__(self, *error: object) -> None:
        self.calls.close()
        if self.partner is not None:
            self.partner.close()


def score_rollouts(
    algorithm: Algorithm, rollouts: Rollouts, examples: Sequence[Any], step: int, early: EarlyScoring | None = None
) -> Rewards:
    """The rewards of all responses. `step` is for TRL's reward functions that ask for it; `early` is what has begun."""
    ids, mesh = chosen_tokens(rollouts), mesh_of(rollouts)
    index_p = prompts_of_host(mesh, len(examples))
    own = [examples[index] for index in index_p]
    known, begun = ({}, {}) if early is None else (early.texts, early.begun(ids))
    talks = None if early is None or early.partner is None else early.partner.finished(ids)
    texts = [known[p] if p in known else decoded(algorithm.decode, [group])[0] for p, group in enumerate(ids)]
    texts = texts if talks is None else [[talk.reply for talk in group] for group in talks]
    judged, columns, has_steps = _judged_on_all_hosts(algorithm, Batch(own, texts, ids, step, talks), begun)
    steps_PGT, greedy_P1R = None, None
    if has_steps:
        placed_pGT = place_steps(judged.steps, ids, algorithm.decode, values_of_host(rollouts.action_PGT), talks)
        steps_PGT = from_hosts(placed_pGT, mesh)
    parts_PGR = everywhere(from_hosts(judged.rewards_PGR, mesh))
    if rollouts.greedy is not None:
        greedy_P1R = score_rollouts(algorithm, rollouts.greedy, examples, step).parts_PGR
    extras = {name: _groups(values, len(ids[0])) for name, values in judged.extras.items()}
    metrics = judged.metrics
    if talks is not None:
        extras, metrics = extras | _recorded(talks), {**metrics, **totals(talks)}
    if may_log(algorithm.mix) or talks is not None:
        metrics = means_of([json.loads(text) for text in _texts_of_hosts(json.dumps(metrics))])
    found = Rewards(parts_PGR, steps_PGT, greedy_P1R, own, texts, index_p, metrics, extras, columns)
    return aligned(found, algorithm.mix.names)


def unscored(algorithm: Algorithm, rollouts: Rollouts) -> Rewards:
    """The rewards of responses that no reward is asked about: NaN, without texts."""
    (P, G, _), names = rollouts.tokens_PGT.shape, algorithm.mix.names
    return Rewards(np.full((P, G, len(names)), np.nan, np.float32), columns=names)


def rehearse(algorithm: Algorithm, example: Any, ids: Sequence[int]) -> None:
    """Scores an empty response to an example, to find what cannot work, and the criteria of rewards that return such.

    A number settles nothing: a reward with criteria may have none to say of an empty response.
    """
    mix = algorithm.mix
    answers = ask(mix, Batch([example], [[""]], [[ids]], 0), algorithm.reward_seconds)
    if mix.undecided:
        mix.learn(_agreed(mix, {index: names for index, names in answers.found.items() if names}))
    arrange(mix, answers)


def _recorded(talks: Sequence[Sequence[Conversation]]) -> dict[str, list[list[Any]]]:
    """What is kept of conversations beside the responses."""
    kept = {"conversation": lambda each: list(each.messages), "turn_rewards": lambda each: list(each.rewards)}
    kept |= {"stop_reason": lambda each: each.stop_reason, "errors": lambda each: list(each.errors)}
    return {name: [[of(each) for each in group] for group in talks] for name, of in kept.items()}


def _groups(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def aligned(rewards: Rewards, names: tuple[str, ...]) -> Rewards:
    """The rewards with these columns: NaN for the criteria of a reward that judged nothing before it had any."""
    if names == rewards.columns:
        return rewards

    def chosen(parts_PGR: np.ndarray) -> np.ndarray:
        known = dict(zip(rewards.columns, np.moveaxis(parts_PGR, 2, 0), strict=True))
        unknown_PG = np.full(parts_PGR.shape[:2], np.nan, np.float32)
        return np.stack([known.get(name, unknown_PG) for name in names], axis=2)

    greedy_P1R = None if rewards.greedy_P1R is None else chosen(rewards.greedy_P1R)
    return replace(rewards, parts_PGR=chosen(rewards.parts_PGR), greedy_P1R=greedy_P1R, columns=names)


def _judged_on_all_hosts(algorithm: Algorithm, batch: Batch, begun: Begun) -> tuple[Judged, tuple[str, ...], bool]:
    """What this host's responses earned, the columns of that, and whether any host may have rewards of steps.

    All hosts have the same columns, and all raise where a reward fails on one, or does not return when the run was told
    to stop.
    """
    mix, failure, answers, judged, stopped = algorithm.mix, None, None, None, False
    try:
        answers = ask(mix, batch, algorithm.reward_seconds, begun)
    except Exception as error:
        failure = error
    except StopRequested:
        stopped = True
    try:
        if mix.undecided:
            mix.learn(_agreed(mix, {} if answers is None else answers.found))
        judged = None if answers is None else _without_failed(arrange(mix, answers), batch)
    except Exception as error:
        failure = error
    if failure is not None and jax.process_count() == 1:
        raise failure
    unknown = judged is not None and bool(np.isnan(judged.rewards_PGR).all())  # there might have been steps, too
    own = FAILED if judged is None else int(bool(judged.steps) or unknown)
    most = _most_of_any_host(STOPPED if stopped else own)
    if most == STOPPED:
        raise StopRequested
    if most == FAILED or judged is None:
        raise FailedOnAHost(failure)
    return judged, mix.names, bool(most)


def _without_failed(judged: Judged, batch: Batch) -> Judged:
    """The rewards without those of conversations that a failed step has ended: a fault is not the model's."""
    failed = [
        (p, g)
        for p, group in enumerate(batch.conversations or ())
        for g, talk in enumerate(group)
        if talk.stop_reason == "error"
    ]
    for p, g in failed:
        judged.rewards_PGR[p, g] = np.nan
    return replace(judged, steps={place: steps for place, steps in judged.steps.items() if place not in failed})


def _agreed(mix: Mix, found: Mapping[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
    """The criteria of rewards that were undecided: what the hosts found, which must not differ."""
    agreed: dict[int, tuple[str, ...]] = {}
    for text in _texts_of_hosts(json.dumps({str(index): names for index, names in found.items()})):
        for index, names in json.loads(text).items():
            first = agreed.setdefault(int(index), tuple(names))
            if first != tuple(names):
                raise ValueError(
                    f"Reward {mix.labels[int(index)]} returned {_listed(first)} on one host and {_listed(names)} on"
                    " another. Declare its criteria: criteria = (...), an attribute of the reward."
                )
    return agreed


def _listed(names: Sequence[str]) -> str:
    return f"the criteria {', '.join(names)}" if names else "a number"


def means_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over those that have it, of several hosts or rounds."""
    values = {name: [each[name] for each in metrics if name in each] for found in metrics for name in found}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _texts_of_hosts(text: str) -> list[str]:
    """The texts of all hosts, in one small collective."""
    if jax.process_count() == 1:
        return [text]
    told = text.encode() if len(text.encode()) <= TEXT_BYTES else b""
    padded = np.pad(np.frombuffer(told, np.uint8), (0, TEXT_BYTES - len(told)))
    texts = [row.tobytes().rstrip(b"\0").decode() for row in multihost_utils.process_allgather(padded)]
    if "" in texts:  # on all hosts, as one that raised alone would leave the others waiting
        raise ValueError(f"What rewards log, and the names of their criteria, may take {TEXT_BYTES} bytes: log less.")
    return texts


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
    weights_R, mesh = jnp.asarray(algorithm.mix.weights_R), mesh_of(rollouts)

    def on_devices(parts_PGR: np.ndarray) -> Array:
        parts_PGR = algorithm.mix.gated(parts_PGR)
        return jnp.asarray(parts_PGR) if mesh is None else place_prompts(parts_PGR, mesh)

    greedy_P1 = None
    if rewards.greedy_P1R is not None:
        greedy_P1 = scored_of(on_devices(rewards.greedy_P1R), weights_R, rollouts).rewards_PG
    return scored_of(
        on_devices(rewards.parts_PGR), weights_R, rollouts, steps_PGT=rewards.steps_PGT, greedy_P1=greedy_P1
    )
