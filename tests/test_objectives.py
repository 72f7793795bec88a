"""The presets against loops written from their papers, KL gradients by enumeration, and what must change nothing."""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from grpo_jax import objectives
from grpo_jax.objectives import (
    PRESETS,
    Objective,
    cppo,
    credit,
    dapo,
    dr_grpo,
    dro,
    first_coefficients,
    gfpo,
    gmpo,
    grpo,
    gspo,
    gspo_token,
    luspo,
    maxrl,
    next_coefficients,
    pods,
    real,
    rloo,
    rubric,
    scored_of,
    verifiable,
)
from grpo_jax.objectives.advantages import group_mean
from grpo_jax.objectives.coefficients import Proportional
from grpo_jax.objectives.corrections import (
    OffPolicyMask,
    SequenceMask,
    SequenceTruncation,
    TokenMask,
    TokenTruncation,
)
from grpo_jax.objectives.kl import KL, Reference, k1, k2, k3, k3_with_slope_of_k2
from grpo_jax.objectives.ratios import sequence_product, sequence_token, token
from grpo_jax.objectives.shaping import Brevity, Gate, SoftOverlong
from grpo_jax.objectives.surrogates import (
    ClippedRatio,
    ClippedWeight,
    GammaWeight,
    GeometricClip,
    Interval,
    SoftGate,
    TrustRegionKL,
    TrustRegionTV,
    importance,
    reinforce,
    tapered,
)
from grpo_jax.objectives.weightings import FixedLength, prompt_mean, sequence_mean, sequence_sum, token_mean
from grpo_jax.structs import Batch, Prompts, Rollouts, Tokens

VARIANTS = {
    "grpo without kl": grpo(kl=0.0),
    "grpo with kl in the reward": grpo(kl_place="reward"),
    "dr_grpo of 16": dr_grpo(length=16),
    "dapo with a cap": dapo(cap=3.0),
    "dapo with overlong": dapo(overlong=0.2),
    "gfpo of 2": gfpo(2),
    "pods of 2": pods(2),
    "cppo of 1": cppo(1),
    "rubric with a length penalty": rubric(length_penalty=0.1),
}
OBJECTIVES = {preset.__name__: preset() for preset in PRESETS} | VARIANTS
every_preset = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
# The level of rewards matters to these. The others compare a response with its group alone, so that a group with equal
# rewards has no gradient, unless advantages are centred once more, or length is punished.
LEVEL = {"nsr", "real", "reinforce_pp", "maxrl", "passk", "grpo_process", "distillation"}
LEVEL |= {"rubric with a length penalty"}  # which grows with the mean reward of the group
AGAIN = {"gdpo", "reinforce_pp_baseline", "dapo with overlong"}
BY_BATCH = {"lite_ppo", "prorl_v2", "scale_rl", "verifiable"}  # divide by the deviation of all rewards


def presets_but(*names: str):
    """The objectives without KL and other terms: with what comes from rewards alone."""
    chosen = {name: replace(each, kl=None, terms=()) for name, each in OBJECTIVES.items() if name not in names}
    return pytest.mark.parametrize("objective", chosen.values(), ids=chosen.keys())


@dataclass(frozen=True)
class Case:
    """Random log-probs of the policy, of the one that sampled and of the reference, with rewards."""

    rewards_PG: np.ndarray
    action_PGT: np.ndarray
    new_PGT: np.ndarray
    old_PGT: np.ndarray
    ref_PGT: np.ndarray
    entropy_PGT: np.ndarray


def random_case(seed: int = 0, P: int = 2, G: int = 3, T: int = 6, spread: float = 0.3) -> Case:
    """Responses of every length from one to T, one of them with a gap, and ratios on both sides of the clip."""
    draw = np.random.default_rng(seed)
    lengths_PG = draw.permutation(np.arange(P * G) % T + 1).reshape(P, G)
    action_PGT = np.arange(T) < lengths_PG[..., None]
    action_PGT[np.where(lengths_PG == T)[0], np.where(lengths_PG == T)[1], 2] = False
    new_PGT = -draw.exponential(1.5, (P, G, T))
    old_PGT, ref_PGT = (new_PGT + draw.normal(0, spread, new_PGT.shape) for _ in range(2))
    rewards_PG, entropy_PGT = draw.integers(0, 9, (P, G)) / 8, draw.exponential(1.0, action_PGT.shape)
    return Case(rewards_PG, action_PGT, new_PGT, old_PGT, ref_PGT, entropy_PGT)


def batch_of(
    objective: Objective, case: Case, advantages: jax.Array | None = None, ended_PG: np.ndarray | None = None
) -> Batch:
    action_PGT = jnp.asarray(case.action_PGT)
    entropy_PGT = jnp.asarray(np.where(action_PGT, case.entropy_PGT, 0.0), jnp.float32)
    prompts = Prompts(jnp.zeros((len(action_PGT), 1), jnp.int32), jnp.ones((len(action_PGT), 1), bool))
    old_PGT, ref_PGT = (jnp.asarray(array, jnp.float32) for array in (case.old_PGT, case.ref_PGT))
    tokens_PGT = jnp.zeros(action_PGT.shape, jnp.int32)
    ended_PG = jnp.ones(action_PGT.shape[:2], bool) if ended_PG is None else jnp.asarray(ended_PG)
    rollouts = Rollouts(prompts, tokens_PGT, action_PGT, action_PGT, old_PGT, entropy_PGT, ended_PG, 1.0)
    rewards_PGR = jnp.asarray(case.rewards_PG, jnp.float32)[..., None]
    steps_PGT = jnp.where(jnp.arange(action_PGT.shape[2]) % 2 == 1, rewards_PGR, jnp.nan)
    scored = scored_of(
        rewards_PGR, jnp.ones(1), rollouts, steps_PGT=steps_PGT, greedy_P1=rewards_PGR[:, :, 0].mean(1, keepdims=True)
    )
    batch = credit(
        objective,
        rollouts,
        scored,
        jax.random.key(0),
        old_logprobs_PGT=old_PGT,
        ref_logprobs_PGT=ref_PGT,
        teacher_logprobs_PGT=ref_PGT,
        coefficients=first_coefficients(objective),
    )
    return batch if advantages is None else replace(batch, advantages=advantages)


def loss_of(objective: Objective, new_PGT: jax.Array, batch: Batch) -> jax.Array:
    return objectives.loss(objective, new_PGT, batch.rollouts.entropy_PGT, batch)[0]


