"""The presets against loops written from their papers, KL gradients by enumeration, and what must move nothing."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.objectives import (
    KL,
    FixedLength,
    Objective,
    dapo,
    dr_grpo,
    grpo,
    gspo,
    k1,
    k2,
    k3,
    reinforce,
    rloo,
    sequence_mean,
    sequence_product,
    sequence_sum,
    token_mean,
)
from grpo_jax.structs import Batch, Prompts, Rollouts

PRESETS = {
    "grpo": grpo(),
    "grpo without kl": grpo(kl=0.0),
    "grpo with kl in the reward": grpo(kl_place="reward"),
    "dr_grpo": dr_grpo(16),
    "dapo": dapo(),
    "dapo with a cap": dapo(cap=3.0),
    "gspo": gspo(),
    "rloo": rloo(),
}
every_preset = pytest.mark.parametrize("objective", PRESETS.values(), ids=PRESETS.keys())


@dataclass(frozen=True)
class Case:
    """Random log-probs of the policy, of the one that sampled and of the reference, with rewards."""

    rewards_PG: np.ndarray
    action_PGT: np.ndarray
    new_PGT: np.ndarray
    old_PGT: np.ndarray
    ref_PGT: np.ndarray


def random_case(seed: int = 0, P: int = 2, G: int = 3, T: int = 6, spread: float = 0.3) -> Case:
    """Responses of every length from one to T, one of them with a gap, and ratios on both sides of the clip."""
    draw = np.random.default_rng(seed)
    lengths_PG = draw.permutation(np.arange(P * G) % T + 1).reshape(P, G)
    action_PGT = np.arange(T) < lengths_PG[..., None]
    action_PGT[np.where(lengths_PG == T)[0], np.where(lengths_PG == T)[1], 2] = False
    new_PGT = -draw.exponential(1.5, (P, G, T))
    old_PGT, ref_PGT = (new_PGT + draw.normal(0, spread, new_PGT.shape) for _ in range(2))
    return Case(draw.integers(0, 9, (P, G)) / 8, action_PGT, new_PGT, old_PGT, ref_PGT)


def batch_of(objective: Objective, case: Case, advantages: jax.Array | None = None) -> Batch:
    action_PGT = jnp.asarray(case.action_PGT)
    nothing_PGT = jnp.zeros(action_PGT.shape)
    prompts = Prompts(jnp.zeros((len(action_PGT), 1), jnp.int32), jnp.ones((len(action_PGT), 1), bool))
    tokens_PGT, ended_PG = nothing_PGT.astype(jnp.int32), action_PGT[..., -1]
    rollouts = Rollouts(prompts, tokens_PGT, action_PGT, action_PGT, nothing_PGT, nothing_PGT, ended_PG, 1.0)
    if advantages is None:
        advantages = objective.advantage(jnp.asarray(case.rewards_PG, jnp.float32))
    old_PGT, ref_PGT = (jnp.asarray(array, jnp.float32) for array in (case.old_PGT, case.ref_PGT))
    return Batch(rollouts, advantages, objective.weighting(action_PGT), old_PGT, ref_PGT)


def measure(objective: Objective, case: Case, advantages: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient by the log-probs."""
    batch = batch_of(objective, case, advantages)
    return jax.value_and_grad(lambda new_PGT: objective(new_PGT, batch)[0])(jnp.asarray(case.new_PGT, jnp.float32))


# The presets, written again as loops in float64, one response and one token at a time.


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
    for place in np.ndindex(slope_PGT.shape):
        nudge_PGT = np.zeros(slope_PGT.shape)
        nudge_PGT[place] = step
        above, below = (loop(replace(case, new_PGT=case.new_PGT + sign * nudge_PGT)) for sign in (1, -1))
        slope_PGT[place] = (above - below) / (2 * step)
    return slope_PGT


