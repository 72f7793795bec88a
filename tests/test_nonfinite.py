"""Nothing that is not finite is learned, saved or loaded, and a run says in which step it was, and why."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import RunDirectory, objectives
from grpo_jax.algorithm import Algorithm
from grpo_jax.cli import main
from grpo_jax.devices.mesh import Layout
from grpo_jax.grpo import init
from grpo_jax.hosts import codes
from grpo_jax.learner.finite import all_finite, check_weights
from grpo_jax.learner.losses import NONFINITE, nonfinite_logprobs
from grpo_jax.learner.states import shardings_of
from grpo_jax.learner.update import descend
from grpo_jax.models import tiny
from grpo_jax.optimizers import FiniteSteps, adafactor, adamw
from grpo_jax.rollout import Sampler
from grpo_jax.structs import TrainState
from grpo_jax.training import nonfinite
from grpo_jax.training.checkpoint import Checkpoints, Keep

pytestmark = pytest.mark.faults


def algorithm_with(optimizer: optax.GradientTransformation) -> Algorithm:
    return Algorithm(tiny().policy, Sampler((1,)), str, lambda example, response: 0.0, objectives.dr_grpo(), optimizer)


def state_of(algorithm: Algorithm) -> TrainState:
    return init(algorithm, {"a_DF": jnp.linspace(-1.0, 1.0, 32).reshape(4, 8), "b_D": jnp.arange(4.0)})


GRADIENT = {"a_DF": np.full((4, 8), 0.5, np.float32), "b_D": np.array([0.0, 1.0, -2.0, 0.25], np.float32)}


def total_of(loss=1.0, wrong=0.0, **gradient):
    values = jax.tree.map(jnp.asarray, GRADIENT | gradient)
    return jnp.float32(loss), {NONFINITE: jnp.float32(wrong)}, values


def numbers(state: TrainState) -> list[np.ndarray]:
    return [np.array(a) for a in jax.tree.leaves((state.params, state.opt_state))]


def descended(optimizer, total, largest_norm=math.inf):
    """The numbers of a state before and after one more step, and what is said of the step."""
    algorithm = algorithm_with(optimizer)
    state = state_of(algorithm)
    state, _ = descend(algorithm, shardings_of(state), state, total_of(), 1, math.inf)  # moments that are not zero
    before = numbers(state)
    state, said = descend(algorithm, shardings_of(state), state, total, 1, largest_norm)
    assert int(state.step) == 2
    return before, numbers(state), {name: float(value) for name, value in said.items()}


SGD_WITH_NAN = optax.chain(optax.sgd(0.1), optax.stateless(lambda g, _: jax.tree.map(lambda a: a / (a != 0), g)))
WITH_INFINITY = np.array([0.0, np.inf, 0.0, 0.0], np.float32)


@pytest.mark.parametrize("optimizer", [adamw(1e-2), adafactor(1e-2)], ids=["adamw", "adafactor"])
def test_a_finite_update_is_the_one_of_optax(optimizer):
    before, after, said = descended(optimizer, total_of())
    algorithm = algorithm_with(optimizer)
    params, opt_state = state_of(algorithm).params, optimizer.init(state_of(algorithm).params)
    for _ in range(2):
        updates, opt_state = optimizer.update(total_of()[2], opt_state, params)
        params = optax.apply_updates(params, updates)
    for ours, theirs in zip(after, jax.tree.leaves((params, opt_state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    norm = math.sqrt(sum(float(np.square(a).sum()) for a in GRADIENT.values()))
    assert said == {"grad_norm": pytest.approx(norm), "skipped_updates": 0, "skipped_spikes": 0}
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "total", "largest_norm", "spikes"),
    [
        (adamw(1e-2), total_of(loss=np.nan), math.inf, 0),
        (adamw(1e-2), total_of(b_D=WITH_INFINITY), math.inf, 0),
        (adamw(1e-2), total_of(wrong=1.0), math.inf, 0),
        (adamw(1e-2), total_of(b_D=np.full(4, 3e38, np.float32)), math.inf, 0),  # the norm overflows
        (optax.adamw(1e30), total_of(), math.inf, 0),  # weights of 1e30, whose squares overflow
        (optax.adamw(3e38), total_of(), math.inf, 0),
        (optax.adamw(1e-2, eps=1e-50), total_of(), math.inf, 0),  # zero in float32: 0/0 where the gradient is zero
        (optax.adamw(1e-2, weight_decay=-3e38), total_of(), math.inf, 0),
        (SGD_WITH_NAN, total_of(), math.inf, 0),
        (adafactor(1e-2), total_of(loss=np.inf), math.inf, 0),
        (adamw(1e-2), total_of(), 0.1, 1),
    ],
    ids="loss gradient log-probs norm rate-1e30 rate-3e38 epsilon decay user's adafactor spike".split(),
)
def test_an_update_that_is_not_finite_changes_no_bit_of_weights_and_optimiser(optimizer, total, largest_norm, spikes):
    before, after, said = descended(optimizer, total, largest_norm)
    if math.isfinite(sum(float(a.sum()) for a in before)):  # else the first step was left out, too
        assert all(np.isfinite(a).all() for a in after)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert (said["skipped_updates"], said["skipped_spikes"]) == (1, spikes)


def test_an_optimiser_that_says_that_its_steps_are_finite_keeps_its_word():
    """The learner does not look at the weights after such steps. Gradients of every size, zeros among them."""
    assert isinstance(adamw(), FiniteSteps) and isinstance(adafactor(), FiniteSteps)
    others = (adamw(epsilon=1e-25), adamw(clip_norm=1e16), optax.sgd(1.0))
    assert not any(isinstance(other, FiniteSteps) for other in others)
    random = np.random.default_rng(0)
    for optimizer in (adamw(1.0, warmup_steps=1, clip_norm=1e15, epsilon=1e-20), adafactor(1.0, warmup_steps=1)):
        params = {"a": jnp.ones((64, 64)), "b": jnp.zeros(3)}
        opt_state = optimizer.init(params)
        for power in (-38, 15, 0, -20, 12, -38, 1, 15):
            gradient = jax.tree.map(lambda a, p=power: random.choice([0.0, 1.0, -1.0], a.shape) * 10.0**p, params)
            updates, opt_state = optimizer.update(jax.tree.map(jnp.float32, gradient), opt_state, params)
            params = optax.apply_updates(params, updates)
            assert all_finite((params, opt_state))


def test_log_probs_of_tokens_are_looked_at_and_others_are_not(batch_of_numbers):
    rollouts, logprobs_PGT = batch_of_numbers
    assert nonfinite_logprobs(logprobs_PGT, rollouts) == 0
    assert nonfinite_logprobs(logprobs_PGT.at[0, 0, 0].set(jnp.nan), rollouts) == 1
    assert nonfinite_logprobs(logprobs_PGT.at[0, 0, 1].set(jnp.nan), rollouts) == 0  # no action
    unknown = replace(rollouts, logprobs_PGT=jnp.full_like(logprobs_PGT, jnp.nan))  # an engine that knows none
    assert nonfinite_logprobs(logprobs_PGT, unknown) == 0
    assert nonfinite_logprobs(logprobs_PGT, replace(rollouts, logprobs_PGT=logprobs_PGT - jnp.inf)) == 1


@pytest.fixture
def batch_of_numbers():
    from grpo_jax.distribution import Distribution
    from grpo_jax.structs import Prompts, Rollouts

    action_PGT = jnp.array([[[True, False]]])
    zero_PGT = jnp.zeros((1, 1, 2))
    prompts = Prompts(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    tokens_PGT = jnp.zeros((1, 1, 2), jnp.int32)
    rollouts = Rollouts(
        prompts, tokens_PGT, action_PGT, action_PGT, zero_PGT, zero_PGT, action_PGT[..., 0], Distribution()
    )
    return rollouts, zero_PGT


@pytest.mark.parametrize("layout", [Layout(1, 1, 1), Layout(1, 2, 4)], ids=["one device", "eight devices"])
def test_weights_that_are_not_finite_are_refused_by_their_names(layout):
    mesh = layout.mesh(jax.devices()[: math.prod((layout.data, layout.fsdp, layout.tensor))])
    params = tiny().params(mesh)
    check_weights(params, "the model")
    assert all_finite(params)
    params["norm_D"] = params["norm_D"].at[3].set(jnp.nan)
    assert not all_finite(params)
    with pytest.raises(
        ValueError, match=r"The weights of the model must be finite numbers; 1 of \d+ arrays .*: norm_D\."
    ):
        check_weights(params, "the model")


def test_integers_and_flags_are_finite():
    assert all_finite({"count": jnp.zeros((), jnp.int32), "flag": jnp.array(True)}) and all_finite({})
    assert not all_finite({"count": jnp.zeros((), jnp.int32), "half": jnp.array([1.0, jnp.inf], jnp.bfloat16)})


# Spikes, and steps in a row.


def rows(*norms):
    return [{"step": step, "grad_norm": norm} for step, norm in enumerate(norms, 1)]


def test_a_spike_is_what_exceeds_the_recent_median_so_many_times():
    assert nonfinite.largest_norm(None, rows(*[1.0] * 50)) == math.inf
    assert nonfinite.largest_norm(10.0, rows(*[1.0] * 7)) == math.inf  # too few to say
    assert nonfinite.largest_norm(10.0, rows(*[1.0, 3.0] * 4)) == 20.0
    assert nonfinite.largest_norm(10.0, rows(*[9.0] * 40, *[1.0] * 32)) == 10.0  # the last 32
    assert nonfinite.largest_norm(10.0, rows(*[2.0] * 8, None, 0.0, None)) == 20.0  # neither NaN nor "no gradient"


def test_steps_in_a_row_are_counted_since_the_start_and_spikes_do_not_count():
    def row(step, skipped=0, spikes=0):
        return {"step": step, "skipped_updates": skipped, "skipped_spikes": spikes}

    assert nonfinite.failed_in_a_row([row(1, 1), row(2), row(3, 1), row(4, 2, 1)], 0) == 2
    assert nonfinite.failed_in_a_row([row(1, 1), row(2, 1)], 1) == 1
    assert nonfinite.failed_in_a_row([row(1, 1), row(2, 1, 1)], 0) == 0
    assert nonfinite.failed_in_a_row([{"step": 0}, {"step": 1}], 0) == 0  # rows of earlier versions


# Whole runs. The surrogate is 0/0 where an advantage is large, and the reward decides in which steps that is so.

MINE = """
import jax.numpy as jnp