def measure(objective: Objective, case: Case, advantages: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient by the log-probs."""
    batch = batch_of(objective, case, advantages)
    return jax.value_and_grad(lambda new_PGT: loss_of(objective, new_PGT, batch))(
        jnp.asarray(case.new_PGT, jnp.float32)
    )


# The presets, written again as loops in float64, one response and one token at a time.


def less_kl(case: Case, coefficient: float) -> Case:
    """Rewards minus k1, summed over the response."""
    kl_PG = np.sum(np.where(case.action_PGT, case.old_PGT - case.ref_PGT, 0.0), axis=2)
    return replace(case, rewards_PG=case.rewards_PG - coefficient * kl_PG)


def loop_grpo(case: Case, kl: str | None = "k3") -> float:
    """DeepSeekMath, equations 3 and 4; k1 and k2 in the place of the paper's estimator."""
    P, G, loss = *case.rewards_PG.shape, 0.0
    for p, g in np.ndindex(P, G):
        group = case.rewards_PG[p]
        A = (group[g] - group.mean()) / (group.std(ddof=1) + 1e-4)
        tokens = np.flatnonzero(case.action_PGT[p, g])
        for t in tokens:
            r = np.exp(case.new_PGT[p, g, t] - case.old_PGT[p, g, t])
            y = case.new_PGT[p, g, t] - case.ref_PGT[p, g, t]
            penalty = {None: 0.0, "k1": y, "k2": y * y / 2, "k3": np.exp(-y) - 1 + y}[kl]
            gain = min(r * A, min(max(r, 0.8), 1.2) * A) - 0.04 * penalty
            loss -= gain / len(tokens) / (P * G)
    return loss


def kept(case: Case, p: int, count: int, score) -> list[int]:
    """The `count` responses of a group with the highest scores, of equal ones the first."""
    return sorted(range(case.rewards_PG.shape[1]), key=lambda g: -score(p, g))[:count]


def loop_of_some(case: Case, chosen: list[list[int]], by_response: bool) -> float:
    """GRPO without a KL term among some responses of each group; every response or every token counts the same."""
    loss, responses, tokens = 0.0, sum(map(len, chosen)), 0
    for p, group in enumerate(chosen):
        rewards = case.rewards_PG[p, group]
        for g in group:
            A, each = (case.rewards_PG[p, g] - rewards.mean()) / (rewards.std(ddof=1) + 1e-4), 0.0
            for t in np.flatnonzero(case.action_PGT[p, g]):
                r = np.exp(case.new_PGT[p, g, t] - case.old_PGT[p, g, t])
                each, tokens = each + min(r * A, min(max(r, 0.8), 1.2) * A), tokens + 1
            loss -= each / case.action_PGT[p, g].sum() / responses if by_response else each
    return loss if by_response else loss / tokens


def loop_gfpo(case: Case) -> float:
    """GFPO: the two shortest responses of each group, compared with one another."""
    lengths_PG = case.action_PGT.sum(axis=2)
    return loop_of_some(case, [kept(case, p, 2, lambda p, g: -lengths_PG[p, g]) for p in range(3)], by_response=False)


def loop_pods(case: Case) -> float:
    """PODS: the two responses of each group whose rewards differ most are the best and the worst."""
    chosen = [[int(np.argmin(rewards_G)), int(np.argmax(rewards_G))] for rewards_G in case.rewards_PG]
    return loop_of_some(case, chosen, by_response=True)


def loop_cppo(case: Case) -> float:
    """CPPO without a KL term: the one response of each group that is furthest from the mean of all."""
    P, _, loss = *case.rewards_PG.shape, 0.0
    for p in range(P):
        A_G = (case.rewards_PG[p] - case.rewards_PG[p].mean()) / (case.rewards_PG[p].std(ddof=1) + 1e-4)
        (g,) = kept(case, p, 1, lambda p, g, A_G=A_G: abs(A_G[g]))
        for t in np.flatnonzero(case.action_PGT[p, g]):
            r = np.exp(case.new_PGT[p, g, t] - case.old_PGT[p, g, t])
            loss -= min(r * A_G[g], min(max(r, 0.8), 1.2) * A_G[g]) / case.action_PGT[p, g].sum() / P
    return loss


def loop_dr_grpo(case: Case) -> float:
    """Dr. GRPO with the constant 16: neither the deviation nor the length divides."""
    P, G, loss = *case.rewards_PG.shape, 0.0
    for p, g in np.ndindex(P, G):
        A = case.rewards_PG[p, g] - case.rewards_PG[p].mean()
        for t in np.flatnonzero(case.action_PGT[p, g]):
            r = np.exp(case.new_PGT[p, g, t] - case.old_PGT[p, g, t])
            loss -= min(r * A, min(max(r, 0.8), 1.2) * A) / 16 / (P * G)
    return loss


def loop_dapo(case: Case, cap: float = np.inf) -> float:
    """DAPO: a higher upper bound, and a mean over all tokens of the batch."""
    P, G, loss, tokens = *case.rewards_PG.shape, 0.0, 0
    for p, g in np.ndindex(P, G):
        group = case.rewards_PG[p]
        A = (group[g] - group.mean()) / (group.std(ddof=1) + 1e-4)
        for t in np.flatnonzero(case.action_PGT[p, g]):
            r = np.exp(case.new_PGT[p, g, t] - case.old_PGT[p, g, t])
            gain = min(r, 1.28) * A if A >= 0 else min(max(r, 0.8), cap) * A
            loss, tokens = loss - gain, tokens + 1
    return loss / tokens


def loop_gspo(case: Case) -> float:
    """GSPO: one ratio for each response, the geometric mean of those of its tokens."""
    P, G, loss = *case.rewards_PG.shape, 0.0
    for p, g in np.ndindex(P, G):
        group, tokens = case.rewards_PG[p], np.flatnonzero(case.action_PGT[p, g])
        A = (group[g] - group.mean()) / (group.std(ddof=1) + 1e-4)
        s = np.exp(sum(case.new_PGT[p, g, t] - case.old_PGT[p, g, t] for t in tokens) / len(tokens))
        loss -= min(s * A, min(max(s, 1 - 3e-4), 1 + 4e-4) * A) / (P * G)
    return loss


def loop_rloo(case: Case) -> float:
    """RLOO: the log-prob of the whole response, against the mean reward of the others."""
    P, G, loss = *case.rewards_PG.shape, 0.0
    for p, g in np.ndindex(P, G):
        others = [case.rewards_PG[p, i] for i in range(G) if i != g]
        A = case.rewards_PG[p, g] - sum(others) / len(others)
        for t in np.flatnonzero(case.action_PGT[p, g]):
            loss -= A * case.new_PGT[p, g, t] / (P * G)
    return loss


def slope_of(loop, case: Case, step: float = 1e-6) -> np.ndarray:
    """The loop's gradient by the log-probs, by central differences."""
    slope_PGT = np.zeros(case.new_PGT.shape)
    for position in np.ndindex(slope_PGT.shape):
        nudge_PGT = np.zeros(slope_PGT.shape)
        nudge_PGT[position] = step
        above, below = (loop(replace(case, new_PGT=case.new_PGT + sign * nudge_PGT)) for sign in (1, -1))
        slope_PGT[position] = (above - below) / (2 * step)
    return slope_PGT


LOOPS = [
    ("grpo, k3 in the loss", grpo(), loop_grpo),
    ("grpo, k2 in the loss", grpo(kl_estimator="k2"), lambda case: loop_grpo(case, "k2")),
    ("grpo, k1 in the loss", grpo(kl_estimator="k1"), lambda case: loop_grpo(case, "k1")),
    (
        "grpo, k1 in the reward",
        grpo(kl_estimator="k1", kl_place="reward"),
        lambda case: loop_grpo(less_kl(case, 0.04), None),
    ),
    ("grpo without kl", grpo(kl=0.0), lambda case: loop_grpo(case, None)),
    ("dr_grpo", dr_grpo(length=16), loop_dr_grpo),
    ("dapo", dapo(), loop_dapo),
    ("dapo with a cap", dapo(cap=1.5), lambda case: loop_dapo(case, 1.5)),
    ("gspo", gspo(), loop_gspo),
    ("rloo", rloo(), lambda case: loop_rloo(less_kl(case, 0.03))),
    ("gfpo", gfpo(2), loop_gfpo),
    ("pods", pods(2), loop_pods),
    ("cppo", cppo(1, kl=0.0), loop_cppo),
]


@pytest.mark.parametrize(("objective", "loop"), [pytest.param(*rest, id=name) for name, *rest in LOOPS])
@pytest.mark.parametrize("spread", [0.0001, 0.3, 1.0])
@pytest.mark.slow
def test_a_preset_is_the_loop_of_its_paper(objective, loop, spread):
    case = random_case(P=3, G=4, spread=spread)
    loss, gradient_PGT = measure(objective, case)
    np.testing.assert_allclose(loss, loop(case), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient_PGT, slope_of(loop, case), rtol=1e-3, atol=1e-5)


# A policy of one token out of four, so that expectations are sums over the four.
POLICY = np.array([0.4, 0.3, 0.2, 0.1])
REFERENCE = POLICY[::-1]
LOG_RATIO = np.log(POLICY / REFERENCE)
REVERSE = POLICY * (LOG_RATIO - POLICY @ LOG_RATIO)  # of KL(policy || reference), by the logits
FORWARD = POLICY - REFERENCE  # of KL(reference || policy)


def expected_gradient(objective: Objective, advantages_PG: jax.Array) -> jax.Array:
    """By the logits: each token is one response, and counts as often as the policy would choose it."""
    log_reference_PGT = np.log(REFERENCE)[None, :, None]
    fixed = (log_reference_PGT,) * 3
    case = Case(np.zeros((1, 4)), np.ones((1, 4, 1), bool), *fixed, np.zeros((1, 4, 1)))
    weights_PGT = jnp.asarray(POLICY, jnp.float32)[None, :, None]
    batch = replace(batch_of(objective, case, advantages_PG), weights_PGT=weights_PGT, old_logprobs_PGT=None)

    def loss(logits):
        return loss_of(objective, jax.nn.log_softmax(logits)[None, :, None], batch)

    return jax.grad(loss)(jnp.log(jnp.asarray(POLICY, jnp.float32)))


def test_the_enumerated_gradients_are_the_published_ones():
    np.testing.assert_allclose(REVERSE, [0.3719, -0.0153, -0.1724, -0.1843], atol=1e-4)  # sum p (log p/q) (1[v] - p)
    np.testing.assert_allclose(FORWARD, [0.3, 0.1, -0.1, -0.3], atol=1e-9)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        pytest.param(KL(1.0, k1), np.zeros(4), id="k1 has no gradient"),
        pytest.param(KL(1.0, k2), REVERSE, id="k2 has that of the reverse KL"),
        pytest.param(KL(1.0, k3), FORWARD, id="k3 has that of the forward KL"),
        pytest.param(KL(1.0, k3_with_slope_of_k2), REVERSE, id="k3 with the slope of k2 has that of the reverse KL"),
        pytest.param(KL(1.0, k1, ratio=token), REVERSE, id="k1 times the ratio has that of the reverse KL"),
        pytest.param(KL(1.0, k3, ratio=token), REVERSE, id="k3 times the ratio has that of the reverse KL"),
    ],
)
@pytest.mark.slow
def test_the_gradient_of_a_kl_term_in_the_loss(kl, expected):
    gradient = expected_gradient(replace(grpo(), kl=kl), jnp.zeros((1, 4)))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_k1_subtracted_from_the_reward_has_the_gradient_of_the_reverse_kl():
    rewards_PG = -jnp.asarray(LOG_RATIO, jnp.float32)[None]
    np.testing.assert_allclose(expected_gradient(rloo(kl=0.0), rewards_PG), REVERSE, atol=1e-6)


