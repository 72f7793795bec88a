"""PPO beside GRPO, in one file: python examples/ppo.py

Read `step` first: it has the same four parts as that of `grpo_jax/grpo.py`, and two of them are the same functions. PPO
(arXiv:1707.06347) samples and scores as GRPO does. What differs is where the advantage of a token comes from: not from
the other answers to the same prompt, but from a critic, which is trained along with the policy to predict the reward
that is still to come. What is minimised is (the paper's equation 9, with the entropy bonus left to `objective.terms`)

    loss = -sum of weight * min(r A, clip(r) A) + value_weight * sum of weight * (V - R)^2

    A    generalized advantage estimate of the token (arXiv:1506.02438, equation 16)            `estimate`
    V    value of the state in which the token was chosen, by the critic                         `look`
    R    its target: A + V, with the V of before the update                                      `prepare`

The critic is a linear head on the policy's hidden states, or, with `own_critic`, on those of a model of its own, a copy
of the policy, as is usual for language models: that one costs as much memory and time as the policy.

Three things differ from the paper: (1) episodes are whole, so nothing is bootstrapped at their end, and a truncated
answer ends as any other; (2) advantages are whitened over the tokens of the batch, and values may be clipped, as in the
authors' code; (3) minibatches are every n-th prompt, with all its answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

import grpo_jax as gj
from grpo_jax.objectives.advantages import outcome_at_end
from grpo_jax.objectives.coefficients import adaptive
from grpo_jax.objectives.kl import k1, kl_term
from grpo_jax.objectives.surrogates import ClippedRatio
from grpo_jax.objectives.weightings import token_mean
from grpo_jax.structs import Metrics, Params

RATE = 3e-3  # of learning, for both methods in the comparison


@dataclass(frozen=True)
class PPO:
    """What PPO has beyond an `Algorithm`, whose `minibatches` are those of each epoch."""

    discount: float = 1.0  # of later rewards, for each token: gamma
    trace: float = 0.95  # how far an advantage looks beyond the critic: lambda; 1 is up to the end of the answer
    epochs: int = 4  # passes over each batch
    value_weight: float = 0.5  # of the critic's loss beside the policy's: c1
    value_clip: float | None = None  # how far a value may move in a step before its loss stops falling; None: any
    own_critic: bool = False  # the critic is a model of its own, and no head on the policy

    def __post_init__(self) -> None:
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is between 0 and 1; got {getattr(self, name)}. 1 discounts nothing.")
        if self.epochs < 1:
            raise ValueError(f"Every batch is learned from at least once: epochs must be 1 or more; got {self.epochs}.")
        if self.value_weight < 0 or (self.value_clip is not None and self.value_clip <= 0):
            raise ValueError(
                "value_weight is 0 or more, and value_clip above 0, or None to clip nothing;"
                f" got {self.value_weight} and {self.value_clip}."
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Valued:
    """A batch whose advantages are those of tokens, with the critic's values before the update and their targets."""

    batch: gj.Batch
    values_PGT: Array
    targets_PGT: Array


def objective(clip: float = ClippedRatio.low, **choices: Any) -> gj.Objective:
    """PPO's clipped ratio; every token counts the same. Its `advantage` is the reward of each token, which `prepare`
    turns into advantages: that of the answer at its last token, and a penalty for KL where `kl` puts it.
    """
    return gj.Objective(outcome_at_end, ClippedRatio(clip, clip), token_mean, **choices)


def init(algorithm: gj.Algorithm, ppo: PPO, params: Params) -> gj.TrainState:
    """The state before the first update: weights of the policy and of a critic whose values are all 0."""
    _refuse_what_is_missing(algorithm)
    critic = {"value_D": jnp.zeros(params["norm_D"].shape)}
    if ppo.own_critic:
        critic = jax.tree.map(jnp.copy, params) | critic
    state = gj.init(algorithm, {"policy": params, "critic": critic})
    return state if state.reference is None else replace(state, reference=state.reference["policy"])