BAD, LARGE = set(), set()

def reward(prompts, completions, trainer_state=None, **columns):  # written for TRL, which says the step
    step = 0 if trainer_state is None else trainer_state.global_step + 1
    size = 1000.0 if step in BAD else 20.0 if step in LARGE else 1.0
    return [size * (len(response[0]["content"]) % 2) for response in completions]

def surrogate(tokens):
    zero_PGT = jnp.where(tokens.advantages_PGT > 100, 0.0, 1.0)
    return jnp.exp(tokens.log_ratio_PGT) * tokens.advantages_PGT * zero_PGT / zero_PGT
"""
CONFIG = """
run: {name: t}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 32, held_out: 8, largest: 9}
rewards: [{use: "poisoned:reward"}]
rollout: {responses: 4, max_tokens: 6}
objective: {use: dr_grpo, surrogate: {use: "poisoned:surrogate"}}
optimizer: {learning_rate: 1e-3, warmup_steps: 1}
mesh: {data: 1, fsdp: 2, tensor: 4}
train: {steps: 4, prompts: 4, evaluate_every: 0, save_every: 1, keep: 1, max_prompt_tokens: 96}
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains with a reward that poisons the steps that are given; the exit code, and the run's directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "poisoned.py").write_text(MINE)
    (tmp_path / "c.yaml").write_text(CONFIG)
    import poisoned

    def run(bad, *arguments, large=()):
        poisoned.BAD, poisoned.LARGE = set(bad), set(large)
        return main(["train", "c.yaml", *arguments]), RunDirectory(tmp_path / "runs" / "t")

    yield run
    import sys

    del sys.modules["poisoned"]