@pytest.mark.parametrize("objective", [grpo(kl=0.0), dr_grpo(length=16), dapo(), gspo()])
def test_on_policy_every_surrogate_has_the_gradient_of_reinforce(objective):
    case = random_case()
    batch = replace(batch_of(objective, case), old_logprobs_PGT=None)
    plain = replace(objective, surrogate=reinforce)
    new_PGT = jnp.asarray(case.new_PGT, jnp.float32)
    ours_PGT, theirs_PGT = (jax.grad(lambda x, o=o: loss_of(o, x, batch))(new_PGT) for o in (objective, plain))
    np.testing.assert_allclose(ours_PGT, theirs_PGT, atol=1e-6)


# What must change nothing.


def garbled(case: Case) -> Case:
    """Other numbers wherever there is no action."""
    draw = np.random.default_rng(1)
    arrays = {"new_PGT": case.new_PGT, "old_PGT": case.old_PGT, "ref_PGT": case.ref_PGT}
    noisy = {name: np.where(case.action_PGT, a, draw.normal(0, 100, a.shape)) for name, a in arrays.items()}
    return replace(case, **noisy)


@every_preset
@pytest.mark.slow
def test_numbers_where_there_is_no_action_change_nothing(objective):
    case = random_case()
    loss, gradient_PGT = measure(objective, case)
    garbled_loss, garbled_gradient_PGT = measure(objective, garbled(case))
    assert loss == garbled_loss
    np.testing.assert_array_equal(gradient_PGT, garbled_gradient_PGT)
    np.testing.assert_array_equal(gradient_PGT[~case.action_PGT], 0.0)


