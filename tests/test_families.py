"""Every family computes what transformers computes, with every feature on; a cache gives the same as whole texts."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.grpo import init, step
from grpo_jax.models import attention, export, tiny
from grpo_jax.models import policy as policy_module
from grpo_jax.models.layer import Layer
from grpo_jax.models.load import Model, Origin
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.shapes import KNOWN
from grpo_jax.models.weights import load_weights
from grpo_jax.objectives import grpo
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Prompts
from grpo_jax.tasks import Example

GOLDEN = Path(__file__).parent / "golden" / "families"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
LIKE_OTHERS = (
    "gemma",
    "gemma2",
    "granite",
    "llama_biases",
    "olmo2",
    "qwen2_moe",
    "qwen2_sliding",
    "qwen3_dynamic",
    "qwen3_sliding",
)
ONE = Layout().mesh(jax.devices()[:1])


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of this name: a function of the name, so that golden files need not hold weights."""
    draw = np.random.default_rng(list(name.encode()))
    return (0.2 * draw.normal(size=shape) + 0.5 * (len(shape) == 1)).astype(np.float32)


def write_model(directory: Path, name: str) -> Path:
    """The golden model of this name as a directory, its weights drawn by their names."""
    folder = directory / name
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN / f"{name}.json").read_text())
    save_file(tensors_of(name), folder / "model.safetensors")
    return folder


def tensors_of(name: str) -> dict[str, np.ndarray]:
    shapes = json.loads((GOLDEN / "shapes.json").read_text())[name]
    return {key: seeded(key, tuple(shape)) for key, shape in shapes.items()}


def loaded(directory: Path):
    policy = decoder_policy(read_shape(directory))
    return policy, load_weights(directory, policy.shapes, weight_shardings(policy.shapes, ONE))


