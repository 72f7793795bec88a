"""Several steps in a row: what moves between them, teachers and greedy baselines, users' own parts, cut batches."""

import textwrap
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from test_metrics_page import unexplained

from grpo_jax import objectives
from grpo_jax.algorithm import Algorithm
from grpo_jax.config import ConfigError, read, render
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.grpo import init, prepare, sample, score, step, update
from grpo_jax.learner import microbatches as cutting
from grpo_jax.learner import update as learning
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import tiny
from grpo_jax.objectives import Objective
from grpo_jax.objectives.coefficients import Proportional, Stepwise
from grpo_jax.objectives.corrections import TopEntropy
from grpo_jax.objectives.kl import KL, Reference, k2
from grpo_jax.objectives.terms import Term, entropy
from grpo_jax.objectives.weightings import token_mean
from grpo_jax.optimizers import adamw
from grpo_jax.rewards import Mix
from grpo_jax.rollout import Sampler
from grpo_jax.scoring import Rewards
from grpo_jax.structs import Prompts, Rollouts, Scored, Tokens, TrainState
from grpo_jax.tasks import Example
from grpo_jax.training.checkpoint import Checkpoints, Keep

ONE = Layout().mesh(jax.devices()[:1])
MODEL = tiny(remat="none")
PARAMS = MODEL.params(ONE)
TEXTS = ["a", "What is 2 + 2?", "Name three colours.", "Hi"]
EXAMPLES = [Example(text, "e") for text in TEXTS]
PROMPTS = MODEL.tokenizer.encode_all(TEXTS, max_tokens=64)
ENDS = (10, 32, 101, 256)
SAMPLER = Sampler(ENDS, responses=4, max_tokens=12)
# Plain descent shows the gradient itself in the change of the parameters.
DESCENT = optax.sgd(1.0)


def share_of_vowels(example: Example, response: str) -> float:
    return sum(letter in "aeiou" for letter in response) / max(len(response), 1)


def build(**changes) -> Algorithm:
    settings = {
        "policy": MODEL.policy,
        "sample": SAMPLER,
        "decode": MODEL.tokenizer.decode,
        "reward": share_of_vowels,
        "objective": objectives.verifiable(),
        "optimizer": DESCENT,
    }
    return Algorithm(**(settings | changes))


def fresh(algorithm: Algorithm, params=PARAMS) -> TrainState:
    return init(algorithm, jax.tree.map(jnp.copy, params))


def host(params):
    """A copy that outlives the donated state."""
    return jax.tree.map(np.array, params)


def assert_same(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), one, other)


def largest_change(one, other) -> float:
    return max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return SAMPLER(MODEL.policy, PARAMS, PROMPTS, jax.random.key(0))


REWARDS_PGR = np.random.default_rng(0).uniform(size=(4, 4, 1)).astype(np.float32)


def again(algorithm: Algorithm, state: TrainState, rollouts: Rollouts) -> tuple[TrainState, dict]:
    """One more update on the same answers."""
    batch = prepare(algorithm, state, rollouts, Rewards(REWARDS_PGR), jax.random.key(0))
    return update(algorithm, state, batch)


@pytest.mark.parametrize("objective", [objectives.dapo(), objectives.rloo(kl=0.0)], ids=["recomputed", "current"])
@pytest.mark.slow
def test_what_later_minibatches_have_moved_is_no_mismatch_of_the_sampler(rollouts, objective):
    algorithm = build(objective=objective, minibatches=2, optimizer=adamw(1e-2, warmup_steps=1))
    state, metrics = again(algorithm, fresh(algorithm), rollouts)
    assert largest_change(host(state.params), host(PARAMS)) > 1e-3
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-3
    assert metrics["sampling/effective_sample_size"] > 0.999


# What moves between steps.


def held(reference: Reference, coefficient=0.1) -> Objective:
    """A pull to a reference policy, k2 in the loss."""
    return replace(objectives.dapo(), kl=KL(coefficient, k2, reference=reference))


@pytest.mark.parametrize("reference", [Reference(), Reference(2), Reference(1, 0.25), Reference(2, 0.5)], ids=str)
@pytest.mark.slow
def test_a_reference_is_what_its_setting_makes_of_the_parameters_so_far(reference, rollouts):
    algorithm = build(objective=held(reference))
    state, expected = fresh(algorithm), host(PARAMS)
    for index in range(1, 5):
        state, _ = again(algorithm, state, rollouts)
        if reference.every and index % reference.every == 0:
            params, share = host(state.params), reference.share
            expected = jax.tree.map(lambda old, new, share=share: (1 - share) * old + share * new, expected, params)
        assert_same(host(state.reference), expected)
    assert largest_change(host(state.params), host(PARAMS)) > 1e-3