@every_preset
@pytest.mark.slow
def test_padding_changes_nothing(objective):
    if objective.weighting == FixedLength():  # it divides by the width of the arrays, which is the sampler's limit
        objective = replace(objective, weighting=FixedLength(6))
    objective = replace(
        objective, shaping=tuple(s for s in objective.shaping if not isinstance(s, SoftOverlong | Brevity))
    )
    case = random_case()
    wider = ((0, 0), (0, 0), (0, 5))
    padded = {name: np.pad(array, wider) for name, array in vars(case).items() if array.ndim == 3}
    loss, gradient_PGT = measure(objective, case)
    padded_loss, padded_gradient_PGT = measure(objective, replace(case, **padded))
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(padded_gradient_PGT, np.pad(gradient_PGT, wider), rtol=1e-5, atol=1e-7)


TIES = {"gfpo of 2", "pods of 2", "cppo", "cppo of 1"}  # of equal responses these keep the first


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"clip_cov"}))  # which draws tokens by their position
@pytest.mark.slow
def test_permuting_prompts_and_responses_permutes_the_gradient(name):
    objective, case = OBJECTIVES[name], random_case(P=3)
    if name in TIES:  # nine lengths, and nine rewards whose distances differ
        rewards_PG = np.random.default_rng(1).permutation(np.arange(9.0) ** 2).reshape(3, 3) / 64
        case = replace(random_case(P=3, T=9), rewards_PG=rewards_PG)
    order = np.ix_([2, 0, 1], [1, 2, 0])
    permuted = replace(case, **{name: array[order] for name, array in vars(case).items()})
    loss, gradient_PGT = measure(objective, case)
    permuted_loss, permuted_gradient_PGT = measure(objective, permuted)
    np.testing.assert_allclose(permuted_loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(permuted_gradient_PGT, gradient_PGT[order], rtol=1e-5, atol=1e-7)


@presets_but(*LEVEL, *BY_BATCH)
def test_a_constant_added_to_the_rewards_of_a_group_changes_nothing(objective):
    case = random_case()
    shifted = replace(case, rewards_PG=case.rewards_PG + np.array([[4.0], [-2.0]]))
    for ours, theirs in zip(measure(objective, case), measure(objective, shifted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@presets_but(*LEVEL)
@pytest.mark.slow
def test_a_constant_added_to_all_rewards_changes_nothing(objective):
    case = random_case()
    shifted = replace(case, rewards_PG=case.rewards_PG + 2.0)
    for ours, theirs in zip(measure(objective, case), measure(objective, shifted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@presets_but(*LEVEL, *AGAIN)
@pytest.mark.slow
def test_a_group_with_equal_rewards_has_a_gradient_of_exactly_zero(objective):
    case = random_case(seed=1, G=5, T=10)
    agreed = replace(case, rewards_PG=np.stack([np.full(5, 0.5), case.rewards_PG[1]]))
    gradient_PGT = measure(objective, agreed)[1]
    np.testing.assert_array_equal(gradient_PGT[0], 0.0)
    assert np.abs(gradient_PGT[1]).max() > 0


@every_preset
@pytest.mark.slow
def test_token_advantages_equal_to_those_of_their_response_change_nothing(objective):
    case = random_case()
    advantages = batch_of(objective, case).advantages
    advantages_PGT = jnp.broadcast_to(advantages.reshape(2, 3, -1), case.action_PGT.shape)
    for ours, theirs in zip(measure(objective, case), measure(objective, case, advantages_PGT), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@every_preset
@pytest.mark.slow
def test_losses_gradients_and_sums_of_microbatches_add_up(objective):
    case = random_case(P=4)
    batch, new_PGT = batch_of(objective, case), jnp.asarray(case.new_PGT, jnp.float32)

    def whole(new_PGT, batch):
        return jax.value_and_grad(partial(objectives.loss, objective), has_aux=True)(
            new_PGT, batch.rollouts.entropy_PGT, batch
        )

    (loss, sums), gradient_PGT = whole(new_PGT, batch)
    halves = [jax.tree.map(lambda a, half=half: a[half::2] if a.ndim > 1 else a, (new_PGT, batch)) for half in (0, 1)]
    found = [whole(*half) for half in halves]
    added = jax.tree.map(jnp.add, found[0][0], found[1][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), added, (loss, sums))
    for half, (_, half_PGT) in enumerate(found):
        np.testing.assert_allclose(half_PGT, gradient_PGT[half::2], rtol=1e-6)


@every_preset
@pytest.mark.parametrize("log_ratio", [-80.0, -10.0, 10.0, 80.0])
@pytest.mark.slow
def test_gradients_are_finite_however_far_the_policy_has_moved(objective, log_ratio):
    case = random_case()
    moved = replace(case, old_PGT=case.new_PGT - log_ratio, ref_PGT=case.new_PGT - log_ratio)
    for array in measure(objective, moved):
        assert np.isfinite(array).all()


@every_preset
@pytest.mark.parametrize(("old", "ref"), [(70.0, -70.0), (-70.0, 70.0), (80.0, -80.0), (-80.0, 80.0)])
@pytest.mark.slow
def test_gradients_are_finite_though_policy_and_reference_have_moved_apart(objective, old, ref):
    case = random_case()
    moved = replace(case, old_PGT=case.new_PGT - old, ref_PGT=case.new_PGT - ref)
    for array in measure(objective, moved):
        assert np.isfinite(array).all()


@every_preset
@pytest.mark.slow
def test_a_response_without_a_reward_has_no_gradient(objective):
    """Not even by a KL term. A teacher needs no reward."""
    case = random_case(P=3, G=4)
    case.rewards_PG[0, 1] = case.rewards_PG[2] = np.nan
    gradient_PGT = measure(objective, case)[1]
    unscored_PGT = np.isnan(case.rewards_PG)[..., None] & case.action_PGT
    assert (np.abs(gradient_PGT[unscored_PGT]) > 0).any() == bool(objective.distillation)
    assert np.isfinite(gradient_PGT).all()


@pytest.mark.parametrize("wrong", [lambda scored: group_mean(scored), lambda scored: scored.rewards_PG[0]])
def test_an_advantage_of_another_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"a number for each response or token, \(2, 3\) or \(2, 3, 6\)"):
        batch_of(replace(dapo(), advantage=wrong), random_case())


def test_a_kl_term_with_an_impossible_place_or_ratio_is_refused():
    with pytest.raises((ValueError, TypeCheckError), match="'los'"):  # whoever sees it first
        KL(0.1, k2, "los")
    with pytest.raises(ValueError, match="leave out the ratio"):
        KL(0.1, k2, "reward", ratio=token)


def test_a_kl_term_with_a_ratio_needs_the_old_log_probs_whatever_the_anchor():
    for anchor in ("current", "sampler", "recomputed"):
        pulled = replace(dapo(), anchor=anchor, kl=KL(0.1, k3, ratio=token))
        assert pulled.compares_with_old
    assert not replace(dapo(), anchor="sampler", kl=KL(0.1, k3)).compares_with_old


def test_a_coefficient_does_not_change_if_its_metric_is_not_a_number():
    objective = replace(dapo(), kl=KL(Proportional(0.1, initial=0.3), k2))
    before = first_coefficients(objective)
    after = next_coefficients(objective, before, {"kl": float("nan")})
    np.testing.assert_array_equal(after["kl"], before["kl"])


@pytest.mark.parametrize("each", [-1.0, 1.0])
@pytest.mark.slow
def test_gradients_are_finite_though_the_ratio_of_a_long_response_is_not(each):
    case = random_case(T=200)
    drifted = replace(case, action_PGT=np.ones((2, 3, 200), bool), old_PGT=case.new_PGT - each)  # exp(200) overflows
    for array in measure(replace(dapo(), ratio=sequence_product), drifted):
        assert np.isfinite(array).all()


@every_preset
@pytest.mark.slow
def test_an_empty_response_has_no_gradient_and_breaks_no_other(objective):
    case = random_case()
    emptied_PGT = case.action_PGT.copy()
    emptied_PGT[0, 1] = False
    loss, gradient_PGT = measure(objective, replace(case, action_PGT=emptied_PGT))
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradient_PGT[0, 1], 0.0)
    assert np.isfinite(gradient_PGT).all()


@every_preset
@pytest.mark.slow
def test_a_batch_without_any_action_has_no_loss_and_no_gradient(objective):
    case = replace(random_case(), action_PGT=np.zeros((2, 3, 6), bool))
    for array in measure(objective, case):
        np.testing.assert_array_equal(array, jnp.zeros_like(array))


@presets_but(*LEVEL, *AGAIN)
@pytest.mark.slow
def test_groups_of_one_have_no_gradient(objective):
    gradient_PGT = measure(objective, random_case(P=4, G=1))[1]
    np.testing.assert_array_equal(gradient_PGT, jnp.zeros((4, 1, 6)))


# Weightings.


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, prompt_mean])
def test_weights_of_a_batch_add_up_to_one(weighting):
    weights_PGT = weighting(jnp.asarray(random_case(P=5).action_PGT), jnp.ones((5, 3), bool))
    np.testing.assert_allclose(weights_PGT.sum(), 1.0, rtol=1e-6)


def test_weights_are_those_worked_out_by_hand():
    action_PGT = jnp.array(
        [[[True, True, False, False], [True, True, True, True]], [[False] * 4, [True, False, True, False]]]
    )
    lengths_PG1 = np.array([[[2], [4]], [[1], [2]]])  # the empty response still counts as one of the four
    all_PG = jnp.ones((2, 2), bool)
    np.testing.assert_allclose(sequence_mean(action_PGT, all_PG), action_PGT / lengths_PG1 / 4)
    np.testing.assert_allclose(token_mean(action_PGT, all_PG), action_PGT / 8)
    np.testing.assert_allclose(prompt_mean(action_PGT, all_PG), action_PGT / np.array([[[6]], [[2]]]) / 2)
    np.testing.assert_allclose(sequence_sum(action_PGT, all_PG), action_PGT / 4)
    np.testing.assert_allclose(FixedLength(10)(action_PGT, all_PG), action_PGT / 40)
    np.testing.assert_allclose(FixedLength()(action_PGT, all_PG), action_PGT / 16)


def test_denominators_leave_out_responses_that_do_not_count():
    action_PGT, counted_PG = jnp.ones((2, 2, 4), bool), jnp.array([[True, False], [False, False]])
    for weighting in (sequence_mean, token_mean, prompt_mean):
        np.testing.assert_allclose(weighting(action_PGT, counted_PG)[0, 0], 0.25)
        assert weighting(action_PGT, counted_PG).sum() == 1


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, prompt_mean, sequence_sum, FixedLength(10)])
@pytest.mark.parametrize("counted", [True, False])
def test_an_empty_batch_has_no_weights(weighting, counted):
    counted_PG = jnp.full((2, 3), counted)
    np.testing.assert_array_equal(weighting(jnp.zeros((2, 3, 4), bool), counted_PG), jnp.zeros((2, 3, 4)))