def weights(run: RunDirectory, step: int) -> list[np.ndarray]:
    algorithm = algorithm_with(adamw(1e-3, warmup_steps=1))
    checkpoints = Checkpoints(run.path / "checkpoints", Keep(1))
    state = checkpoints.restore(step, init(algorithm, tiny(remat="none").params(Layout(1, 2, 4).mesh())))
    assert checkpoints.latest == step
    checkpoints.close()
    return [np.asarray(a) for a in jax.tree.leaves(state.params)]


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_left_out_named_and_not_compared(train, capsys):
    code, run = train({2})
    said = capsys.readouterr().out
    assert code == codes.COMPLETE
    skipped = [row["skipped_updates"] for row in run.metrics()]
    assert skipped == [0, 1, 0, 0] and run.metrics()[1]["loss"] is None
    assert "warning: step 2: 1 of 1 updates left out, because the loss is nan and the norm of the gradient is" in said
    last = [row["reward"] for row in run.metrics() if row["step"] != 2]
    assert f"reward {last[0]:.3f} -> {last[-1]:.3f} (the first and the last step)" in said
    assert "without 1 step(s) that had updates left out" in said
    assert all(np.isfinite(a).all() for a in weights(run, 4))


@pytest.mark.slow
def test_several_such_steps_in_a_row_end_the_run_with_the_last_good_weights_and_what_was_in_the_step(train, capsys):
    code, run = train({2, 3, 4, 5, 6}, "train.steps=9", "train.max_skipped=2")
    said = capsys.readouterr()
    assert code == codes.NOT_FINITE == 65
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    assert said.err.count("\n") == 1 and said.err.startswith("error: The run ends at step 3, as 2 step(s) in a row had")
    assert "step 3 is saved: go on from it with --resume" in said.err
    assert all(np.isfinite(a).all() for a in weights(run, 3))
    folder = run.path / "failed_step_000003"
    with np.load(folder / "batch.npz", allow_pickle=False) as batch:
        np.testing.assert_array_equal(batch["rewards_PGR"].max(), 1000.0)
        assert batch["rollouts/tokens_PGT"].shape == batch["weights_PGT"].shape == (4, 4, 6)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["step"] == 3 and found["loss"] == "nan" and "the loss is nan" in found["cause"]
    assert (folder / "config.yaml").read_text() == run.config()
    code, run = train(set(), "train.steps=4", "--resume")
    assert code == codes.COMPLETE and [row["step"] for row in run.metrics()] == [1, 2, 3, 4]