@pytest.mark.slow
def test_the_kl_is_measured_from_the_reference_of_the_moment(rollouts):
    """It is zero at the first step and after each reset, and only then."""
    measured = {}
    for reference in (Reference(), Reference(2)):
        algorithm = build(objective=held(reference))
        state, measured[reference.every] = fresh(algorithm), []
        for _ in range(4):
            state, metrics = again(algorithm, state, rollouts)
            measured[reference.every].append(float(metrics["kl"]))
    assert [kl > 1e-6 for kl in measured[0]] == [False, True, True, True]
    assert [kl > 1e-6 for kl in measured[2]] == [False, True, False, True]
    assert measured[0][:2] == pytest.approx(measured[2][:2])


ADAPTIVE = held(Reference(), Proportional(target=1e-3, initial=0.02, gain=0.5))


@pytest.mark.slow
def test_an_adaptive_coefficient_follows_the_measured_kl(rollouts):
    """From 0.02, by 0.5 x clip(kl / target - 1, -0.2, 0.2) each step, and the metrics say what a step used."""
    algorithm, expected, moves = build(objective=ADAPTIVE), 0.02, []
    state = fresh(algorithm)
    np.testing.assert_allclose(state.coefficients["kl"], expected)
    for _ in range(4):
        state, metrics = again(algorithm, state, rollouts)
        assert float(metrics["coefficient/kl"]) == pytest.approx(expected, rel=1e-5)
        assert unexplained([metrics]) == []
        moves.append(0.5 * np.clip(float(metrics["kl"]) / 1e-3 - 1, -0.2, 0.2))
        expected *= 1 + moves[-1]
        np.testing.assert_allclose(state.coefficients["kl"], expected, rtol=1e-5)
    assert min(moves) < 0 < max(moves)


@pytest.mark.slow
def test_a_coefficient_that_follows_what_nobody_measures_is_refused(rollouts):
    algorithm = build(objective=held(Reference(), Proportional(target=1.0, watches="temper")))
    with pytest.raises(ValueError, match=r"The coefficient of kl watches temper; measured are .*reward"):
        again(algorithm, fresh(algorithm), rollouts)