# What an objective asks for.


def test_only_a_kl_term_that_counts_needs_a_reference():
    assert grpo().needs_reference
    assert rloo().needs_reference
    assert not any(
        objective.needs_reference for objective in (grpo(kl=0.0), rloo(kl=0.0), dr_grpo(length=16), dapo(), gspo())
    )


def test_a_kl_term_with_a_coefficient_of_zero_is_no_term():
    case, weightless = random_case(), replace(grpo(), kl=KL(0.0, k3))
    batch = replace(batch_of(weightless, case), ref_logprobs_PGT=None)
    assert loss_of(weightless, jnp.asarray(case.new_PGT, jnp.float32), batch) == measure(grpo(kl=0.0), case)[0]


@pytest.mark.slow
def test_clipped_tokens_are_counted_by_the_sign_of_their_advantage():
    case = random_case(P=3, G=4, T=8, spread=0.5)
    batch = batch_of(dapo(), case)
    sums = objectives.loss(dapo(), jnp.asarray(case.new_PGT, jnp.float32), batch.rollouts.entropy_PGT, batch)[1]
    ratio_PGT = np.exp(case.new_PGT - case.old_PGT)
    advantages_PG1 = (case.rewards_PG - case.rewards_PG.mean(axis=1, keepdims=True))[..., None]
    low = np.sum(case.action_PGT & (ratio_PGT < 0.8) & (advantages_PG1 < 0))
    high = np.sum(case.action_PGT & (ratio_PGT > 1.28) & (advantages_PG1 > 0))
    assert low > 0
    assert high > 0
    assert (sums["clip_ratio/low_mean"], sums["clip_ratio/high_mean"]) == (low, high)
    assert sums["clip_ratio/region_mean"] == low + high


