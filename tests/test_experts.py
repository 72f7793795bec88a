"""Mixtures of experts: every token gets its own experts, whatever its neighbours and however devices divide them."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from test_families import GOLDEN, loaded, tensors_of, write_model

import grpo_jax as gj
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models.decoder import Experts, Shape
from grpo_jax.models.experts import MixtureOfExperts, weight_gradient
from grpo_jax.models.load import Model, Origin
from grpo_jax.models.model_config import read_shape
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
def test_output_and_gradients_are_those_of_a_loop_over_all_experts(normalized):
    experts = Experts(count=8, chosen=3, feedforward=24, normalized=normalized, shared=16)
    block = MixtureOfExperts(gj.models.Shape(**vars(SHAPE) | {"experts": experts}), nnx.Rngs(0), "cpu")
    graph, state = nnx.split(block, nnx.Param)
    weights = nnx.to_pure_dict(state)
    x_PGTD = jax.random.normal(jax.random.key(1), (2, 1, 7, 32))

    def ours(weights, x_PGTD):
        return nnx.merge(graph, weights)(x_PGTD)

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
