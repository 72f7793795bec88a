"""Mixtures of experts: every token gets its own experts, whatever its neighbours and however devices divide them."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from test_families import GOLDEN, loaded, tensors_of, text_of, write_model
from test_meshes import one_step
from test_metrics_page import unexplained

import grpo_jax as gj
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.learner.packing import pack
from grpo_jax.models.decoder import Experts, Shape
from grpo_jax.models.experts import MixtureOfExperts, load_balance, weight_gradient
from grpo_jax.models.load import Model, Origin
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.rope import Rope
from grpo_jax.models.weights import load_weights

MOE = ["qwen2_moe", "qwen3_moe"]
SHAPE = Shape(
    vocabulary=64,
    width=32,
    feedforward=48,
    layers=2,
    heads=4,
    kv_heads=2,
    channels=8,
    rope=Rope(10000.0),
    norm_epsilon=1e-6,
    max_positions=128,
    tied=True,
    experts=Experts(count=8, chosen=2, feedforward=24, normalized=True, shared=16),
)


def silu(x):
    return x / (1 + jnp.exp(-x))


def dense(weights: dict, x_XD: jax.Array, experts: Experts) -> jax.Array:
    """Every expert computes every token, one after the other; those that were not chosen count nothing."""
    probability_XE = jax.nn.softmax(x_XD @ weights["router_ED"].T)
    kth_X1 = jnp.sort(probability_XE, axis=1)[:, -experts.chosen][:, None]
    weight_XE = jnp.where(probability_XE >= kth_X1, probability_XE, 0)
    weight_XE = weight_XE / weight_XE.sum(axis=1, keepdims=True) if experts.normalized else weight_XE
    total_XD = jnp.zeros_like(x_XD)
    for e in range(experts.count):
        gate_FD, up_FD, down_DF = (weights[name][e] for name in ("gate_EFD", "up_EFD", "down_EDF"))
        total_XD += weight_XE[:, e : e + 1] * ((silu(x_XD @ gate_FD.T) * (x_XD @ up_FD.T)) @ down_DF.T)
    if experts.shared is None:
        return total_XD
    shared = weights["shared"]
    output_XD = (silu(x_XD @ shared["gate_FD"].T) * (x_XD @ shared["up_FD"].T)) @ shared["down_DF"].T
    return total_XD + output_XD / (1 + jnp.exp(-x_XD @ weights["shared_gate_1D"].T))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.slow
def test_output_and_gradients_are_those_of_a_loop_over_all_experts(normalized):
    experts = Experts(count=8, chosen=3, feedforward=24, normalized=normalized, shared=16)
    block = MixtureOfExperts(dataclasses.replace(SHAPE, experts=experts), nnx.Rngs(0), "cpu")
    graph, state = nnx.split(block, nnx.Param)
    weights = nnx.to_pure_dict(state)
    x_PGTD = jax.random.normal(jax.random.key(1), (2, 1, 7, 32))

    def ours(weights, x_PGTD):
        return nnx.merge(graph, weights)(x_PGTD)[0]

    def theirs(weights, x_PGTD):
        return dense(weights, x_PGTD.reshape(-1, 32), experts).reshape(x_PGTD.shape)

    np.testing.assert_allclose(ours(weights, x_PGTD), theirs(weights, x_PGTD), atol=1e-5)
    found, expected = (
        jax.grad(lambda *given, f=f: jnp.sum(jnp.sin(f(*given))), argnums=(0, 1))(weights, x_PGTD)
        for f in (ours, theirs)
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    assert jnp.abs(found[0]["router_ED"]).max() > 1e-3


def one_tensor_for_each_expert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As transformers 4 writes them, and 5 too."""
    found = {}
    for name, array in tensors.items():
        stem, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for e, both in enumerate(array):
                half = len(both) // 2
                found |= {f"{stem}.{e}.gate_proj.weight": both[:half], f"{stem}.{e}.up_proj.weight": both[half:]}
        elif last == "down_proj" and array.ndim == 3:
            found |= {f"{stem}.{e}.down_proj.weight": one for e, one in enumerate(array)}
        else:
            found[name] = array
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