def _refuse_what_is_missing(algorithm: gj.Algorithm) -> None:
    """Refuses what `gj.update` does and the update of this file does not."""
    kl = algorithm.objective.counted_kl
    if algorithm.policy.balanced is not None:
        raise ValueError("This PPO has no load-balancing loss, and the model has experts: use a model without any.")
    if adaptive(algorithm.objective):
        names = ", ".join(adaptive(algorithm.objective))
        raise ValueError(f"The coefficients of this PPO are constant, and that of {names} adapts: give it a number.")
    if kl is not None and kl.reference.every:
        raise ValueError(
            f"The reference of this PPO is the first policy, and stays it; got one that moves every"
            f" {kl.reference.every} steps. Leave `reference` out of the KL term."
        )
    if algorithm.responses_at_once is not None:
        raise ValueError(
            f"This PPO learns from a minibatch at once; got responses_at_once={algorithm.responses_at_once}. Leave it"
            " out, and use more minibatches where memory is short."
        )


def step(
    algorithm: gj.Algorithm, ppo: PPO, state: gj.TrainState, prompts: gj.Prompts, examples: Sequence[Any], key: Array
) -> tuple[gj.TrainState, Metrics]:
    """The state after one step of PPO, and its metrics. The old state is donated: do not use it again."""
    rollouts = gj.sample(algorithm, of_policy(state), prompts, examples, key)
    rewards = gj.score(algorithm, rollouts, examples)
    valued = prepare(algorithm, ppo, state, rollouts, rewards, key)
    return update(algorithm, ppo, state, valued)


def of_policy(state: gj.TrainState) -> gj.TrainState:
    """The state as GRPO's functions take it: without the critic."""
    return replace(state, params=state.params["policy"])


def prepare(
    algorithm: gj.Algorithm, ppo: PPO, state: gj.TrainState, rollouts: gj.Rollouts, rewards: gj.Rewards, key: Array
) -> Valued:
    """The batch to learn from: what the policy and the critic say before the update, advantages and targets."""
    batch = gj.prepare(algorithm, of_policy(state), rollouts, rewards, key)
    if batch.advantages.ndim != 3:
        raise ValueError(
            "This PPO takes a reward for each token, and the objective's `advantage` gives one for each answer: use"
            " ppo.objective(), or an advantage such as outcome_at_end."
        )
    logprobs_PGT, _, values_PGT = look_once(algorithm.policy, state.params, batch.rollouts)
    action_PGT = batch.rollouts.action_PGT
    advantages_PGT = estimate(batch.advantages, values_PGT, action_PGT, ppo.discount, ppo.trace)
    targets_PGT = advantages_PGT + values_PGT
    batch = replace(batch, advantages=whiten(advantages_PGT, action_PGT), old_logprobs_PGT=logprobs_PGT)
    return Valued(batch, values_PGT, targets_PGT)