# Surrogates: the coefficient of the score function, which is the gradient by the log-prob over the advantage.


def tokens_at(log_ratio_N, advantage_N, logprob_N) -> Tokens:
    """Responses of one token each, with these ratios to their anchor."""
    x, advantages, logprobs = (
        jnp.asarray(a, jnp.float32)[:, None, None] for a in (log_ratio_N, advantage_N, logprob_N)
    )
    anchor = logprobs - x
    return Tokens(jnp.ones(x.shape, bool), advantages, logprobs, jnp.zeros(x.shape), x, anchor, anchor, anchor)


def coefficients(surrogate, log_ratio_N, advantage_N, logprob_N) -> np.ndarray:
    tokens = tokens_at(log_ratio_N, advantage_N, logprob_N)

    def total(logprobs_PGT):
        return surrogate(
            replace(tokens, logprobs_PGT=logprobs_PGT, log_ratio_PGT=logprobs_PGT - tokens.anchor_PGT)
        ).sum()

    return np.asarray(jax.grad(total)(tokens.logprobs_PGT)).ravel() / advantage_N


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def binary_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def gated(r, A):
    t = np.where(A > 0, 1.0, 1.05)
    return r * 4 * sigmoid(t * (r - 1)) * (1 - sigmoid(t * (r - 1)))


def gamma(r, A):
    return np.where(A > 0, np.exp(3 + 2 * np.log(r) - 3 * r), np.exp(2 + 3 * np.log(r) - 2 * r))


def clipped(r, A):
    return r * ~((A > 0) & (r > 1.28)) * ~((A < 0) & (r < 0.8)) * ~((A < 0) & (r > 3))


def moved_too_far(r, A, p):
    before, now = p / r, p
    kl = binary_kl(before, now)
    return (kl > 0.05) & np.where(A > 0, now > before, now < before)


COEFFICIENTS = [
    (reinforce, lambda r, A, p: np.ones_like(r)),
    (importance, lambda r, A, p: r),
    (ClippedRatio(0.2, 0.28, 3.0), lambda r, A, p: clipped(r, A)),
    (ClippedWeight(0.5, 2.0), lambda r, A, p: np.clip(r, 0.5, 2.0)),
    (Interval(0.5, 2.0), lambda r, A, p: r * (r > 0.5) * (r < 2.0)),
    (
        TrustRegionTV(0.1, 0.15, 2.0),
        lambda r, A, p: np.minimum(r, 2.0) * np.where(A > 0, p - p / r <= 0.15, p - p / r >= -0.1),
    ),
    (TrustRegionKL(0.05, 0.05, 2.0), lambda r, A, p: np.minimum(r, 2.0) * ~moved_too_far(r, A, p)),
    (SoftGate(), lambda r, A, p: gated(r, A)),
    (GammaWeight(), lambda r, A, p: gamma(r, A)),
    (tapered, lambda r, A, p: np.where(A > 0, 1.0, np.minimum(r, 1.0))),
    (GeometricClip(0.4, 0.4), lambda r, A, p: r * np.where(A > 0, np.log(r) <= 0.4, np.log(r) >= -0.4)),
]
every_surrogate = pytest.mark.parametrize(
    ("surrogate", "expected"), COEFFICIENTS, ids=[getattr(s, "__name__", type(s).__name__) for s, _ in COEFFICIENTS]
)


@every_surrogate
@pytest.mark.slow
def test_a_surrogate_has_the_coefficient_of_its_paper(surrogate, expected):
    draw = np.random.default_rng(3)
    before, x = draw.uniform(0.05, 0.5, 400), draw.uniform(-1.5, 0.6, 400)
    now = before * np.exp(x)
    A = draw.choice([-2.0, 0.5], 400)
    found = coefficients(surrogate, x, A, np.log(now))
    np.testing.assert_allclose(found, expected(np.exp(x), A, now), rtol=1e-4, atol=1e-5)


@every_surrogate
@pytest.mark.slow
def test_on_policy_every_coefficient_is_one(surrogate, expected):
    A, logprob = np.array([-1.0, 2.0, 0.3]), np.log([0.1, 0.5, 0.9])
    np.testing.assert_allclose(coefficients(surrogate, np.zeros(3), A, logprob), 1.0, rtol=1e-5)


@every_surrogate
@pytest.mark.parametrize("x", [-80.0, 80.0])
@pytest.mark.slow
def test_coefficients_are_finite_however_far_the_policy_has_moved(surrogate, expected, x):
    assert np.isfinite(coefficients(surrogate, np.full(2, x), np.array([-1.0, 1.0]), np.array([-90.0, -0.1]))).all()


# Truncated responses, and options of the recipes.


def test_overlong_filtering_leaves_truncated_responses_out_of_the_loss_but_not_of_their_group():
    case, truncated_PG = random_case(P=3, G=4), np.zeros((3, 4), bool)
    truncated_PG[0, 1] = truncated_PG[2, 3] = True
    filtered, plain = (batch_of(dapo(filter_truncated=each), case, ended_PG=~truncated_PG) for each in (True, False))
    np.testing.assert_array_equal(filtered.advantages, plain.advantages)
    np.testing.assert_array_equal(filtered.weights_PGT[truncated_PG], 0.0)
    np.testing.assert_allclose(filtered.weights_PGT.sum(), 1.0, rtol=1e-6)