LOOPS = [
    ("grpo, k3 in the loss", grpo(), loop_grpo),
    ("grpo, k2 in the loss", grpo(kl_estimator="k2"), lambda case: loop_grpo(case, "k2")),
    ("grpo, k1 in the loss", grpo(kl_estimator="k1"), lambda case: loop_grpo(case, "k1")),
    ("grpo, k1 in the reward", grpo(kl_estimator="k1", kl_place="reward"), lambda case: loop_grpo(case, None)),
    ("grpo without kl", grpo(kl=0.0), lambda case: loop_grpo(case, None)),
    ("dr_grpo", dr_grpo(16), loop_dr_grpo),
    ("dapo", dapo(), loop_dapo),
    ("dapo with a cap", dapo(cap=1.5), lambda case: loop_dapo(case, 1.5)),
    ("gspo", gspo(), loop_gspo),
    ("rloo", rloo(), loop_rloo),
]


@pytest.mark.parametrize(("objective", "loop"), [pytest.param(*rest, id=name) for name, *rest in LOOPS])
@pytest.mark.parametrize("spread", [0.0001, 0.3, 1.0])
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
    case = Case(np.zeros((1, 4)), np.ones((1, 4, 1), bool), log_reference_PGT, log_reference_PGT, log_reference_PGT)
    weights_PGT = jnp.asarray(POLICY, jnp.float32)[None, :, None]
    batch = replace(batch_of(objective, case, advantages_PG), weights_PGT=weights_PGT, old_logprobs_PGT=None)

    def loss(logits):
        return objective(jax.nn.log_softmax(logits)[None, :, None], batch)[0]

    return jax.grad(loss)(jnp.log(jnp.asarray(POLICY, jnp.float32)))


def test_the_enumerated_gradients_are_the_published_ones():
    np.testing.assert_allclose(REVERSE, [0.3719, -0.0153, -0.1724, -0.1843], atol=1e-4)  # sum p (log p/q) (1[v] - p)
    np.testing.assert_allclose(FORWARD, [0.3, 0.1, -0.1, -0.3], atol=1e-9)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        pytest.param(KL(1.0, k1), np.zeros(4), id="k1 pulls nowhere"),
        pytest.param(KL(1.0, k2), REVERSE, id="k2 pulls as the reverse KL"),
        pytest.param(KL(1.0, k3), FORWARD, id="k3 pulls as the forward KL"),
        pytest.param(KL(1.0, k1, corrected=True), REVERSE, id="k1 times the ratio pulls as the reverse KL"),
        pytest.param(KL(1.0, k3, corrected=True), REVERSE, id="k3 times the ratio pulls as the reverse KL"),
    ],
)
def test_the_gradient_of_a_kl_term_in_the_loss(kl, expected):
    gradient = expected_gradient(replace(grpo(), kl=kl), jnp.zeros((1, 4)))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_k1_taken_off_the_reward_pulls_as_the_reverse_kl():
    rewards_PG = -jnp.asarray(LOG_RATIO, jnp.float32)[None]
    np.testing.assert_allclose(expected_gradient(rloo(kl=0.0), rewards_PG), REVERSE, atol=1e-6)


@pytest.mark.parametrize("objective", [grpo(kl=0.0), dr_grpo(16), dapo(), gspo()])
def test_on_policy_every_surrogate_has_the_gradient_of_reinforce(objective):
    case = random_case()
    batch = replace(batch_of(objective, case), old_logprobs_PGT=None)
    plain = replace(objective, surrogate=reinforce)
    new_PGT = jnp.asarray(case.new_PGT, jnp.float32)
    ours_PGT, theirs_PGT = (jax.grad(lambda x, o=o: o(x, batch)[0])(new_PGT) for o in (objective, plain))
    np.testing.assert_allclose(ours_PGT, theirs_PGT, atol=1e-6)


# What must move nothing.


def garbled(case: Case) -> Case:
    """Other numbers wherever the policy chose nothing."""
    draw = np.random.default_rng(1)
    arrays = {"new_PGT": case.new_PGT, "old_PGT": case.old_PGT, "ref_PGT": case.ref_PGT}
    noisy = {name: np.where(case.action_PGT, a, draw.normal(0, 100, a.shape)) for name, a in arrays.items()}
    return replace(case, **noisy)