@jax.jit
def estimate(rewards_PGT: Array, values_PGT: Array, action_PGT: Array, discount: float, trace: float) -> Array:
    """Generalized advantage estimates of tokens, 0 where there is no action (arXiv:1506.02438, equation 16).

    A_t = d_t + discount trace A_(t+1), with the temporal-difference error d_t = r_t + discount V_(t+1) - V_t. All are 0
    after the last action.
    """

    def add(ahead: tuple[Array, Array], token: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        value_PG, advantage_PG = ahead  # of the next action
        reward_PG, now_PG, action_PG = token
        error_PG = reward_PG + discount * value_PG - now_PG
        found_PG = error_PG + discount * trace * advantage_PG
        ahead = jnp.where(action_PG, now_PG, value_PG), jnp.where(action_PG, found_PG, advantage_PG)
        return ahead, jnp.where(action_PG, found_PG, 0.0)

    first = partial(jnp.moveaxis, source=2, destination=0)
    by_token = first(rewards_PGT), first(values_PGT), first(action_PGT)
    nothing_PG = jnp.zeros(rewards_PGT.shape[:2])
    _, advantages_TPG = jax.lax.scan(add, (nothing_PG, nothing_PG), by_token, reverse=True)
    return jnp.moveaxis(advantages_TPG, 0, 2)


def whiten(advantages_PGT: Array, action_PGT: Array) -> Array:
    """The advantages of actions with a mean of 0 and a deviation of 1 over the batch."""
    count = jnp.maximum(jnp.sum(action_PGT), 1)
    centered_PGT = jnp.where(action_PGT, advantages_PGT - jnp.sum(advantages_PGT * action_PGT) / count, 0.0)
    return centered_PGT / (jnp.sqrt(jnp.sum(jnp.square(centered_PGT)) / count) + 1e-8)


def look(policy: gj.Policy, params: Params, rollouts: gj.Rollouts) -> tuple[Array, Array, Array]:
    """Log-probs and entropies of the tokens, and the values of the states in which they were chosen."""
    inputs = rollouts.prompts, rollouts.tokens_PGT, rollouts.valid_PGT
    states = policy.respond(params["policy"], *inputs)
    computed = replace(policy, respond=lambda *_: states)  # or log-probs and values would each compute the model
    logprobs_PGT, entropy_PGT = gj.token_logprobs(computed, params["policy"], rollouts)
    critic = params["critic"]
    last_PD, hidden_PGTD = policy.respond(critic, *inputs) if "layers" in critic else states
    P, G, _, D = hidden_PGTD.shape
    first_PG1D = jnp.broadcast_to(last_PD[:, None, None], (P, G, 1, D))
    state_PGTD = jnp.concatenate([first_PG1D, hidden_PGTD[:, :, :-1]], axis=2)
    values_PGT = jnp.einsum("PGTD,D->PGT", state_PGTD.astype(jnp.float32), critic["value_D"])
    return logprobs_PGT, entropy_PGT, jnp.where(rollouts.action_PGT, values_PGT, 0.0)


look_once = jax.jit(look, static_argnums=0)


def update(algorithm: gj.Algorithm, ppo: PPO, state: gj.TrainState, valued: Valued) -> tuple[gj.TrainState, Metrics]:
    """The state after `ppo.epochs` passes over the batch, and the metrics of its rewards and of the last update.

    Donates the old state.
    """
    described, valued = valued.batch.metrics, replace(valued, batch=replace(valued.batch, metrics={}))
    explained = explained_variance(valued)
    count, metrics = algorithm.minibatches, {}
    for _ in range(ppo.epochs):
        for index in range(count):
            state, metrics = descend(algorithm, ppo, state, _minibatch(valued, index, count))
    return replace(state, step=state.step + 1), described | metrics | {"explained_variance": explained}


def _minibatch(valued: Valued, index: int, count: int) -> Valued:
    """Every `count`-th prompt, whose tokens count so much more."""
    some = jax.tree.map(lambda a: a[index::count], valued)
    return replace(some, batch=replace(some.batch, weights_PGT=some.batch.weights_PGT * count))


@partial(jax.jit, static_argnames=("algorithm", "ppo"), donate_argnames="state")
def descend(algorithm: gj.Algorithm, ppo: PPO, state: gj.TrainState, valued: Valued) -> tuple[gj.TrainState, Metrics]:
    """The state after one step of the optimiser, which moves policy and critic together."""
    (_, metrics), gradient = jax.value_and_grad(loss, argnums=2, has_aux=True)(algorithm, ppo, state.params, valued)
    updates, opt_state = algorithm.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return replace(state, params=params, opt_state=opt_state), metrics | {"grad_norm": optax.tree.norm(gradient)}


def loss(algorithm: gj.Algorithm, ppo: PPO, params: Params, valued: Valued) -> tuple[Array, Metrics]:
    """The loss of a minibatch, and its metrics."""
    batch, action_PGT = valued.batch, valued.batch.rollouts.action_PGT
    logprobs_PGT, entropy_PGT, values_PGT = look(algorithm.policy, params, batch.rollouts)
    policy_loss, sums = gj.objectives.loss(algorithm.objective, logprobs_PGT, entropy_PGT, batch)
    value_loss = jnp.sum(jnp.where(action_PGT, batch.weights_PGT * _errors(ppo, values_PGT, valued), 0.0))
    whole = policy_loss + ppo.value_weight * value_loss
    means = {name: value / jnp.maximum(jnp.sum(action_PGT), 1) for name, value in sums.items()}
    return whole, means | {"loss": whole, "policy_loss": policy_loss, "value_loss": value_loss}


def _errors(ppo: PPO, values_PGT: Array, valued: Valued) -> Array:
    """Squared errors of the values; clipped as in the authors' code, a value that moved too far has no gradient."""
    errors_PGT = jnp.square(values_PGT - valued.targets_PGT)
    if ppo.value_clip is None:
        return errors_PGT
    moved_PGT = jnp.clip(values_PGT - valued.values_PGT, -ppo.value_clip, ppo.value_clip)
    return jnp.maximum(errors_PGT, jnp.square(valued.values_PGT + moved_PGT - valued.targets_PGT))


@jax.jit
def explained_variance(valued: Valued) -> Array:
    """The part of the targets' variance that the values explained before the update: 1 is all, below 0 is harmful."""
    action_PGT, errors_PGT = valued.batch.rollouts.action_PGT, valued.targets_PGT - valued.values_PGT
    left, all_of_it = (jnp.var(a_PGT, where=action_PGT) for a_PGT in (errors_PGT, valued.targets_PGT))
    return 1 - left / (all_of_it + 1e-8)


@dataclass(frozen=True)
class Letters:
    """A task that a random model learns from nothing: say the letter that is asked for, and only that."""

    model: Any
    examples: tuple[gj.Example, ...]
    prompts: gj.Prompts


def letters(seed: int = 0) -> Letters:
    """The task, and the tiny model with the random weights of this seed."""
    model = gj.tiny(seed, remat="none")
    examples = tuple(gj.Example(f"Say {letter}", letter) for letter in "abcdef")
    return Letters(model, examples, model.tokenizer.encode_all([each.prompt for each in examples], max_tokens=64))


def share_of_the_letter(example: gj.Example, response: str) -> float:
    """The part of the response that is the letter asked for."""
    return response.count(example.answer) / max(len(response), 1)


def algorithm_for(task: Letters, objective: gj.Objective, rate: float = RATE) -> gj.Algorithm:
    """Everything but the critic: 32 answers of at most four tokens to each question, and the learning rate."""
    return gj.Algorithm(
        policy=task.model.policy,
        sample=gj.Sampler(task.model.tokenizer.end_ids, responses=32, max_tokens=4),
        decode=task.model.tokenizer.decode,
        reward=share_of_the_letter,
        objective=objective,
        optimizer=gj.adamw(rate),
    )


def main(steps: int = 60) -> None:
    """Trains the tiny model with PPO, and prints the reward and how well the critic foresees it."""
    task, ppo = letters(), PPO(own_critic=True)
    algorithm = algorithm_for(task, objective(kl=kl_term(0.04, k1, place="token_reward")))
    state = init(algorithm, ppo, task.model.params(gj.Layout().mesh(jax.devices()[:1])))
    for index in range(steps):
        key = jax.random.fold_in(jax.random.key(0), index)
        state, metrics = step(algorithm, ppo, state, task.prompts, task.examples, key)
        if index % 10 == 0 or index + 1 == steps:
            names = ("reward", "value_loss", "explained_variance")
            print(index + 1, *(f"{name} {float(metrics[name]):.3f}" for name in names), sep="   ", flush=True)


if __name__ == "__main__":
    main()