def test_the_options_of_the_rubric_recipe_are_its_shaping():
    assert rubric().shaping == ()
    assert rubric(gate=(0, 2), length_penalty=0.2).shaping == (Gate((0, 2)), Brevity(0.2))


# Identities between objectives.


def same(one: Objective, other: Objective, case: Case, factor: float = 1.0) -> None:
    """The gradients agree, up to a factor."""
    ours_PGT, theirs_PGT = measure(one, case)[1], measure(other, case)[1]
    np.testing.assert_allclose(ours_PGT, factor * theirs_PGT, rtol=1e-4, atol=1e-6)


def test_gspo_token_is_gspo_if_advantages_are_those_of_responses():
    same(gspo(0.05, 0.05), gspo_token(0.05, 0.05), random_case(P=4))


def test_luspo_is_gspo_with_sums_over_tokens():
    same(luspo(0.05, 0.05), replace(gspo(0.05, 0.05), weighting=sequence_sum), random_case(P=4))


def test_a_cap_on_the_ratio_is_a_dual_clip():
    case = random_case(P=4, spread=1.0)

    def dual(tokens: Tokens):
        ratio_PGT = jnp.exp(tokens.log_ratio_PGT)
        lower_PGT = jnp.minimum(
            ratio_PGT * tokens.advantages_PGT, jnp.clip(ratio_PGT, 0.8, 1.28) * tokens.advantages_PGT
        )
        return jnp.where(tokens.advantages_PGT < 0, jnp.maximum(lower_PGT, 3.0 * tokens.advantages_PGT), lower_PGT)

    same(dapo(cap=3.0), replace(dapo(), surrogate=dual), case)


@pytest.mark.slow
def test_real_is_reinforce_with_listwise_advantages():
    case, t = random_case(P=4, G=5), 0.5
    case = replace(case, rewards_PG=(case.rewards_PG > 0.5) * 1.0)
    lengths_PG = case.action_PGT.sum(axis=2)
    s_PG = np.sum((case.new_PGT - case.old_PGT) * case.action_PGT, axis=2) / lengths_PG
    right_PG = case.rewards_PG > 0.5
    up_PG, down_PG = np.exp(-s_PG / t) * right_PG, np.exp(s_PG / t) * ~right_PG
    advantages_PG = up_PG / (t * (1 + up_PG.sum(1, keepdims=True))) - down_PG / (
        t * (1 + down_PG.sum(1, keepdims=True))
    )
    plain = replace(dapo(), surrogate=reinforce, weighting=sequence_mean)
    expected_PGT = measure(plain, case, jnp.asarray(advantages_PG, jnp.float32))[1]
    np.testing.assert_allclose(measure(real(t), case)[1], 5 * expected_PGT, rtol=1e-4, atol=1e-6)


def test_dro_is_reinforce_minus_a_squared_log_ratio():
    case = random_case(P=4)
    batch = batch_of(dro(0.3), case)
    new_PGT = jnp.asarray(case.new_PGT, jnp.float32)
    plain = replace(dro(0.3), terms=(), surrogate=reinforce)

    def loss(x_PGT):
        penalty_PGT = 0.15 * jnp.square(x_PGT - batch.old_logprobs_PGT)
        penalty = jnp.sum(jnp.where(batch.rollouts.action_PGT, batch.weights_PGT * penalty_PGT, 0.0))
        return loss_of(plain, x_PGT, replace(batch, term_weights_PGT=())) + penalty

    expected_PGT = jax.grad(loss)(new_PGT)
    np.testing.assert_allclose(measure(dro(0.3), case)[1], expected_PGT, rtol=1e-4, atol=1e-6)


# Corrections, groups with equal rewards, coefficients and references.


def test_the_sampler_as_anchor_refuses_corrections_for_the_sampler_alone():
    for correction in (TokenTruncation(), TokenMask(), SequenceTruncation(), SequenceMask()):
        with pytest.raises(ValueError, match=rf"leave {type(correction).__name__}\(.* out of the corrections"):
            replace(dapo(), anchor="sampler", corrections=(OffPolicyMask(), correction))
    assert replace(dapo(), anchor="sampler", corrections=(OffPolicyMask(),)).corrections == (OffPolicyMask(),)


def test_a_correction_of_one_changes_nothing():
    case = random_case()
    same(replace(dapo(), corrections=(TokenTruncation(2.0),)), dapo(), replace(case, old_PGT=case.old_PGT))