def apart(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with those of experts one by one, as public checkpoints have them, and transformers 4 reads them."""
    found = {}
    for key, a in tensors.items():
        layer, experts, kind = key.partition("experts.")
        if kind not in ("gate_up_proj", "down_proj"):
            found[key] = a
            continue
        for e, matrix in enumerate(a):
            parts = (
                {"down_proj": matrix}
                if kind == "down_proj"
                else dict(zip(("gate_proj", "up_proj"), np.split(matrix, 2), strict=False))
            )
            found |= {f"{layer}{experts}{e}.{part}.weight": weight for part, weight in parts.items()}
    return found


def text_of(name: str) -> tuple[Prompts, jax.Array, np.ndarray]:
    expected = np.load(GOLDEN / f"{name}.npz")
    tokens_T, L = expected["tokens_T"], 7
    tokens_PL = jnp.asarray(np.pad(tokens_T[:L], (2, 0))[None], jnp.int32)
    prompts = Prompts(tokens_PL, jnp.arange(L + 2)[None] >= 2)
    return prompts, jnp.asarray(tokens_T[None, None, L:], jnp.int32), expected["logprobs_TV"][L - 1 :]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_log_probs_of_the_whole_vocabulary_are_those_of_transformers_also_through_the_cache(name, tmp_path):
    policy, params = loaded(write_model(tmp_path, name))
    prompts, tokens_PGT, expected_TV = text_of(name)
    last_PD, hidden_PGTD = policy.respond(params, prompts, tokens_PGT, tokens_PGT >= 0)
    hidden_TD = jnp.concatenate([last_PD, hidden_PGTD[0, 0]])
    logprobs_TV = jax.nn.log_softmax(policy.unembed(params, hidden_TD), axis=-1)
    np.testing.assert_allclose(logprobs_TV, expected_TV, atol=1e-4)
    last_PD, prefix = policy.read(params, prompts)
    T, served = tokens_PGT.shape[2], policy.serve(params)
    shared, own = policy.cache(prefix, 16, 1, T, int8=False)
    extend = jax.jit(policy.extend)
    for t in range(T):
        hidden_PGD, own = extend(served, shared, own, tokens_PGT[:, :, t], jnp.int32(t), jnp.zeros((1, 1), jnp.int32))
        np.testing.assert_allclose(hidden_PGD[0, 0], hidden_PGTD[0, 0, t], atol=2e-4)


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_sliding"])
@pytest.mark.slow
def test_responses_that_go_on_from_one_trunk_are_computed_as_whole_texts_also_with_windows(name, tmp_path):
    policy, params = loaded(write_model(tmp_path, name))
    prompts, tokens_PGT, _ = text_of(name)
    trunk, ends, T = 4, ((4, 7), (7, 9)), 11  # a trunk of four tokens, responses of three and two, and padding
    row_T = tokens_PGT[0, 0, :T]
    start_T = np.zeros(T, np.int32)
    for begin, end in ends:
        start_T[begin:end] = begin
    valid_PGT, trunk_PG = (jnp.arange(T) < 9)[None, None], jnp.full((1, 1), trunk)
    given = (params, prompts, row_T[None, None], valid_PGT, jnp.asarray(start_T)[None, None])
    _, joint_PGTD = jax.jit(policy.respond)(*given, trunk_PG=trunk_PG)
    for begin, end in ends:
        whole_PGT = jnp.concatenate([row_T[:trunk], row_T[begin:end]])[None, None]
        _, alone_PGTD = policy.respond(params, prompts, whole_PGT, whole_PGT >= 0)
        np.testing.assert_allclose(joint_PGTD[0, 0, :trunk], alone_PGTD[0, 0, :trunk], atol=1e-5)
        np.testing.assert_allclose(joint_PGTD[0, 0, begin:end], alone_PGTD[0, 0, trunk:], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_an_export_has_the_tensors_that_were_read_and_is_read_again(name, tmp_path):
    directory = write_model(tmp_path, name)
    policy, params = loaded(directory)
    model = Model(policy, read_shape(directory), tiny().tokenizer, lambda mesh: params, Origin(name, directory))
    out = export(model, params, tmp_path / "out", shard_bytes=100_000)
    written = {key: a for file in out.glob("*.safetensors") for key, a in load_file(file).items()}
    expected = apart(tensors_of(name))
    expected = {key: a for key, a in expected.items() if key in written or key != "lm_head.weight"}
    assert written.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, written, expected)
    again, params_again = loaded(out)
    assert again is policy
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long) if n in (*LIKE_OTHERS, "exaone4", "smollm3") else n for n in NAMES],
)
@pytest.mark.slow
def test_a_step_moves_every_weight_and_sampler_and_trainer_agree(name, tmp_path):
    policy, params = loaded(write_model(tmp_path, name))
    tokens_PL = jnp.arange(18).reshape(2, 9) + 3
    sampler = Sampler((1,), responses=4, max_tokens=12)
    algorithm = Algorithm(
        policy=policy,
        sample=sampler,
        decode=lambda tokens: " ".join(map(str, tokens)),
        reward=lambda example, response: sum(int(token) % 2 for token in response.split()),
        objective=grpo(),
        optimizer=optax.sgd(1.0),
    )
    prompts, before = Prompts(tokens_PL, tokens_PL > 0), jax.tree.map(np.asarray, params)
    state, metrics = step(algorithm, init(algorithm, params), prompts, [Example("", "")] * 2, jax.random.key(0))
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-3
    still = [
        path for path, a in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, state.params, before)) if a
    ]
    assert still == []


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_language_part_of_a_multimodal_gemma3_is_read(prefix, tmp_path):
    text = write_model(tmp_path, "gemma3_text")
    tensors = {key.replace("model.", prefix, 1): a for key, a in tensors_of("gemma3_text").items()}
    tensors |= {"vision_tower.patch.weight": np.ones((2, 2), np.float32)}
    folder = tmp_path / "multimodal"
    folder.mkdir()
    config = {"model_type": "gemma3", "text_config": json.loads((text / "config.json").read_text())}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    (policy, params), (whole, whole_params) = loaded(text), loaded(folder)
    assert policy is whole
    jax.tree.map(np.testing.assert_array_equal, params, whole_params)


@pytest.mark.slow
def test_the_tpu_kernel_gives_local_and_global_layers_their_windows(tmp_path, monkeypatch):
    """The kernel runs in an interpreter."""
    _, params = loaded(write_model(tmp_path, "gemma2"))
    shape = read_shape(tmp_path / "gemma2")
    monkeypatch.setattr(policy_module, "kernel", lambda *_: partial(attention.splash_rows, interpret=True))
    policy = policy_module._policy.__wrapped__(shape, jnp.float32, "full", "cpu", False, jnp.float32)
    prompts, tokens_PGT, expected_TV = text_of("gemma2")
    last_PD, hidden_PGTD = jax.jit(policy.respond)(params, prompts, tokens_PGT, tokens_PGT >= 0)
    hidden_TD = jnp.concatenate([last_PD, hidden_PGTD[0, 0]])
    logprobs_TV = jax.nn.log_softmax(policy.unembed(params, hidden_TD), axis=-1)
    np.testing.assert_allclose(logprobs_TV, expected_TV, atol=1e-4)


@pytest.mark.slow
def test_gradients_do_not_depend_on_what_layers_of_two_kinds_keep(tmp_path):
    directory = write_model(tmp_path, "gemma3_text")
    shape, (_, params) = read_shape(directory), loaded(directory)
    prompts, tokens_PGT, _ = text_of("gemma3_text")

    def gradient(remat: str):
        policy = decoder_policy(shape, remat=remat)

        def total(params):
            return jnp.sum(jnp.sin(policy.respond(params, prompts, tokens_PGT, tokens_PGT >= 0)[1]))

        return jax.jit(jax.grad(total))(params)

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-3), gradient("full"), gradient("none"))


def test_layers_that_are_alike_are_one_body_without_a_choice():
    policy = decoder_policy(read_shape(GOLDEN.parent / "qwen3"))
    prompts = Prompts(jnp.ones((1, 4), jnp.int32), jnp.ones((1, 4), bool))
    tokens_PGT = jnp.ones((1, 1, 4), jnp.int32)
    program = str(jax.make_jaxpr(policy.respond)(policy.shapes, prompts, tokens_PGT, tokens_PGT > 0))
    assert not [word for word in ("cond[", "tanh", "branches=") if word in program]


def write_config(directory: Path, base: str, **changes) -> Path:
    config = json.loads((GOLDEN.parent / base / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({key: a for key, a in config.items() if a != "missing"}))
    return directory


def test_a_mistral_without_sliding_window_has_4096_and_with_null_has_none(tmp_path):
    assert read_shape(write_config(tmp_path, "mistral", sliding_window="missing")).window == 4096
    assert read_shape(write_config(tmp_path, "mistral", sliding_window=None)).window is None


def test_rope_parameters_of_each_kind_of_layer_are_those_of_the_older_keys(tmp_path):
    old = json.loads((GOLDEN / "gemma3_text.json").read_text())
    by_kind = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new = {key: a for key, a in old.items() if key != "rope_scaling"} | {"rope_parameters": by_kind}
    shapes = []
    for config in (old, new):
        (tmp_path / "config.json").write_text(json.dumps(config))
        shapes.append(read_shape(tmp_path))
    assert shapes[0] == shapes[1]
    assert [(span.window, span.rope.theta) for span in shapes[0].pattern] == [(5, 1e4), (5, 1e4), (None, 1e6)]


def test_keys_that_transformers_5_renames_or_adds_are_those_of_older_configs(tmp_path):
    shapes = []
    for changes in ({}, {"num_experts": "missing", "num_local_experts": 6}):
        config = json.loads((GOLDEN / "qwen3_moe.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps({key: a for key, a in config.items() if a != "missing"}))
        shapes.append(read_shape(tmp_path))
    assert shapes[0] == shapes[1] and shapes[0].experts.count == 6
    kinds = ["full_attention"] * 2  # written for every family
    assert read_shape(write_config(tmp_path, "llama", layer_types=kinds)).window is None


def test_null_key_value_heads_are_as_many_as_heads(tmp_path):
    assert read_shape(write_config(tmp_path, "llama", num_key_value_heads=None)).kv_heads == 4


def write_known(directory: Path, name: str, **changes) -> Path:
    config = json.loads((KNOWN / f"{name}.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({key: a for key, a in config.items() if a != "missing"}))
    return directory


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma-2-2b", {"sliding_window_size": 512}, "sliding_window_size"),
        ("gemma-2-2b", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("gemma-2-2b", {"query_pre_attn_scalar": 5e-324}, "query_pre_attn_scalar is too large or too small"),
        ("granite-3.3-2b", {"logits_scaling": 1e-320}, "logits_scaling is too large or too small"),
        ("qwen3-0.6b", {"use_sliding_window": "false"}, "use_sliding_window must be true or false"),
        (
            "qwen3-0.6b",
            {"use_sliding_window": True, "max_window_layers": "2"},
            "max_window_layers must be a whole number",
        ),
        ("qwen3-0.6b", {"rope_theta": 10**400}, "rope_theta must be a finite number"),
        ("qwen3-0.6b", {"vocab_size": 10**30}, "vocab_size must be at most 2147483647; got a number of 31 digits"),
        ("qwen3-0.6b", {"num_hidden_layers": 3_000_000}, "num_hidden_layers must be at most 10000"),
        ("qwen3-0.6b", {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "all channels rotate"),
        ("smollm3-3b", {"no_rope_layer_interval": 0}, "no_rope_layer_interval must be a whole number"),
        ("olmo-3-7b", {"rope_theta": 1.0}, "rope_theta must be above 1 with yarn"),
        ("gemma-3-1b", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern must be a whole number"),
    ],
)
def test_numbers_that_nobody_could_compute_with_are_a_sentence(tmp_path, name, changes, words):
    with pytest.raises(ValueError, match=words):
        read_shape(write_known(tmp_path, name, **changes))


def test_what_changes_nothing_is_read(tmp_path):
    plain = read_shape(KNOWN, "gemma-2-2b.json")
    assert read_shape(write_known(tmp_path, "gemma-2-2b", sliding_window_size=4096)) == plain
    whole = read_shape(KNOWN, "olmo-3-7b.json")
    assert read_shape(write_known(tmp_path, "olmo-3-7b", layer_types="missing", sliding_window_pattern=0)) == whole


def test_scales_are_not_rounded_to_bfloat16_before_they_are_used(tmp_path):
    """With weights and rows of ones, a layer of Granite adds 0.22 of its outputs: 0.2197 would be the rounded scale."""
    shape = replace(read_shape(GOLDEN.parent / "llama"), residual_scale=0.22)
    layer = Layer(shape, nnx.Rngs(0), "cpu")
    scaled = layer._scaled(jnp.full((4,), 1000.0, jnp.bfloat16))
    np.testing.assert_array_equal(scaled, jnp.full((4,), jnp.bfloat16(220.0)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config says that the weights are quantised"),
        ({"logits_scaling": 8.0}, "logits_scaling is 8.0, and this changes what the model computes"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "'spiral' is not supported"),
    ],
)
def test_what_changes_the_computation_and_is_not_understood_is_refused_by_name(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        read_shape(write_config(tmp_path, "llama", **changes))


@pytest.mark.slow
def test_the_copy_for_sampling_keeps_the_weights_of_norms_in_float32(tmp_path):
    shape = read_shape(write_model(tmp_path, "olmo2"))
    policy = decoder_policy(shape, jnp.bfloat16)
    served = jax.eval_shape(policy.serve, policy.shapes)
    kept = {
        jax.tree_util.keystr(path[-1:])
        for path, a in jax.tree_util.tree_leaves_with_path(served)
        if a.dtype == jnp.float32
    }
    norms = {
        jax.tree_util.keystr(path[-1:])
        for path, _ in jax.tree_util.tree_leaves_with_path(served)
        if "norm" in str(path[-1])
    }
    assert norms <= kept and any("query_norm_HC" in name for name in norms)