@pytest.mark.parametrize("name", MOE)
def test_both_forms_of_files_are_read_and_an_export_writes_one_tensor_for_each_expert(name, tmp_path):
    fused = write_model(tmp_path, name)
    tensors = {key: a.astype(ml_dtypes.bfloat16) for key, a in tensors_of(name).items()}
    save_file(tensors, fused / "model.safetensors")
    (policy, params), separate = loaded(fused), one_tensor_for_each_expert(tensors)
    model = Model(policy, read_shape(fused), gj.tiny().tokenizer, lambda mesh: params, Origin(str(fused), fused))
    out = gj.export(model, params, tmp_path / "out", dtype="bfloat16")
    written = load_file(out / "model.safetensors")
    assert written.keys() == separate.keys()
    for key, array in separate.items():
        np.testing.assert_array_equal(written[key].view(np.uint16), array.view(np.uint16))
    jax.tree.map(np.testing.assert_array_equal, params, loaded(out)[1])


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("layout", [Layout(1, 2, 2, 2), Layout(1, 4, 2)], ids=["expert", "tensor"])
def test_devices_read_only_their_part_of_the_experts(name, layout, tmp_path):
    directory, mesh = write_model(tmp_path, name), layout.mesh()
    policy, whole = loaded(directory)
    divided = load_weights(directory, policy.shapes, weight_shardings(policy.shapes, mesh))
    jax.tree.map(np.testing.assert_array_equal, whole, divided)
    gate_NEFD = divided["layers"]["feedforward"]["gate_EFD"]
    assert gate_NEFD.addressable_shards[0].data.size * 8 == gate_NEFD.size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\], so layer 1 and 0 more of 3 have no experts"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2, so layer 0 and 1 more of 3 have no experts"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, more than the 6 experts"),
        ({"mlp_only_layers": 1}, "mlp_only_layers must be a list of layers; got 1"),
        ({"num_experts": -1}, "num_experts must be a whole number"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2, and this changes what the model computes"),
    ],
)
def test_experts_that_this_decoder_has_not_are_refused_by_name(changes, words, tmp_path):
    config = json.loads((GOLDEN / "qwen2_moe.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=words):
        read_shape(tmp_path)


def test_a_model_of_such_a_family_without_experts_is_dense(tmp_path):
    config = json.loads((GOLDEN / "qwen3_moe.json").read_text()) | {"num_experts": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(tmp_path)
    assert shape.experts is None and shape.feedforward == 48


def test_the_tpu_kernel_gives_the_gradient_of_each_experts_weights():
    """The kernel runs in an interpreter; one expert has no rows, and the last rows are those of no expert."""
    sizes_E, rng = np.array([5, 0, 130, 7], np.int32), np.random.default_rng(0)
    x_XD, grad_XF = (rng.normal(size=(150, size)).astype(np.float32) for size in (128, 256))
    found_EFD = weight_gradient(jnp.asarray(x_XD), jnp.asarray(grad_XF), jnp.asarray(sizes_E), interpret=True)
    ends = np.cumsum(sizes_E)
    expected_EFD = [
        grad_XF[end - size : end].T @ x_XD[end - size : end] for size, end in zip(sizes_E, ends, strict=True)
    ]
    np.testing.assert_allclose(found_EFD, np.stack(expected_EFD), atol=1e-3)


@pytest.mark.parametrize("name", MOE)
def test_the_load_balancing_loss_is_that_of_transformers_and_padding_counts_nothing(name, tmp_path):
    policy, params = loaded(write_model(tmp_path, name))
    prompts, tokens_PGT, _ = text_of(name)
    padded_PGT = jnp.pad(tokens_PGT, ((0, 0), (0, 0), (0, 5)))
    valid_PGT = jnp.arange(padded_PGT.shape[2])[None, None] < tokens_PGT.shape[2]
    balance = policy.balanced(params, prompts, padded_PGT, valid_PGT)[2]
    np.testing.assert_allclose(balance, np.load(GOLDEN / f"{name}.npz")["load_balance"], rtol=1e-5)


def test_tokens_that_are_spread_evenly_over_experts_have_the_least_load_balancing_loss():
    even_NE, probability_NE = jnp.full((2, 4), 6.0), jnp.full((2, 4), 3.0)  # 12 tokens, 2 experts each
    np.testing.assert_allclose(load_balance(even_NE, probability_NE, jnp.int32(12)), 2.0)
    counts_NE = jnp.array([[12.0, 12.0, 0.0, 0.0]] * 2)
    assert load_balance(counts_NE, counts_NE / 2, jnp.int32(12)) > 3.9


def test_a_model_without_experts_has_nothing_to_balance():
    model = gj.tiny()
    sampler = gj.Sampler(ends=model.tokenizer.end_ids)
    with pytest.raises(ValueError, match=r"algorithm.load_balancing is 0.01, and this model has no experts"):
        gj.Algorithm(model.policy, sampler, str, len, gj.objectives.grpo(), optax.sgd(0.1), load_balancing=0.01)


@pytest.mark.slow
def test_the_load_balancing_loss_is_in_the_gradient_and_in_the_metrics():
    """Of four microbatches, it is the mean."""
    _, metrics, change = one_step(None, 4, SHAPE.experts, load_balancing=0.5, responses_at_once=8)
    _, metrics_without, change_without = one_step(None, 4, SHAPE.experts)
    router, router_without = (each["layers"]["feedforward"]["router_ED"] for each in (change, change_without))
    assert np.abs(router - router_without).max() > 1e-5
    added, balance = metrics["loss"] - metrics_without["loss"], metrics["load_balancing_loss"]
    np.testing.assert_allclose(added, 0.5 * balance, rtol=1e-3)
    np.testing.assert_allclose(balance, metrics_without["load_balancing_loss"], rtol=0.05)
    assert unexplained([metrics]) == []


def rollouts_of(policy, params, **settings) -> gj.Rollouts:
    sampler = gj.Sampler(ends=(0,), responses=4, max_tokens=20, **settings)
    lengths_P1 = np.array([[3], [7], [5], [6]])
    valid_PL = np.arange(7)[None] >= 7 - lengths_P1
    tokens_PL = np.random.default_rng(0).integers(1, 64, valid_PL.shape).astype(np.int32)
    return sampler(policy, params, gj.Prompts(tokens_PL, valid_PL), jax.random.key(3))


def own_experts(policy, params, rollouts: gj.Rollouts) -> tuple[np.ndarray, np.ndarray]:
    """The experts that the router chooses for each text read alone, by the cache of a prompt that is the whole text."""
    found_PGTNe = np.zeros_like(rollouts.experts_PGTNe)
    found_PLNe = np.zeros_like(rollouts.prompts.experts_PLNe)
    (P, G, _), L = rollouts.tokens_PGT.shape, rollouts.prompts.tokens_PL.shape[1]
    for p in range(P):
        for g in range(G):
            text = np.concatenate([rollouts.prompts.tokens_PL[p], rollouts.tokens_PGT[p, g]])[None]
            valid = np.concatenate([rollouts.prompts.valid_PL[p], rollouts.valid_PGT[p, g]])[None]
            shared = policy.read(params, gj.Prompts(text, valid))[1]["key_values"].experts
            experts_MNe = np.asarray(shared)[:, 0].transpose(2, 0, 1)
            found_PLNe[p], found_PGTNe[p, g] = experts_MNe[:L], experts_MNe[L:]
    return found_PLNe, found_PGTNe


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"at_once": 2, "int8_cache": True}, marks=pytest.mark.long)],
    ids=["all", "two prompts at once"],
)
@pytest.mark.slow
def test_the_sampler_records_the_experts_that_computed_each_token(settings):
    """Rows are compacted, buffers grow, prompts wait: in float32 the experts are those of each text read alone."""
    policy = decoder_policy(SHAPE, replay_experts=True)
    params = policy.init(jax.random.key(0))
    rollouts = rollouts_of(policy, params, **settings)
    read_PLNe, written_PGTNe = own_experts(policy, params, rollouts)
    valid_PL, lengths_PG1 = rollouts.prompts.valid_PL, np.asarray(rollouts.valid_PGT).sum(axis=2, keepdims=True)
    computed_PGT = np.arange(20)[None, None] < lengths_PG1 - 1  # the last token computed nothing
    assert len(set(lengths_PG1.reshape(-1).tolist())) > 3
    np.testing.assert_array_equal(np.asarray(rollouts.prompts.experts_PLNe)[valid_PL], read_PLNe[valid_PL])
    same_PGTNe = np.asarray(rollouts.experts_PGTNe) == written_PGTNe
    assert same_PGTNe[computed_PGT].mean() > (0.9 if settings else 0.999)  # int8 changes keys and values a little