def test_groups_with_equal_rewards_are_left_out_of_the_denominators():
    case = random_case(P=3)
    agreed = replace(case, rewards_PG=np.concatenate([np.full((1, 3), 0.5), case.rewards_PG[1:]]))
    alone = Case(*(array[1:] for array in vars(agreed).values()))
    advantages_PG = batch_of(verifiable(), alone).advantages
    padded_PG = jnp.concatenate([jnp.zeros((1, 3)), advantages_PG])
    with_PGT = measure(verifiable(), agreed, padded_PG)[1]
    np.testing.assert_allclose(with_PGT[1:], measure(verifiable(), alone, advantages_PG)[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(with_PGT[0], 0.0)


def test_a_coefficient_follows_its_target():
    kl = Proportional(target=0.1, initial=0.02)
    high, low = kl.follow(kl.begin(), jnp.float32(1.0)), kl.follow(kl.begin(), jnp.float32(0.0))
    np.testing.assert_allclose(high, 0.02 * (1 + 0.1 * 0.2), rtol=1e-6)
    np.testing.assert_allclose(low, 0.02 * (1 - 0.1 * 0.2), rtol=1e-6)
    adaptive = replace(dapo(), kl=KL(kl, k2))
    assert adaptive.needs_reference
    fixed = replace(dapo(), kl=KL(0.02, k2))
    case = random_case()
    same(adaptive, fixed, case)


def test_a_reference_that_moves_by_a_share_of_zero_is_refused():
    with pytest.raises(ValueError, match="share"):
        Reference(every=10, share=0.0)


# Where the gradient of masks goes, and the expected gradients that docs/objectives.md names.


@dataclass(frozen=True)
class EveryOther:
    """Keeps every other position."""

    def __call__(self, tokens: Tokens, key: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.arange(tokens.action_PGT.shape[2]) % 2 == 0, tokens.action_PGT.shape)


RATIO_OF_RESPONSES = {"gspo", "luspo", "real"}  # their ratio carries a gradient to every token of the response


@presets_but(*RATIO_OF_RESPONSES)
@pytest.mark.slow
def test_a_token_that_a_mask_leaves_out_does_not_move(objective):
    case = random_case()
    _, gradient_PGT = measure(replace(objective, masks=(EveryOther(),)), case)
    np.testing.assert_array_equal(gradient_PGT[:, :, 1::2], 0.0)


@pytest.mark.parametrize("name", sorted(RATIO_OF_RESPONSES))
def test_with_a_ratio_of_responses_a_token_that_a_mask_leaves_out_moves_as_much_as_the_others(name):
    case = random_case(spread=1e-5)  # nothing is clipped
    _, gradient_PGT = measure(replace(OBJECTIVES[name], masks=(EveryOther(),)), case)
    long = case.action_PGT[:, :, :2].all(axis=2)
    np.testing.assert_allclose(gradient_PGT[:, :, 1][long], gradient_PGT[:, :, 0][long], rtol=1e-5)
    assert np.any(gradient_PGT[:, :, 1] != 0)


@pytest.mark.parametrize("name", ["gspo", "luspo"])
def test_a_sequence_ratio_of_tokens_has_the_same_loss_and_does_not_move_what_a_mask_leaves_out(name):
    case = random_case()
    masked = replace(OBJECTIVES[name], masks=(EveryOther(),))
    by_token = replace(masked, ratio=sequence_token)
    (loss, _), (same, gradient_PGT) = measure(masked, case), measure(by_token, case)
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    np.testing.assert_array_equal(gradient_PGT[:, :, 1::2], 0.0)
    assert np.any(gradient_PGT != 0)


def loop_gmpo_of_kept(case: Case) -> float:
    """TRL's GMPO with a mask: the geometric mean over kept tokens; every response counts the same."""
    P, G, loss = *case.rewards_PG.shape, 0.0
    for p, g in np.ndindex(P, G):
        group = case.rewards_PG[p]
        A = (group[g] - group.mean()) / (group.std(ddof=1) + 1e-4)
        kept = [t for t in np.flatnonzero(case.action_PGT[p, g]) if t % 2 == 0]
        logs = [case.new_PGT[p, g, t] - case.old_PGT[p, g, t] for t in kept]
        logs = [min(x, 0.4) if A > 0 else max(x, -0.4) for x in logs]
        loss -= np.exp(sum(logs) / len(logs)) * A / (P * G)
    return loss


def test_gmpo_with_a_mask_is_the_mean_over_kept_tokens_as_in_trl():
    case = random_case()
    loss, gradient_PGT = measure(replace(gmpo(), masks=(EveryOther(),)), case)
    np.testing.assert_allclose(loss, loop_gmpo_of_kept(case), rtol=1e-5)
    np.testing.assert_allclose(gradient_PGT, slope_of(loop_gmpo_of_kept, case), rtol=1e-3, atol=1e-5)


def loop_dapo_by_group(case: Case) -> float:
    """DAPO as published: the expectation over prompts of a sum over the group's tokens, divided by their number."""
    return np.mean(
        [
            loop_dapo(replace(case, **{name: value[p : p + 1] for name, value in vars(case).items()}))
            for p in range(len(case.rewards_PG))
        ]
    )


def test_dapo_by_prompt_is_the_published_one_which_divides_by_the_tokens_of_the_group():
    case = random_case(P=3, G=4)
    loss, gradient_PGT = measure(replace(dapo(), weighting=prompt_mean), case)
    np.testing.assert_allclose(loss, loop_dapo_by_group(case), rtol=1e-4)
    np.testing.assert_allclose(gradient_PGT, slope_of(loop_dapo_by_group, case), rtol=1e-3, atol=1e-5)


def gradient_of_right(objective: Objective, p: float, G: int) -> float:
    """The expected gradient, by p, of a policy that is right with probability p: the sum over groups of G responses."""
    expected = 0.0
    for right in range(G + 1):
        rewards_PG = (np.arange(G) < right).astype(float)[None]
        case = Case(rewards_PG, np.ones((1, G, 1), bool), *(np.zeros((1, G, 1)),) * 4)
        _, slope_PGT = measure(objective, case)
        score_G = np.where(rewards_PG[0] > 0, 1 / p, -1 / (1 - p))  # of log pi, by p
        chance = math.comb(G, right) * p**right * (1 - p) ** (G - right)
        expected -= chance * float(np.asarray(slope_PGT[0, :, 0], np.float64) @ score_G)
    return expected


@pytest.mark.parametrize(("p", "G"), [(0.1, 4), (0.5, 4), (0.9, 2)])
@pytest.mark.slow
def test_the_gradients_of_dr_grpo_maxrl_and_rloo_are_those_that_the_docs_name(p, G):
    np.testing.assert_allclose(gradient_of_right(dr_grpo(length=1), p, G), (G - 1) / G, rtol=1e-5)
    np.testing.assert_allclose(gradient_of_right(rloo(kl=0.0), p, G), 1.0, rtol=1e-5)
    terms = [(1 - p) ** (k - 1) for k in range(1, G)]  # the derivative of -(1 - p)^k / k
    np.testing.assert_allclose(gradient_of_right(maxrl(), p, G), sum(terms), rtol=1e-4)


def test_a_truncated_response_beats_a_wrong_one_where_wrong_ones_earn_less_than_zero():
    rewards_PG, ended_PG = np.array([[1.0, -1.0]]), np.array([[False, True]])
    case = Case(rewards_PG, np.ones((1, 2, 1), bool), *(np.zeros((1, 2, 1)),) * 4)
    batch = batch_of(verifiable(), case, ended_PG=ended_PG)
    assert batch.advantages[0, 0] > 0 > batch.advantages[0, 1]
    shifted = batch_of(verifiable(), replace(case, rewards_PG=rewards_PG + 1), ended_PG=ended_PG)
    np.testing.assert_array_equal(shifted.advantages, 0.0)


@pytest.mark.parametrize("make", [TokenTruncation, TokenMask, SequenceTruncation, SequenceMask])
@pytest.mark.slow
def test_an_infinite_upper_bound_of_a_weight_is_no_bound(make):
    assert make(low=0.5, high=math.inf).high == math.inf
    for high in (0.5, -math.inf, math.nan):
        with pytest.raises(ValueError, match=r"must be above 0\.5 \(\.inf is no bound\)"):
            make(low=0.5, high=high)