@pytest.mark.parametrize("target", [0.0, 9.0])
@pytest.mark.slow
def test_a_coefficient_may_follow_the_entropy_of_all_answers(rollouts, target):
    bonus = Term(Stepwise(target, initial=0.1, change=0.01), entropy, token_mean)
    algorithm = build(objective=replace(objectives.dapo(), terms=(bonus,)))
    state, metrics = again(algorithm, fresh(algorithm), rollouts)
    expected = float(rollouts.entropy_PGT[rollouts.action_PGT].mean())
    assert metrics["entropy"] == pytest.approx(expected, rel=1e-5)
    expected = (0.11, 0.11) if target else (0.09, 0.0)
    np.testing.assert_allclose(state.coefficients["term 1"], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_coefficient_in_effect_is_the_one_in_the_state(rollouts):
    """An update with 0.3 in the state is the one of a fixed coefficient of 0.3."""
    changes = []
    for objective in (ADAPTIVE, held(Reference(), 0.3)):
        algorithm = build(objective=objective)
        away = jax.tree.map(lambda a: a * 1.05, PARAMS)
        state = replace(fresh(algorithm), reference=away)
        if state.coefficients:
            state = replace(state, coefficients={"kl": jnp.full(2, 0.3)})
        state, _ = again(algorithm, state, rollouts)
        changes.append(jax.tree.map(np.subtract, host(state.params), host(PARAMS)))
    assert_same(*changes)
    assert largest_change(changes[0], jax.tree.map(np.zeros_like, changes[0])) > 1e-3


@pytest.mark.slow
def test_coefficients_and_references_survive_a_checkpoint(rollouts, tmp_path):
    algorithm = build(objective=ADAPTIVE)
    away = jax.tree.map(lambda a: np.asarray(a) * 1.05, PARAMS)
    state = replace(fresh(algorithm), reference=jax.tree.map(jnp.array, away))
    for _ in range(2):
        state, _ = again(algorithm, state, rollouts)
    checkpoints = Checkpoints(tmp_path, Keep(1))
    checkpoints.save(2, state)
    checkpoints.wait()
    restored = checkpoints.restore(2, fresh(algorithm))
    checkpoints.close()
    assert float(restored.coefficients["kl"][0]) != pytest.approx(0.02)
    jax.tree.map(np.testing.assert_array_equal, host(restored.reference), away)
    ends = [host(again(algorithm, each, rollouts)[0]) for each in (state, restored)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


# Teachers.


@pytest.mark.slow
def test_distillation_brings_the_policy_closer_to_its_teacher():
    """The sampled reverse KL, of the policy's own answers, falls to less than half."""
    teacher = tiny(seed=1, remat="none")
    taught = teacher.policy, teacher.params(ONE)
    algorithm = build(
        sample=Sampler(MODEL.tokenizer.end_ids, responses=16, max_tokens=6),
        objective=objectives.distillation(),
        optimizer=adamw(1e-2, warmup_steps=1),
        teacher=taught,
    )
    logprobs = jax.jit(token_logprobs, static_argnums=0)
    state, divergences = fresh(algorithm), []
    for index in range(20):
        key = jax.random.fold_in(jax.random.key(0), index)
        rollouts = sample(algorithm, state, PROMPTS, EXAMPLES, key)
        ahead_PGT = np.asarray(rollouts.logprobs_PGT - logprobs(*taught, rollouts)[0])
        divergences.append(ahead_PGT[np.asarray(rollouts.action_PGT)].mean())
        batch = prepare(algorithm, state, rollouts, score(algorithm, rollouts, EXAMPLES), key)
        state, metrics = update(algorithm, state, batch)
        np.testing.assert_allclose(metrics["teacher_kl"], divergences[-1], rtol=1e-2, atol=1e-3)
    assert unexplained([metrics]) == []
    assert np.mean(divergences[:2]) > 0.02
    assert np.mean(divergences[-4:]) < np.mean(divergences[:2]) / 2


def test_a_policy_that_is_its_teacher_does_not_move(rollouts):
    algorithm = build(objective=objectives.distillation(), teacher=(MODEL.policy, PARAMS))
    state, _ = again(algorithm, fresh(algorithm), rollouts)
    assert largest_change(host(state.params), host(PARAMS)) < 1e-6


def test_a_loss_that_compares_the_responses_of_a_group_refuses_parts_of_it(rollouts):
    algorithm = build(objective=objectives.real(), responses_at_once=2)
    with pytest.raises(ValueError, match="responses_at_once must be at least the 4 responses of a group; got 2"):
        again(algorithm, fresh(algorithm), rollouts)


def test_distillation_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="follows a teacher: give the algorithm its policy and params"):
        build(objective=objectives.distillation())


# Greedy baselines.


def greedy_answers(prompts: Prompts, T: int) -> list[str]:
    """The likeliest token, T times or until an end, by reading everything again for each."""
    prompts = jax.tree.map(jnp.asarray, prompts)
    tokens_P1T = np.zeros((len(prompts.tokens_PL), 1, T), np.int32)
    all_P1T = jnp.ones(tokens_P1T.shape, bool)
    for t in range(T):
        last_PD, hidden_P1TD = MODEL.policy.respond(PARAMS, prompts, jnp.asarray(tokens_P1T), all_P1T)
        hidden_PD = hidden_P1TD[:, 0, t - 1] if t else last_PD
        tokens_P1T[:, 0, t] = np.argmax(MODEL.policy.unembed(PARAMS, hidden_PD[:, None]), axis=-1)[:, 0]
    texts = []
    for ids in tokens_P1T[:, 0].tolist():
        end = next((place for place, token in enumerate(ids) if token in ENDS), T - 1)
        texts.append(MODEL.tokenizer.decode(ids[: end + 1]))
    return texts


def checksum(example: Example, response: str) -> float:
    """A number in which any two answers are likely to differ."""
    return sum(place * ord(letter) for place, letter in enumerate(response, start=1)) % 101 / 101


@pytest.mark.slow
def test_the_greedy_baseline_is_the_reward_of_the_likeliest_answer():
    algorithm = build(
        reward=checksum,
        objective=objectives.remax(),
    )
    state = fresh(algorithm)
    rollouts = sample(algorithm, state, PROMPTS, EXAMPLES, jax.random.key(0))
    rewards = score(algorithm, rollouts, EXAMPLES)
    expected_P = [checksum(EXAMPLES[0], text) for text in greedy_answers(PROMPTS, T=12)]
    assert len(set(expected_P)) > 1
    np.testing.assert_allclose(rewards.greedy_P1R[:, 0, 0], expected_P, rtol=1e-6)
    batch = prepare(algorithm, state, rollouts, rewards, jax.random.key(0))
    expected_PG = rewards.parts_PGR[:, :, 0] - np.array(expected_P)[:, None]
    np.testing.assert_allclose(batch.advantages, expected_PG, rtol=1e-5, atol=1e-6)


def test_a_greedy_baseline_without_a_greedy_sampler_is_refused():
    with pytest.raises(ValueError, match="compares with greedy answers, which this engine cannot give"):
        build(objective=objectives.remax(), sample=lambda *inputs: SAMPLER(*inputs))


# Parts that users write.


def halved(tokens: Tokens) -> Array:
    """Half of the plain policy gradient."""
    return 0.5 * tokens.advantages_PGT * tokens.logprobs_PGT


def above_a_half(scored: Scored) -> Array:
    return jnp.sign(scored.rewards_PG - 0.5)


@dataclass
class FirstTokens:
    """The first tokens of each response. It has no hash, as most classes that people write."""

    number: int = 2

    def __call__(self, tokens: Tokens, key: Array) -> Array:
        return tokens.action_PGT & (jnp.arange(tokens.action_PGT.shape[2])[None, None] < self.number)


@pytest.mark.slow
def test_parts_that_users_write_train():
    objective = replace(
        objectives.verifiable(), surrogate=halved, advantage=above_a_half, masks=(FirstTokens(3),), select=()
    )
    algorithm = build(objective=objective, optimizer=adamw(1e-3, warmup_steps=1))
    state = fresh(algorithm)
    for index in range(3):
        before = host(state.params)
        state, metrics = step(algorithm, state, PROMPTS, EXAMPLES, jax.random.key(index))
        assert np.isfinite([float(value) for value in metrics.values()]).all()
        assert largest_change(host(state.params), before) > 1e-4


@pytest.mark.slow
def test_the_gradient_of_users_parts_is_the_one_of_their_formula(rollouts):
    """d/dparams of the mean over tokens of 0.5 A log pi for the first two tokens of each response, A = +1 or -1."""
    objective = replace(objectives.dapo(), surrogate=halved, advantage=above_a_half, masks=(FirstTokens(),))
    algorithm = build(objective=objective)
    state, _ = again(algorithm, fresh(algorithm), rollouts)
    weights_PGT = np.where(REWARDS_PGR > 0.5, 1.0, -1.0) * 0.5 * rollouts.action_PGT / rollouts.action_PGT.sum()
    weights_PGT = jnp.asarray(weights_PGT, jnp.float32) * (np.arange(12) < 2)[None, None]

    def gain(params, rollouts) -> Array:
        return jnp.sum(weights_PGT * token_logprobs(MODEL.policy, params, rollouts)[0])

    expected = jax.jit(jax.grad(gain))(PARAMS, rollouts)
    found = jax.tree.map(np.subtract, host(state.params), host(PARAMS))
    assert_same(found, host(expected), atol=2e-6)
    assert largest_change(found, jax.tree.map(np.zeros_like, found)) > 1e-3


MINE = """
from dataclasses import dataclass

import jax.numpy as jnp


def weighted(tokens, by: float = 1.0):
    return by * tokens.advantages_PGT * tokens.logprobs_PGT


def above_a_half(scored):
    return jnp.sign(scored.rewards_PG - 0.5)


@dataclass(frozen=True)
class FirstTokens:
    number: int = 2

    def __call__(self, tokens, key):
        return tokens.action_PGT & (jnp.arange(tokens.action_PGT.shape[2])[None, None] < self.number)


def everywhere(tokens, key):
    return tokens.action_PGT
"""
CONFIG = """
task: {use: arithmetic}
train: {steps: 1}
objective:
  use: verifiable
  clip_low: 0.1
  advantage: MODULE:above_a_half
  surrogate: {use: "MODULE:weighted", by: 0.5}
  select: []
  masks:
    - {use: "MODULE:FirstTokens", number: 3}
    - MODULE:everywhere
    - {use: TopEntropy, share: 0.9}
"""


@pytest.fixture
def config(tmp_path, monkeypatch, request):
    """A config of an objective whose parts are in a module of a user's package."""
    package = f"package_{request.node.name.partition('[')[0]}"  # modules stay imported, so that each test needs its own
    (tmp_path / package).mkdir()
    (tmp_path / package / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "some.yaml"
    path.write_text(textwrap.dedent(CONFIG).replace("MODULE", f"{package}.mine"))
    return path


def test_a_config_names_parts_that_users_write(config, rollouts):
    objective = read(config).objective.build()
    assert objective.advantage.__name__ == "above_a_half"
    assert [type(objective.masks[0]).__name__, objective.masks[0].number] == ["FirstTokens", 3]
    assert objective.masks[1].__name__ == "everywhere"
    assert objective.masks[2] == TopEntropy(0.9)
    assert objective.select == ()
    kept = objectives.verifiable(clip_low=0.1)
    assert (objective.weighting, objective.shaping, objective.corrections) == (
        kept.weighting,
        kept.shaping,
        kept.corrections,
    )
    by_hand = replace(
        kept,
        surrogate=halved,
        advantage=above_a_half,
        select=(),
        masks=(FirstTokens(3), lambda tokens, key: tokens.action_PGT, TopEntropy(0.9)),
    )
    states = [again(each, fresh(each), rollouts)[0] for each in (build(objective=o) for o in (objective, by_hand))]
    jax.tree.map(np.testing.assert_array_equal, *(host(state.params) for state in states))
    assert largest_change(host(states[0].params), host(PARAMS)) > 1e-3


def test_a_config_with_parts_of_users_is_rendered_as_one_that_reads_the_same(config):
    rendered = config.with_name("rendered.yaml")
    rendered.write_text(render(read(config)))
    assert read(rendered) == read(config)


def test_parts_of_users_are_laid_over_a_base_and_overridden_like_other_keys(config):
    other = config.with_name("other.yaml")
    other.write_text("base: some.yaml\nobjective:\n  masks: [TopEntropy]\n")
    objective = read(other, ["objective.surrogate=reinforce", "objective.clip_low=0.3"]).objective.build()
    assert objective.masks == (TopEntropy(),)
    assert objective.surrogate.__name__ == "reinforce"
    assert objective.advantage.__name__ == "above_a_half"


@pytest.mark.parametrize(
    ("there", "instead", "words"),
    [
        ("mine:above_a_half", "mine:above_a_haf", r"7:14: objective.advantage.*has no above_a_haf, did you mean"),
        ("number: 3", "numbr: 3", r"11:.*objective.masks\[0\].numbr: unknown key, did you mean .*number"),
        ("number: 3", "number: three", r"objective.masks\[0\].number: expected int, got 'three'"),
        ("TopEntropy", "TopEntrpy", r"objective.masks\[2\].use: unknown name TopEntrpy, did you mean TopEntropy"),
        ("by: 0.5", "bye: 0.5", r"objective.surrogate.bye: unknown key, did you mean objective.surrogate.by"),
    ],
)
def test_a_mistake_in_a_part_is_reported_where_it_is(config, there, instead, words):
    config.write_text(config.read_text().replace(there, instead))
    with pytest.raises(ConfigError, match=words):
        read(config)


# Batches that are cut.

CUT = {
    "verifiable": objectives.verifiable(),
    "clip_cov": objectives.clip_cov(share=0.3, low=0.0, high=100.0),
    "kl_cov": objectives.kl_cov(share=0.3),
    "top_entropy": objectives.top_entropy(),
    "real": objectives.real(),
    "reinforce_pp": objectives.reinforce_pp(kl=0.1),
    "rubric": objectives.rubric(kl=0.1),
}


@dataclass(frozen=True)
class Whole:
    """Eight prompts with answers whose sampler was not quite the trainer, two rewards of each, and how far the policy
    has moved since it answered.
    """

    rollouts: Rollouts
    rewards_PGR: np.ndarray
    moved_PGT: np.ndarray


@pytest.fixture(scope="module")
def whole() -> Whole:
    prompts = MODEL.tokenizer.encode_all(TEXTS * 2, max_tokens=64)
    sampler = Sampler(MODEL.tokenizer.end_ids, responses=4, max_tokens=12)
    rollouts = jax.tree.map(np.asarray, sampler(MODEL.policy, PARAMS, prompts, jax.random.key(0)))
    draw = np.random.default_rng(0)
    lengths_PG = draw.permuted(np.tile([8, 9, 11, 12], (8, 1)), axis=1)  # all fill as many rows: few programs
    action_PGT = rollouts.action_PGT & (np.arange(12) < lengths_PG[..., None])
    rollouts = replace(rollouts, valid_PGT=action_PGT, action_PGT=action_PGT, ended_PG=draw.uniform(size=(8, 4)) < 0.8)
    noise_PGT = draw.normal(0, 0.5, rollouts.logprobs_PGT.shape).astype(np.float32)
    logprobs_PGT = np.where(action_PGT, rollouts.logprobs_PGT + noise_PGT, 0.0)
    rewards_PGR = draw.uniform(size=(8, 4, 2)).astype(np.float32)
    rewards_PGR[0] = 0.5  # a group that agrees
    moved_PGT = draw.choice([-1, 1], noise_PGT.shape) * draw.uniform(0.05, 0.4, noise_PGT.shape)
    return Whole(replace(rollouts, logprobs_PGT=logprobs_PGT), rewards_PGR, moved_PGT.astype(np.float32))


def change_of(objective: Objective, whole: Whole, layout: Layout | None = None, **cut):
    """What a step of two minibatches does to the parameters."""
    mesh = ONE if layout is None else layout.mesh()
    mix = Mix(((share_of_vowels, 1.0), (checksum, 0.5)))
    algorithm = build(objective=objective, reward=mix, minibatches=2, **cut)
    state = init(algorithm, MODEL.params(mesh))
    if state.reference is not None:
        apart = jax.tree.map(lambda a: np.asarray(a) * 1.05, PARAMS)
        state = replace(state, reference=jax.device_put(apart, weight_shardings(apart, mesh)))
    rollouts = place_prompts(whole.rollouts, mesh)
    batch = prepare(algorithm, state, rollouts, Rewards(whole.rewards_PGR), jax.random.key(1))
    batch = replace(batch, old_logprobs_PGT=batch.old_logprobs_PGT - place_prompts(whole.moved_PGT, mesh))
    state, _ = update(algorithm, state, batch)
    return jax.tree.map(np.subtract, host(state.params), host(PARAMS))


# Each much like one of the others.
MORE_CUT = ("verifiable", "clip_cov", "kl_cov", "top_entropy", "real", "reinforce_pp")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in MORE_CUT else n for n in CUT])
@pytest.mark.slow
def test_microbatches_and_devices_change_nothing_but_rounding(name, whole):
    expected = change_of(CUT[name], whole)
    scale = largest_change(expected, jax.tree.map(np.zeros_like, expected))
    assert scale > 1e-3
    for layout in (None, Layout(1, 2, 4)):  # one prompt with its group on each device
        found = change_of(CUT[name], whole, layout, responses_at_once=4)
        assert largest_change(found, expected) < 2e-5 * scale + 2e-7