@pytest.mark.slow
def test_learning_replays_the_experts_that_were_recorded():
    """Whatever the router would say now; also where several responses are in one row."""
    policy, plain = (decoder_policy(SHAPE, replay_experts=replay) for replay in (True, False))
    params = policy.init(jax.random.key(0))
    rollouts = rollouts_of(policy, params)
    layers = params["layers"]
    router_NED = layers["feedforward"]["router_ED"] + 0.05 * jax.random.normal(jax.random.key(1), (2, 8, 32))
    moved = params | {"layers": layers | {"feedforward": layers["feedforward"] | {"router_ED": router_NED}}}
    slots_PBW = pack(np.asarray(rollouts.valid_PGT).sum(axis=2), 20)
    found, packed, other = (
        token_logprobs(policy, moved, given, slots)[0]
        for given, slots in ((rollouts, None), (rollouts, slots_PBW), (rollouts.without_experts, None))
    )
    np.testing.assert_allclose(packed, found, atol=1e-5)
    np.testing.assert_allclose(token_logprobs(plain, moved, rollouts)[0], other, atol=1e-6)
    np.testing.assert_allclose(token_logprobs(policy, params, rollouts)[0], rollouts.logprobs_PGT, atol=1e-4)
    assert np.abs(found - other).max() > 1e-3
    by_hand = rollouts.experts_PGTNe.at[...].set(rollouts.experts_PGTNe[..., ::-1])  # the order counts nothing
    again = token_logprobs(policy, moved, dataclasses.replace(rollouts, experts_PGTNe=by_hand))[0]
    np.testing.assert_allclose(again, found, atol=1e-5)


def test_a_model_without_experts_has_none_to_replay():
    with pytest.raises(ValueError, match=r"model.replay_experts is for models with experts"):
        gj.load("tiny", replay_experts=True)
