"""Every parameter in little memory: bfloat16 weights that are rounded at random."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from grpo_jax import optimizers, rounding
from grpo_jax.algorithm import Algorithm
from grpo_jax.commands.plan.case import assemble
from grpo_jax.commands.plan.estimate import estimated
from grpo_jax.commands.plan.lengths import Lengths
from grpo_jax.commands.plan.report import measure, table
from grpo_jax.commands.plan.topology import device_with
from grpo_jax.config import read
from grpo_jax.devices.memory import HOST, check_host_memory, device_bytes, host_bytes
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place, place_prompts
from grpo_jax.devices.sharding import weight_shardings, with_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.grpo import init
from grpo_jax.learner import learn
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.learner.states import state_shardings
from grpo_jax.learner.update import check_split
from grpo_jax.models import Model, decoder_policy, tiny
from grpo_jax.models.decoder import Span
from grpo_jax.models.rope import Rope
from grpo_jax.objectives import dapo
from grpo_jax.optimizers import adafactor, adamw, first_state, is_moment, stepped
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Batch, Prompts, Rollouts
from grpo_jax.training.checkpoint import Checkpoints, Keep

KEY = jax.random.key(0)
QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def neighbours(x: float) -> tuple[float, float]:
    """The bfloat16 numbers below and above a number: eight bits of its mantissa are kept."""
    step = 2.0 ** (np.floor(np.log2(abs(x))) - 7)
    return np.floor(x / step) * step, np.ceil(x / step) * step


@pytest.mark.parametrize("x", [1.0 + 1e-3, -1.0 - 1e-3, 0.1, -3e-5, 1e-30, 7.7e20])
def test_a_rounded_number_is_a_neighbour_and_the_mean_is_the_number(x):
    count = 40_000
    x = float(np.float32(x))
    rounded = np.asarray(rounding.to_bfloat16(KEY, jnp.full(count, x, jnp.float32)), np.float64)
    below, above = neighbours(x)
    assert set(rounded) == {below, above}
    chance = (x - below) / (above - below)  # of rounding up, worked out in float64
    error = 4 * np.sqrt(chance * (1 - chance) / count) * (above - below)
    assert abs(rounded.mean() - x) < error


def test_what_bfloat16_can_hold_or_is_not_finite_stays_as_it_is():
    x = jnp.array([0.0, -0.0, 1.0, -2.5, 3.0e38, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    x = x.at[4].set(x[4].astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(np.asarray(rounding.to_bfloat16(KEY, x), np.float32), np.asarray(x))


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(1.0), adamw(1e-3, 0), adafactor(1e-3, 0)], ids=["sgd", "adamw", "factored"]
)
def test_steps_of_bfloat16_weights_have_the_mean_of_float32_steps(optimizer):
    wide = {"a_DF": jnp.full((64, 512), 0.5), "b_DF": jnp.full((64, 512), 0.5)}
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), wide)
    gradient = jax.tree.map(lambda a: jnp.full(a.shape, 1e-4), wide)
    expected, _ = stepped(optimizer, wide, first_state(optimizer, wide), gradient, KEY)
    state = first_state(optimizer, narrow)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(state) if a.ndim)
    found, _ = stepped(optimizer, narrow, state, jax.tree.map(lambda a: a.astype(jnp.bfloat16), gradient), KEY)
    move, size = float(expected["a_DF"][0, 0]) - 0.5, 2.0**-9  # of a step of bfloat16 below a half
    assert abs(move) < 0.6 * size  # to nearest, nothing or too much would happen
    mean = np.asarray(found["a_DF"], np.float64).mean() - 0.5
    assert mean == pytest.approx(move, abs=4 * size * np.sqrt(abs(move) / size / found["a_DF"].size))
    assert np.any(np.asarray(found["a_DF"] != found["b_DF"]))  # each array has random numbers of its own


def test_matrices_are_stored_in_bfloat16_and_norms_in_float32():
    policy = tiny(weights="bfloat16").policy
    params = policy.init(KEY)
    types = {jax.tree_util.keystr(path): a.dtype for path, a in jax.tree_util.tree_leaves_with_path(params)}
    assert {name for name, dtype in types.items() if dtype == jnp.float32} == {
        "['norm_D']",
        "['layers']['attention_norm_D']",
        "['layers']['feedforward_norm_D']",
    }
    wide = tiny().policy.init(KEY)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), params, wide)


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_in_8_bits_are_near_and_their_mean_is_exact(signed):
    size, count = 256, 4000
    x = np.logspace(-4 if signed else -8, 0, size).astype(np.float32) * 0.3
    x = x * np.where(np.arange(size) % 3, 1, -1).astype(np.float32) if signed else x
    stored = rounding.encode(KEY, jnp.tile(x, (count, 1)), signed)
    assert stored.codes.dtype == (jnp.int8 if signed else jnp.uint8)
    assert stored.largest.shape == (count, 2)
    found = np.asarray(rounding.decode(stored), np.float64)
    assert np.all(np.abs(found / x - 1) < 0.1)  # neighbours are a factor of 2^(1/8) = 1.09 apart
    np.testing.assert_allclose(found.mean(axis=0), x, rtol=4 * 0.045 / np.sqrt(count))


def test_in_8_bits_zero_is_zero_and_a_small_second_moment_is_not():
    x = jnp.array([[1.0, 1e-12, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0]])
    signed = np.asarray(rounding.decode(rounding.encode(KEY, x, signed=True)))
    np.testing.assert_allclose(signed, [[1.0, 0.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0]], rtol=1e-6)
    squares = np.asarray(rounding.decode(rounding.encode(KEY, jnp.square(x), signed=False)))
    assert squares[0, 1:3] == pytest.approx(2.0**-31.875)
    np.testing.assert_array_equal(squares[1], 0.0)


def test_adamw_in_8_bits_goes_the_way_of_adamw():
    """Adam on a noisy quadratic whose curvatures span four orders of magnitude, also within a block."""
    scale_DF = 10.0 ** jax.random.uniform(KEY, (64, 128), minval=-4.0, maxval=0.0)

    def distances(moments: str) -> list[float]:
        optimizer = adamw(0.02, 0, clip_norm=1e6, b2=0.99, moments=moments)
        params = {"a_DF": jnp.ones((64, 128)), "b_D": jnp.ones(64)}
        state = first_state(optimizer, params)

        @jax.jit
        def move(params, state, key):
            noise = {name: jax.random.normal(key, a.shape) * 0.3 for name, a in params.items()}
            gradient = {"a_DF": scale_DF * (params["a_DF"] + noise["a_DF"]), "b_D": params["b_D"] + noise["b_D"]}
            return stepped(optimizer, params, state, gradient, key)

        found = []
        for index in range(60):
            params, state = move(params, state, jax.random.fold_in(KEY, index))
            found.append(float(jnp.mean(jnp.abs(params["a_DF"]))))
        return found

    exact, bytes_ = distances("float32"), distances("int8")
    assert exact[-1] < 0.2
    np.testing.assert_allclose(bytes_, exact, atol=0.02)


def test_moments_in_8_bits_take_two_bytes_a_weight_and_are_divided_like_the_weights():
    params = tiny().policy.shapes
    bytes_of = {
        moments: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state_shapes(adamw(moments=moments), params)))
        for moments in ("float32", "int8")
    }
    assert bytes_of["int8"] < 0.28 * bytes_of["float32"]
    mesh = Layout(1, 4, 2).mesh()
    mu = optax.tree_utils.tree_get(weight_shardings(state_shapes(adamw(moments="int8"), params), mesh), "mu")
    gate = weight_shardings(params, mesh)["layers"]["feedforward"]["gate_FD"]
    assert mu["layers"]["feedforward"]["gate_FD"].codes == gate


def state_shapes(optimizer, params):
    return jax.eval_shape(partial(first_state, optimizer), params)


P, G, L, T = 2, 4, 16, 12


def algorithm_with(model, **changes) -> Algorithm:
    parts = {"objective": dapo(), "optimizer": adamw(1e-3, 0, clip_norm=0.01)} | changes
    return Algorithm(
        model.policy, Sampler((0,), responses=G, max_tokens=T), str, lambda example, response: 0.0, **parts
    )


def batch_of(policy, params) -> Batch:
    """A batch of random rollouts with advantages of both signs."""
    keys = jax.random.split(KEY, 4)
    prompts = Prompts(jax.random.randint(keys[0], (P, L), 3, 200), jnp.arange(L)[None] >= jnp.array([[0], [5]]))
    length_PG = jax.random.randint(keys[1], (P, G), 3, T + 1)
    valid_PGT = jnp.arange(T)[None, None] < length_PG[..., None]
    tokens_PGT, nothing_PGT = jax.random.randint(keys[2], (P, G, T), 3, 200), jnp.zeros((P, G, T))
    ended_PG = jnp.ones((P, G), bool)
    rollouts = Rollouts(prompts, tokens_PGT, valid_PGT, valid_PGT, nothing_PGT, nothing_PGT, ended_PG, Distribution())
    logprobs_PGT = token_logprobs(policy, params, rollouts)[0]
    rollouts = replace(rollouts, logprobs_PGT=logprobs_PGT)
    return Batch(rollouts, jax.random.normal(keys[3], (P, G)), valid_PGT / jnp.sum(valid_PGT))


def several_kinds(**options) -> Model:
    """A tiny model whose layers attend in two ways."""
    rope = tiny().shape.rope
    shape = replace(tiny().shape, pattern=(Span(4, rope), Span(None, Rope(500.0))), tied=False)
    return replace(tiny(), shape=shape, policy=decoder_policy(shape, **options))


def learned(model, mesh=None, **changes):
    """The parameters before and after two updates of the same batch, the metrics of both, and the state."""
    algorithm = algorithm_with(model, **changes)
    before = model.policy.init(KEY)
    batch = batch_of(model.policy, before)
    state = init(algorithm, before)
    if mesh is not None:
        state = jax.tree.map(place, state, state_shardings(algorithm.optimizer, state, mesh))
        batch = place_prompts(batch, mesh) if mesh is not None else batch
    metrics = []
    for _ in range(2):
        state, found = learn(algorithm, state, batch)
        metrics.append(found)
    return before, state, metrics


@pytest.mark.parametrize(
    "model",
    [tiny(), pytest.param(several_kinds(), marks=[pytest.mark.slow, pytest.mark.long])],
    ids=["tied", "two kinds"],
)
@pytest.mark.slow
def test_gradients_by_layer_lead_where_a_whole_gradient_leads(model):
    """Clipping is active, in the second step as well as in the first: it needs the norm over all layers."""
    before, whole, expected = learned(model)
    _, by_layer, found = learned(model, gradients="by_layer")
    assert float(expected[0]["grad_norm"]) > 0.02
    for name in ("grad_norm", "loss", "skipped_updates"):
        np.testing.assert_allclose([each[name] for each in found], [each[name] for each in expected], rtol=2e-4)
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), whole.params, before)
    assert all(np.abs(a).max() > 1e-4 for a in jax.tree.leaves(moved))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole.params, by_layer.params
    )  # of steps of 1e-3


@pytest.mark.slow
@pytest.mark.long
def test_by_layer_with_bytes_on_a_mesh_learns_as_on_one_device():
    options = {"gradients": "by_layer", "optimizer": adamw(1e-3, 0, clip_norm=0.01, moments="int8")}
    model = tiny(weights="bfloat16")
    _, alone, expected = learned(model, **options)
    _, divided, found = learned(model, Layout(1, 2, 2).mesh(jax.devices()[:4]), **options)
    np.testing.assert_allclose(
        [each["grad_norm"] for each in found], [each["grad_norm"] for each in expected], rtol=0.02
    )
    difference = jax.tree.map(lambda a, b: np.abs(np.float32(a) - np.float32(b)).mean(), alone.params, divided.params)
    assert all(a < 1e-3 for a in jax.tree.leaves(difference))  # random bits are the same whatever the mesh
    moment = divided.opt_state["layers"][1].inner_state[0].mu["layers"]["feedforward"]["gate_FD"]
    assert moment.codes.dtype == jnp.int8 and moment.codes.sharding.spec == PartitionSpec(None, "tensor", "fsdp")


@pytest.mark.slow
def test_an_update_by_layer_that_is_not_finite_changes_no_bit():
    algorithm = algorithm_with(tiny(), gradients="by_layer")
    params = tiny().policy.init(KEY)
    batch = batch_of(tiny().policy, params)
    state = init(algorithm, params)
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    for wrong in (replace(batch, advantages=batch.advantages.at[1, 2].set(jnp.nan)), batch):
        spike = 1e-6 if wrong is batch else jnp.inf
        state, metrics = learn(algorithm, state, wrong, spike)
        assert float(metrics["skipped_updates"]) == 1 and float(metrics["skipped_spikes"]) == (wrong is batch)
        jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, (state.params, state.opt_state)))
    assert int(state.step) == 2


@pytest.mark.slow
def test_a_run_in_little_memory_goes_on_from_a_checkpoint_bit_by_bit(tmp_path):
    algorithm = algorithm_with(tiny(weights="bfloat16"), optimizer=adamw(1e-3, 0, moments="int8"), gradients="by_layer")
    params = algorithm.policy.init(KEY)
    batch = batch_of(algorithm.policy, params)
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep(1))
    state, _ = learn(algorithm, init(algorithm, params), batch)
    checkpoints.save(1, state)
    checkpoints.wait()
    restored = checkpoints.restore(1, jax.eval_shape(partial(init, algorithm), params))
    checkpoints.close()
    assert {a.dtype for a in jax.tree.leaves(restored)} >= {jnp.dtype(n) for n in ("bfloat16", "int8", "uint8")}
    ends = [learn(algorithm, each, batch)[0] for each in (state, restored)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_what_does_not_go_together_with_gradients_by_layer_is_refused():
    with pytest.raises(ValueError, match=r"model\.weights is float32 or bfloat16"):
        tiny(weights="float16")
    with pytest.raises(ValueError, match=r"algorithm\.gradients by_layer is not for models with experts"):
        algorithm_with(replace(tiny(), policy=replace(tiny().policy, layered=None)), gradients="by_layer")
    with pytest.raises(ValueError, match=r"algorithm\.gradients by_layer is for an optimizer whose steps are known"):
        algorithm_with(tiny(), gradients="by_layer", optimizer=optax.adam(1e-3))
    algorithm = algorithm_with(tiny(), gradients="by_layer", responses_at_once=2)
    with pytest.raises(ValueError, match="responses_at_once must be at least the 8 of a minibatch"):
        check_split(algorithm, P, G, None)
    check_split(replace(algorithm, responses_at_once=8), P, G, None)


def test_an_array_that_is_taken_in_pieces_moves_as_if_it_were_whole(monkeypatch):
    params = {"a_ND": jax.random.normal(KEY, (12, 1024)), "b_D": jnp.ones(64)}
    gradient = jax.tree.map(lambda a: a * 1e-3, params)
    optimizer = adamw(1e-3, 0, clip_norm=1e6, moments="int8")

    def after_one_step():
        return stepped(optimizer, params, first_state(optimizer, params), gradient, KEY)

    whole, state = after_one_step()
    monkeypatch.setattr(optimizers, "PIECE", 2048)  # pieces of two rows
    pieces, state_of_pieces = after_one_step()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), whole, pieces)  # the moments before were exact
    near = partial(np.testing.assert_allclose, rtol=0.1)
    moments = [optax.tree_utils.tree_get(each, "nu")["a_ND"] for each in (state, state_of_pieces)]
    near(*map(rounding.decode, moments))
    np.testing.assert_array_equal(moments[0].largest, moments[1].largest)


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_moments_in_the_hosts_memory_are_those_of_the_device_but_for_rounding(moments):
    params = {"a_ND": jax.random.normal(KEY, (12, 1024)), "b_D": jnp.ones(64)}
    ends = []
    for where in ("device", "host"):
        optimizer = adamw(1e-3, 0, weight_decay=0.1, moments=moments, moments_in=where)
        state, moved = first_state(optimizer, params), params
        move = jax.jit(partial(stepped, optimizer))
        for index in range(2):
            gradient = jax.tree.map(lambda a: jnp.sin(a * 9), moved)
            moved, state = move(moved, state, gradient, jax.random.fold_in(KEY, index))
        ends.append((moved, state))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-9), *ends)
    kinds = jax.tree_util.tree_map_with_path(
        lambda path, a: a.sharding.memory_kind == (HOST if is_moment(path) else "device"), ends[1]
    )
    assert all(jax.tree.leaves(kinds))
    assert sum(map(is_moment, (path for path, _ in jax.tree_util.tree_leaves_with_path(ends[1])))) >= 4


def on_one_device(algorithm, state):
    """The shapes of a state with their shardings on a mesh of one device."""
    mesh = Layout(1, 1, 1).mesh(jax.devices()[:1])
    return with_shardings(state, state_shardings(algorithm.optimizer, state, mesh))


def test_moments_in_the_hosts_memory_are_learned_left_alone_and_saved(tmp_path):
    """A step, then a save while the next update donates the state, one that is left out, and both ways of resuming."""
    in_host, on_chip = (
        algorithm_with(tiny(), optimizer=adamw(1e-3, 0, moments_in=where)) for where in ("host", "device")
    )
    params = in_host.policy.init(KEY)
    like, like_on_chip = (
        on_one_device(each, jax.eval_shape(partial(init, each), params)) for each in (in_host, on_chip)
    )
    batch = place_prompts(batch_of(in_host.policy, params), like.step.sharding.mesh)
    state = jax.tree.map(lambda a, b: place(a, b.sharding), init(in_host, params), like)
    state, _ = learn(in_host, state, batch)
    first = jax.tree.map(np.array, state)
    assert max(np.abs(a).max() for a in jax.tree.leaves(optax.tree_utils.tree_get(first, "mu"))) > 0
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep(1))
    checkpoints.save(1, state)
    state, metrics = learn(in_host, state, replace(batch, advantages=batch.advantages * jnp.nan))
    assert float(metrics["skipped_updates"]) == 1
    jax.tree.map(np.testing.assert_array_equal, replace(first, step=np.int32(2)), jax.tree.map(np.array, state))
    after, _ = learn(in_host, replace(state, step=state.step - 1), batch)
    checkpoints.wait()
    for each, wanted in ((like, HOST), (like_on_chip, "device")):
        restored = checkpoints.restore(1, each)
        jax.tree.map(np.testing.assert_array_equal, first, jax.tree.map(np.array, restored))
        moments = jax.tree.leaves(optax.tree_utils.tree_get(restored, "nu"))
        assert {a.sharding.memory_kind for a in moments} == {wanted}
        if wanted == HOST:
            assert host_bytes(restored) == 8 * sum(a.size for a in jax.tree.leaves(restored.params))
            again, _ = learn(in_host, restored, batch)
            jax.tree.map(np.testing.assert_array_equal, again, after)
    checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"gradients": "by_layer"}, marks=[pytest.mark.slow, pytest.mark.long])],
    ids=["whole", "by layer"],
)
def test_moments_in_the_hosts_memory_learn_on_a_mesh_as_on_devices(monkeypatch, options):
    monkeypatch.setattr(optimizers, "PIECE", 1024)
    mesh = Layout(1, 4, 2).mesh()
    _, expected, _ = learned(tiny(), mesh, **options)
    optimizer = adamw(1e-3, 0, clip_norm=0.01, moments_in="host")
    _, found, _ = learned(tiny(), mesh, optimizer=optimizer, **options)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-7), found, expected)  # of steps of 1e-3
    moment = optax.tree_utils.tree_get_all_with_path(found.opt_state, "mu")[0][1]["layers"]["feedforward"]["gate_FD"]
    assert moment.sharding.memory_kind == HOST and moment.sharding.spec == PartitionSpec(None, "tensor", "fsdp")


def test_moments_in_the_hosts_memory_are_refused_where_that_cannot_be():
    class Chip:
        device_kind = "a chip"

        def addressable_memories(self):
            return [jax.devices()[0].memory("device")]

    with pytest.raises(
        ValueError, match=r"optimizer\.moments_in host needs a device that reads .* a chip has only device"
    ):
        check_host_memory(Chip())
    with pytest.raises(ValueError, match=r"optimizer\.moments_in host is for steps that are known to be finite"):
        adamw(epsilon=1e-30, moments_in="host")


def test_a_plan_counts_moments_in_the_hosts_memory_apart():
    overrides = ["optimizer.moments_in=host"], []
    hosted, plain = (assemble(read(QUICKSTART, each), device_with("16GiB")) for each in overrides)
    moved = device_bytes(plain.state.opt_state) - device_bytes(hosted.state.opt_state)
    assert moved == host_bytes(hosted.state) == 8 * sum(a.size for a in jax.tree.leaves(plain.state.params))
    assert plain.estimated_peak(4) - hosted.estimated_peak(4) == moved
    sample, learning = estimated(hosted)
    figures = measure(hosted, sample, learning, Lengths())
    said = table(figures, sample, learning[hosted.responses_at_once])
    assert f"and {moved / 2**30:.2f} GiB in the host's memory for each device" in said
