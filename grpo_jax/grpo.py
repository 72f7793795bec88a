"""GRPO, top to bottom: sample a group of responses to each prompt, score them, move towards the better ones.

Read `step` first. Models, engines, rewards and objectives come in as arguments (`Algorithm`), so research code calls
the same functions with its own. Sampling, `add_gradient`, `descend` and `part_logprobs` run on the devices, under
`jit`; the rest is glue in the order it happens.

Three things differ from the paper (DeepSeekMath, arXiv:2402.03300): (1) the weights of the tokens are fixed for the
whole global batch before the gradient, so microbatches, minibatches and devices change nothing but rounding;
(2) deviations are those of a sample (n-1), plus a small constant; (3) a response that could not be scored is left out
of its group's mean and gets no advantage.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jaxtyping import Float

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of, on
from grpo_jax.devices.sharding import PROMPTS, everywhere, fit, from_hosts, host_places, host_rows, place, settle
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.learner.microbatches import arrange, choose, joined, put, shared_out
from grpo_jax.learner.packing import Part
from grpo_jax.metrics import describe, describe_mismatch
from grpo_jax.objectives import scored_of
from grpo_jax.rewards import as_mix, judge, place_steps
from grpo_jax.structs import Batch, Metrics, Params, Policy, Prompts, Rollouts, Scored, TrainState


class Watch:
    """Someone who looks on during a step; this one looks away."""

    def phase(self, name: str) -> AbstractContextManager:
        """Entered around "sampling", "scoring" and "learning"."""
        return nullcontext()

    def answers(self, examples: Sequence, responses: Sequence[Sequence[str]], rewards_PGR, advantages_PG) -> None:
        """Called once the responses of a step have been scored."""


NOBODY = Watch()


@dataclass(frozen=True)
class Answers:
    """What was answered to the prompts of a step, and what it is worth. Greedy rewards are those of a baseline.

    `examples` and `responses` are those of the rows `place_p` of the rollouts, which this host answered; rewards are of
    all prompts. `Rollouts` says what a row is.
    """

    rollouts: Rollouts
    examples: Sequence
    responses: Sequence[Sequence[str]]
    rewards_PGR: Float[np.ndarray, "P G R"]
    steps_PGT: Array | None = None
    greedy_P1R: Float[np.ndarray, "P 1 R"] | None = None
    place_p: np.ndarray | slice = field(default_factory=lambda: slice(None))


@partial(jax.jit, static_argnames="algorithm")
def begin(algorithm: Algorithm, params: Params) -> TrainState:
    """The state before the first update. It takes the parameters over: a reference policy is a copy."""
    reference = jax.tree.map(jnp.copy, params) if algorithm.objective.needs_reference else None
    opt_state, coefficients = algorithm.optimizer.init(params), algorithm.objective.first_coefficients()
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, reference, coefficients)


def step(
    algorithm: Algorithm, state: TrainState, prompts: Prompts, examples: Sequence, key: Array, watch: Watch = NOBODY
) -> tuple[TrainState, Metrics]:
    """The state after one step of GRPO, and its metrics. The old state is donated: do not use it again.

    `examples` are what the rewards see, one for each prompt. Give every step its own key:
    `jax.random.fold_in(key, step)`.
    """
    return learn(algorithm, state, answer(algorithm, state, prompts, examples, key, watch), key, watch)


def answer(
    algorithm: Algorithm, state: TrainState, prompts: Prompts, examples: Sequence, key: Array, watch: Watch = NOBODY
) -> Answers:
    """G responses to each prompt, with their rewards."""
    greedy = None
    with watch.phase("sampling"):
        rollouts = jax.block_until_ready(algorithm.sample(algorithm.policy, state.params, prompts, key))
        if algorithm.objective.greedy_baseline:
            greedy = jax.block_until_ready(algorithm.sample_greedy(algorithm.policy, state.params, prompts, key))
    with watch.phase("scoring"):
        answers = judged(algorithm, rollouts, examples, int(state.step))
        if greedy is None:
            return answers
        return replace(answers, greedy_P1R=judged(algorithm, greedy, examples, int(state.step)).rewards_PGR)


def judged(algorithm: Algorithm, rollouts: Rollouts, examples: Sequence, step: int) -> Answers:
    """Rollouts with their rewards. Each host decodes and scores the responses it has."""
    tokens, mesh, shares = chosen_tokens(rollouts), mesh_of(rollouts), rollouts.shares
    place_p = host_places(mesh, len(examples) * shares)
    own = [examples[place // shares] for place in place_p]
    responses = [[algorithm.decode(ids) for ids in group] for group in tokens]
    rewards_pGR, ends = judge(algorithm.reward, own, responses, tokens, step)
    unknown = bool(np.isnan(rewards_pGR).all())  # whether rewards would have been of steps, too
    steps_PGT = None
    if agreed(bool(ends) or unknown):
        action_pGT = host_rows(rollouts.action_PGT)
        steps_PGT = from_hosts(place_steps(ends, tokens, algorithm.decode, action_pGT), mesh)
    rewards_PGR = everywhere(from_hosts(rewards_pGR, mesh)).reshape(len(examples), -1, rewards_pGR.shape[2])
    return Answers(rollouts, own, responses, rewards_PGR, steps_PGT, place_p=place_p)


def agreed(wanted: bool) -> bool:
    """Whether any host wants something: what all of them do, or none."""
    return wanted if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(wanted)).any())


def learn(
    algorithm: Algorithm, state: TrainState, answers: Answers, key: Array, watch: Watch = NOBODY
) -> tuple[TrainState, Metrics]:
    """The state after learning from answers, and the metrics of the step. Donates the old state."""
    with watch.phase("learning"):
        batch = prepare(algorithm, state, answers, key)
        advantages = everywhere(batch.advantages)[answers.place_p]
        rewards_PGR = answers.rewards_PGR.reshape(*batch.advantages.shape[:2], -1)[answers.place_p]
        watch.answers(answers.examples, answers.responses, rewards_PGR, advantages)
        learned = jnp.any(batch.rollouts.action_PGT)
        state, metrics = jax.block_until_ready(update(algorithm, state, batch))
        metrics = describe(answers.rollouts, answers.rewards_PGR, as_mix(algorithm.reward)) | metrics
        used = {f"coefficient/{name}": pair[1] for name, pair in state.coefficients.items()}
        return follow(algorithm, state, metrics, learned), metrics | used


def chosen_tokens(rollouts: Rollouts) -> list[list[list[int]]]:
    """The ids the policy chose on this host, response by response, their end tokens included."""
    tokens_PGT, action_PGT = host_rows(rollouts.tokens_PGT), host_rows(rollouts.action_PGT)
    P, G, _ = tokens_PGT.shape
    return [[tokens_PGT[p, g][action_PGT[p, g]].tolist() for g in range(G)] for p in range(P)]


def prepare(algorithm: Algorithm, state: TrainState, answers: Answers, key: Array) -> Batch:
    """The batch to learn from: advantages, the weight of every token, and the log-probs that stay fixed.

    Old log-probs are computed only where they are not the current ones: for several minibatches, or a KL term in the
    reward. Otherwise the ratio is one at the only update.
    """
    rollouts, objective = answers.rollouts, algorithm.objective
    check_split(algorithm, *answers.rewards_PGR.shape[:2])
    shares = rollouts.shares
    if rollouts.distribution.temperature == 0:
        raise ValueError("Greedy responses have no log-probs to learn from: sample at a temperature above 0.")
    weights_R = jnp.asarray(as_mix(algorithm.reward).weights_R)
    mesh = mesh_of(state.params)

    greedy_P1 = None
    if answers.greedy_P1R is not None:
        greedy_P1 = scored_of(_placed(answers.greedy_P1R, mesh), weights_R, rollouts).rewards_PG
    known = {}
    if objective.needs_old_logprobs or (algorithm.minibatches > 1 and objective.compares_with_old):
        known["old_logprobs_PGT"] = fixed_logprobs(algorithm, algorithm.policy, state.params, rollouts)
    if objective.needs_reference:
        known["ref_logprobs_PGT"] = fixed_logprobs(algorithm, algorithm.policy, state.reference, rollouts)
    if objective.distillation:
        known["teacher_logprobs_PGT"] = fixed_logprobs(algorithm, *algorithm.teacher, rollouts)
    steps_PGT = answers.steps_PGT
    if shares > 1:
        rollouts, known, steps_PGT = joined((rollouts, known, steps_PGT), shares)
    rewards = scored_of(
        _placed(answers.rewards_PGR, mesh), weights_R, rollouts, steps_PGT=steps_PGT, greedy_P1=greedy_P1
    )
    batch = _batch(algorithm, rollouts, rewards, key, state.coefficients, known)
    return batch if shares == 1 else shared_out(batch, shares, mesh)


@partial(jax.jit, static_argnames="algorithm")
def _batch(algorithm: Algorithm, rollouts: Rollouts, scored: Scored, key: Array, coefficients, known) -> Batch:
    return algorithm.objective.batch(rollouts, scored, key, coefficients=coefficients, **known)


def _placed(array: np.ndarray, mesh: Mesh | None) -> Array:
    return jnp.asarray(array) if mesh is None else place(array, fit(PROMPTS, array.shape, mesh))


def update(algorithm: Algorithm, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """The state after an optimiser step for each minibatch of prompts, laid out as it was. Donates the old state.

    A gradient is added up over parts of similar length (`packing`), because the weights of the tokens already know
    the whole batch.
    """
    check_batch(algorithm, batch.rollouts)
    layout, mesh = layout_of(state), mesh_of(state.params)
    before_PGT = jnp.full_like(batch.rollouts.logprobs_PGT, jnp.nan)  # log-probs of the policy that begins
    losses, norms, records, positions = [], [], [], 0
    for index, parts in enumerate(_parts(algorithm, batch.rollouts, mesh)):
        total = None
        for part in parts:
            chosen = settle(choose(_of_minibatch(batch, algorithm.minibatches), part.place_p, part.place_pg, mesh))
            positions += part.slots_PRS.size + len(part.place_p) * batch.rollouts.prompts.tokens_PL.shape[1]
            with on(mesh):
                if total is None and len(parts) > 1:  # or adding to nothing would be a second program to compile
                    total = nothing(algorithm, layout, state.params, chosen, part.slots_PRS)
                total, logprobs_pgT = add_gradient(algorithm, layout, state.params, total, chosen, part.slots_PRS)
            if index == 0:
                before_PGT = put(before_PGT, part.place_p, part.place_pg, logprobs_pgT)
            settle((total, before_PGT))
        loss, sums, gradient = total
        last = index + 1 == algorithm.minibatches
        state, norm = settle(descend(algorithm, layout, state, gradient, int(last)))
        losses.append(loss)
        norms.append(norm)
        records.append(sums)
    old_PGT = before_PGT if batch.old_logprobs_PGT is None else batch.old_logprobs_PGT
    return state, settle(_summary(algorithm, batch.rollouts, old_PGT, losses, norms, records, positions))


@partial(jax.jit, static_argnames="algorithm")
def _summary(
    algorithm: Algorithm, rollouts: Rollouts, old_PGT: Array, losses, norms, records, positions: Array
) -> Metrics:
    """What the minibatches of a step came to; `positions` is how many tokens were computed."""
    tokens = jnp.maximum(jnp.sum(rollouts.action_PGT), 1)
    live = jnp.sum(rollouts.valid_PGT) + algorithm.group_parts * jnp.sum(rollouts.prompts.valid_PL)
    metrics = {name: sum(sums[name] for sums in records) / tokens for name in records[0]}
    metrics |= {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}
    return metrics | describe_mismatch(old_PGT, rollouts) | {"padding_frac": 1 - live / positions}


def _of_minibatch(batch: Batch, minibatches: int) -> Batch:
    """A batch whose weights are those of a minibatch of it."""
    weights = jax.tree.map(lambda a_PGT: a_PGT * minibatches, (batch.weights_PGT, batch.term_weights_PGT))
    return replace(batch, weights_PGT=weights[0], term_weights_PGT=weights[1])


def follow(algorithm: Algorithm, state: TrainState, metrics: Metrics, learned: Array) -> TrainState:
    """The state with what moves between steps: the reference, and coefficients that adapt, if anything was learned."""
    objective = algorithm.objective
    if state.coefficients:
        moved = objective.next_coefficients(state.coefficients, metrics)
        coefficients = jax.tree.map(lambda new, old: jnp.where(learned, new, old), moved, state.coefficients)
        state = replace(state, coefficients=coefficients)
    moves = objective.kl.reference if objective.needs_reference else None
    if moves is not None and moves.every and int(state.step) % moves.every == 0:
        state = replace(state, reference=closer(state.reference, state.params, moves.share))
    return state


@partial(jax.jit, donate_argnames="reference")
def closer(reference: Params, params: Params, share: float | Array) -> Params:
    """A reference policy moved by `share` of the way to the present one."""
    return jax.tree.map(lambda old, new: old + share * (new - old), reference, params)


def _parts(algorithm: Algorithm, rollouts: Rollouts, mesh: Mesh | None) -> list[list[Part]]:
    return arrange(rollouts, algorithm.minibatches, algorithm.microbatch, algorithm.group_parts, mesh)


def layout_of(state: TrainState) -> tuple[Any, tuple[Sharding, ...]]:
    """How a state is laid out, in a form that programs can be compiled for."""
    leaves, tree = jax.tree.flatten(state)
    return tree, tuple(array.sharding for array in leaves)


@partial(jax.jit, static_argnames=("algorithm", "layout"))
def nothing(algorithm: Algorithm, layout: Any, params: Params, part: Batch, slots_PRS: Array) -> Any:
    """What `add_gradient` starts from."""
    shapes, _ = jax.eval_shape(partial(add_gradient, algorithm, layout), params, None, part, slots_PRS)
    loss, sums, gradient = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return loss, sums, _laid_out(layout, gradient)


@partial(jax.jit, static_argnames=("algorithm", "layout"), donate_argnames="total")
def add_gradient(
    algorithm: Algorithm, layout: Any, params: Params, total: Any, part: Batch, slots_PRS: Array
) -> tuple[Any, Array]:
    """Loss, statistics and gradient of a part, added to those in `total` if that is not None; and the part's log-probs.
    Donates `total`.
    """

    def loss(params: Params) -> tuple[Array, tuple[Metrics, Array]]:
        logprobs_PGT, entropy_PGT = token_logprobs(algorithm.policy, params, part.rollouts, slots_PRS)
        loss, sums = algorithm.objective(logprobs_PGT, entropy_PGT, part)
        return loss, (sums, logprobs_PGT)

    (value, (sums, logprobs_PGT)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    found = value, sums, gradient
    value, sums, gradient = found if total is None else jax.tree.map(jnp.add, total, found)
    return (value, sums, _laid_out(layout, gradient)), logprobs_PGT


@partial(jax.jit, static_argnames=("algorithm", "layout"), donate_argnames="state")
def descend(algorithm: Algorithm, layout: Any, state: TrainState, gradient: Params, steps: int | Array) -> Any:
    """The state after one optimiser step, which counts as so many steps, and the norm of the gradient."""
    updates, opt_state = algorithm.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = replace(state, step=state.step + steps, params=params, opt_state=opt_state)
    leaves, tree = jax.tree.flatten(state)
    pinned = [_pin(array, sharding) for array, sharding in zip(leaves, layout[1], strict=True)]
    return jax.tree.unflatten(tree, pinned), optax.tree.norm(gradient)


def _laid_out(layout: Any, gradient: Params) -> Params:
    """A gradient laid out like the parameters of the state: left alone, the compiler might choose otherwise."""
    return jax.tree.map(_pin, gradient, jax.tree.unflatten(*layout).params)


def _pin(array: Array, sharding: Sharding) -> Array:
    return jax.lax.with_sharding_constraint(array, sharding) if isinstance(sharding, NamedSharding) else array


def fixed_logprobs(algorithm: Algorithm, policy: Policy, params: Params, rollouts: Rollouts) -> Float[Array, "P G T"]:
    """Log-probs of the rollouts under a policy that no gradient flows through, a part at a time."""
    mesh = mesh_of(params)
    found_PGT = jnp.zeros_like(rollouts.logprobs_PGT)
    for parts in _parts(algorithm, rollouts, mesh):
        for part in parts:
            chosen = settle(choose(rollouts, part.place_p, part.place_pg, mesh))
            with on(mesh):
                logprobs_pgT = part_logprobs(policy, params, chosen, part.slots_PRS)
            found_PGT = settle(put(found_PGT, part.place_p, part.place_pg, logprobs_pgT))
    return found_PGT


@partial(jax.jit, static_argnames="policy")
def part_logprobs(policy: Policy, params: Params, rollouts: Rollouts, slots_PRS: Array) -> Array:
    """Log-probs of a part."""
    return token_logprobs(policy, params, rollouts, slots_PRS)[0]


def check_batch(algorithm: Algorithm, rollouts: Rollouts) -> None:
    """Refuses what does not divide, in rollouts whose groups may be shared out."""
    P, G, _ = rollouts.tokens_PGT.shape
    check_split(algorithm, P // rollouts.shares, G)
    if rollouts.shares > 1 and getattr(algorithm.objective.surrogate, "sees_groups", False):
        raise ValueError(
            f"This objective compares responses of a group in its loss, and {rollouts.shares} devices share each group:"
            " ask more prompts in a step, or use mesh.tensor."
        )


def check_split(algorithm: Algorithm, prompts: int, responses: int | None = None) -> None:
    """Refuses minibatches, microbatches and parts of groups that do not divide what they are made of."""
    if prompts % algorithm.minibatches:
        raise ValueError(
            f"{prompts} prompts do not divide into {algorithm.minibatches} minibatches; choose {_divisors(prompts)}."
        )
    each = prompts // algorithm.minibatches
    if algorithm.microbatch is not None and each % algorithm.microbatch:
        raise ValueError(
            f"{each} prompts of a minibatch do not divide into microbatches of {algorithm.microbatch};"
            f" choose {_divisors(each)}."
        )
    if responses is not None and responses % algorithm.group_parts:
        raise ValueError(
            f"{responses} responses do not divide into group_parts of {algorithm.group_parts};"
            f" choose {_divisors(responses)}."
        )


def _divisors(number: int) -> str:
    *some, last = (str(n) for n in range(1, number + 1) if number % n == 0)
    return f"{', '.join(some)} or {last}" if some else last