@every_preset
def test_numbers_where_there_is_no_action_move_nothing(objective):
    case = random_case()
    loss, gradient_PGT = measure(objective, case)
    garbled_loss, garbled_gradient_PGT = measure(objective, garbled(case))
    assert loss == garbled_loss
    np.testing.assert_array_equal(gradient_PGT, garbled_gradient_PGT)
    np.testing.assert_array_equal(gradient_PGT[~case.action_PGT], 0.0)


@every_preset
def test_padding_moves_nothing(objective):
    case = random_case()
    wider = ((0, 0), (0, 0), (0, 5))
    padded = {name: np.pad(getattr(case, name), wider) for name in ("action_PGT", "new_PGT", "old_PGT", "ref_PGT")}
    loss, gradient_PGT = measure(objective, case)
    padded_loss, padded_gradient_PGT = measure(objective, replace(case, **padded))
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(padded_gradient_PGT, np.pad(gradient_PGT, wider), rtol=1e-5, atol=1e-7)


@every_preset
def test_permuting_prompts_and_responses_permutes_the_gradient(objective):
    case = random_case(P=3)
    place = np.ix_([2, 0, 1], [1, 2, 0])
    permuted = replace(case, **{name: array[place] for name, array in vars(case).items()})
    loss, gradient_PGT = measure(objective, case)
    permuted_loss, permuted_gradient_PGT = measure(objective, permuted)
    np.testing.assert_allclose(permuted_loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(permuted_gradient_PGT, gradient_PGT[place], rtol=1e-5, atol=1e-7)


@every_preset
def test_a_constant_added_to_the_rewards_of_a_group_moves_nothing(objective):
    case = random_case()
    shifted = replace(case, rewards_PG=case.rewards_PG + np.array([[4.0], [-2.0]]))
    for ours, theirs in zip(measure(objective, case), measure(objective, shifted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [grpo(kl=0.0), dr_grpo(16), dapo(), gspo(), rloo()])
def test_a_group_that_agrees_has_exactly_no_gradient(objective):
    case = random_case()
    agreed = replace(case, rewards_PG=np.stack([np.full(3, 0.5), case.rewards_PG[1]]))
    gradient_PGT = measure(objective, agreed)[1]
    np.testing.assert_array_equal(gradient_PGT[0], 0.0)
    assert np.abs(gradient_PGT[1]).max() > 0


@every_preset
def test_advantages_of_tokens_may_be_those_of_their_response(objective):
    case = random_case()
    advantages_PG = objective.advantage(jnp.asarray(case.rewards_PG, jnp.float32))
    advantages_PGT = jnp.broadcast_to(advantages_PG[..., None], case.action_PGT.shape)
    for ours, theirs in zip(measure(objective, case), measure(objective, case, advantages_PGT), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@every_preset
def test_losses_gradients_and_statistics_of_parts_add_up(objective):
    case = random_case(P=4)
    batch, new_PGT = batch_of(objective, case), jnp.asarray(case.new_PGT, jnp.float32)
    whole = jax.value_and_grad(objective, has_aux=True)
    (loss, sums), gradient_PGT = whole(new_PGT, batch)
    halves = [jax.tree.map(lambda a, half=half: a[half::2], (new_PGT, batch)) for half in (0, 1)]
    parts = [whole(*half) for half in halves]
    added = jax.tree.map(jnp.add, parts[0][0], parts[1][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), added, (loss, sums))
    for half, (_, part_PGT) in enumerate(parts):
        np.testing.assert_allclose(part_PGT, gradient_PGT[half::2], rtol=1e-6)


@every_preset
@pytest.mark.parametrize("log_ratio", [-80.0, -10.0, 10.0, 80.0])
def test_gradients_are_finite_however_far_the_policy_has_moved(objective, log_ratio):
    case = random_case()
    moved = replace(case, old_PGT=case.new_PGT - log_ratio, ref_PGT=case.new_PGT - log_ratio)
    for array in measure(objective, moved):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("each", [-1.0, 1.0])
def test_gradients_are_finite_though_the_ratio_of_a_long_response_is_not(each):
    case = random_case(T=200)
    drifted = replace(case, action_PGT=np.ones((2, 3, 200), bool), old_PGT=case.new_PGT - each)  # exp(200) overflows
    for array in measure(replace(dapo(), ratio=sequence_product), drifted):
        assert np.isfinite(array).all()


@every_preset
def test_an_empty_response_has_no_gradient_and_spoils_no_other(objective):
    case = random_case()
    emptied_PGT = case.action_PGT.copy()
    emptied_PGT[0, 1] = False
    loss, gradient_PGT = measure(objective, replace(case, action_PGT=emptied_PGT))
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradient_PGT[0, 1], 0.0)
    assert np.isfinite(gradient_PGT).all()


@every_preset
def test_a_batch_without_any_action_has_no_loss_and_no_gradient(objective):
    case = replace(random_case(), action_PGT=np.zeros((2, 3, 6), bool))
    for array in measure(objective, case):
        np.testing.assert_array_equal(array, jnp.zeros_like(array))


@pytest.mark.parametrize("objective", [grpo(kl=0.0), dr_grpo(16), dapo(), gspo(), rloo()])
def test_groups_of_one_have_no_gradient(objective):
    gradient_PGT = measure(objective, random_case(P=4, G=1))[1]
    np.testing.assert_array_equal(gradient_PGT, jnp.zeros((4, 1, 6)))


# Weightings.


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean])
def test_weights_of_a_batch_add_up_to_one(weighting):
    weights_PGT = weighting(jnp.asarray(random_case(P=5).action_PGT))
    np.testing.assert_allclose(weights_PGT.sum(), 1.0, rtol=1e-6)