@pytest.mark.long
@pytest.mark.slow
def test_a_resumed_run_skips_the_spikes_that_the_run_without_a_stop_skips(train, capsys):
    """Rewards twenty times as large give gradients twenty times as large."""
    settings = ("train.skip_spikes=5", "train.save_every=50")
    _, run = train({2}, *settings, "train.steps=12", large={11})
    assert "warning: step 11: 1 of 1 updates left out: a norm of the gradient is above" in capsys.readouterr().out
    assert [row["step"] for row in run.metrics() if row["skipped_spikes"]] == [11]
    train({2}, *settings, "train.steps=9", "run.name=u")
    train({2}, *settings, "train.steps=12", "run.name=u", "--resume", large={11})
    resumed = RunDirectory(run.path.with_name("u"))
    for row, other in zip(run.metrics(), resumed.metrics(), strict=True):
        assert {k: v for k, v in row.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}
    for one, other in zip(weights(run, 12), weights(resumed, 12), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_skipped=0", "train.max_skipped must be at least 1"),
        ("train.skip_spikes=1.0", "train.skip_spikes must be above 1 (null is never); got 1.0"),
    ],
)
def test_settings_that_would_skip_everything_are_refused(train, capsys, override, words):
    assert train(set(), override)[0] == codes.MISTAKE
    assert words in capsys.readouterr().err