@pytest.mark.parametrize("name", CUT)
@pytest.mark.slow
def test_what_makes_an_objective_special_moves_the_parameters(name, whole):
    """Or the test above would be one of the same objective several times."""
    plain = replace(
        CUT[name], masks=(), terms=(), corrections=(), select=(), kl=None, surrogate=objectives.dapo().surrogate
    )
    expected, found = change_of(plain, whole), change_of(CUT[name], whole)
    assert largest_change(expected, found) > 1e-3


@pytest.mark.parametrize(
    ("objective", "layout"),
    [
        (ADAPTIVE, None),
        (held(Reference(1, 0.5)), None),
        (ADAPTIVE, Layout(2, 2, 2)),
        pytest.param(held(Reference(1, 0.5)), Layout(2, 2, 2), marks=pytest.mark.long),
    ],
    ids=["adaptive", "average", "adaptive on a mesh", "average on a mesh"],
)
@pytest.mark.slow
def test_what_moves_between_steps_compiles_nothing_new(objective, layout):
    mesh = ONE if layout is None else layout.mesh()
    algorithm = build(objective=objective, optimizer=adamw(1e-3))
    state = init(algorithm, MODEL.params(mesh))
    state = jax.device_put(state, weight_shardings(state, mesh))
    prompts = place_prompts(PROMPTS, mesh)
    programs = (cutting.choose, learning.add_gradient, learning.descend, learning.microbatch_logprobs)
    sizes = []
    for index in range(3):
        state, _ = step(algorithm, state, prompts, EXAMPLES, jax.random.key(index))
        sizes.append([program._cache_size() for program in programs])
    assert sizes[0] == sizes[1] == sizes[2]