def test_weights_are_those_worked_out_by_hand():
    action_PGT = jnp.array(
        [[[True, True, False, False], [True, True, True, True]], [[False] * 4, [True, False, True, False]]]
    )
    lengths_PG1 = np.array([[[2], [4]], [[1], [2]]])  # the empty response still counts as one of the four
    np.testing.assert_allclose(sequence_mean(action_PGT), action_PGT / lengths_PG1 / 4)
    np.testing.assert_allclose(token_mean(action_PGT), action_PGT / 8)
    np.testing.assert_allclose(sequence_sum(action_PGT), action_PGT / 4)
    np.testing.assert_allclose(FixedLength(10)(action_PGT), action_PGT / 40)


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum, FixedLength(10)])
def test_an_empty_batch_has_no_weights(weighting):
    np.testing.assert_array_equal(weighting(jnp.zeros((2, 3, 4), bool)), jnp.zeros((2, 3, 4)))


# What an objective asks for.


def test_only_a_kl_term_that_counts_needs_a_reference():
    assert grpo().needs_reference
    assert rloo().needs_reference
    assert not any(objective.needs_reference for objective in (grpo(kl=0.0), rloo(kl=0.0), dr_grpo(16), dapo(), gspo()))


def test_a_kl_term_of_weight_zero_is_no_term():
    case, weightless = random_case(), replace(grpo(), kl=KL(0.0, k3))
    batch = replace(batch_of(weightless, case), ref_logprobs_PGT=None)
    assert weightless(jnp.asarray(case.new_PGT, jnp.float32), batch)[0] == measure(grpo(kl=0.0), case)[0]


def test_clipped_tokens_are_counted_by_the_sign_of_their_advantage():
    case = random_case(P=3, G=4, T=8, spread=0.5)
    sums = dapo()(jnp.asarray(case.new_PGT, jnp.float32), batch_of(dapo(), case))[1]
    ratio_PGT = np.exp(case.new_PGT - case.old_PGT)
    advantages_PG1 = (case.rewards_PG - case.rewards_PG.mean(axis=1, keepdims=True))[..., None]
    low = np.sum(case.action_PGT & (ratio_PGT < 0.8) & (advantages_PG1 < 0))
    high = np.sum(case.action_PGT & (ratio_PGT > 1.28) & (advantages_PG1 > 0))
    assert low > 0
    assert high > 0
    assert (sums["clip_ratio/low_mean"], sums["clip_ratio/high_mean"]) == (low, high)
    assert sums["clip_ratio/region_mean"] == low + high
