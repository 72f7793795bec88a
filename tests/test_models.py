"""The models compute what transformers computes, and reading, teacher forcing and decoding agree."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import attention
from grpo_jax.models import policy as policy_module
from grpo_jax.models.decoder import project
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.smollm2 import fetch
from grpo_jax.models.weights import load_weights
from grpo_jax.structs import Policy, Prompts, Rollouts

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ["llama", "llama3", "mistral", "qwen2", "qwen3"]


ONE = Layout().mesh(jax.devices()[:1])
score = jax.jit(token_logprobs, static_argnums=0)


def load_golden(name: str, mesh=ONE, **options):
    return load_from(GOLDEN / name, mesh, **options)


def load_from(directory: Path, mesh=ONE, **options):
    policy = decoder_policy(read_shape(directory), **options)
    shapes = policy.shapes
    return policy, load_weights(directory, shapes, weight_shardings(shapes, mesh))


def left_padded(rows: list[np.ndarray]) -> Prompts:
    L = max(map(len, rows)) + 2
    tokens_PL = np.stack([np.pad(row, (L - len(row), 0)) for row in rows]).astype(np.int32)
    valid_PL = np.stack([np.arange(L) >= L - len(row) for row in rows])
    return Prompts(jnp.asarray(tokens_PL), jnp.asarray(valid_PL))


def rollouts_of(prompts: Prompts, tokens_PGT: np.ndarray, temperature: float = 1.0) -> Rollouts:
    tokens_PGT = jnp.asarray(tokens_PGT, jnp.int32)
    all_PGT = jnp.ones(tokens_PGT.shape, bool)
    nothing_PGT = jnp.zeros(tokens_PGT.shape)
    return Rollouts(
        prompts,
        tokens_PGT,
        all_PGT,
        all_PGT,
        nothing_PGT,
        nothing_PGT,
        all_PGT[..., -1],
        Distribution(temperature=temperature),
    )


def read_expected(name: str):
    return read_rollouts(GOLDEN / name / "expected.npz")


def read_rollouts(file: Path):
    expected = np.load(file)
    prompts = np.split(expected["prompts"], np.cumsum(expected["lengths_P"])[:-1])
    return rollouts_of(left_padded(prompts), expected["tokens_PGT"]), expected


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("remat", ["full", "products", "none"])
@pytest.mark.slow
def test_log_probs_and_entropies_are_those_of_transformers(name, remat):
    policy, params = load_golden(name, remat=remat)
    rollouts, expected = read_expected(name)
    logprobs_PGT, entropy_PGT = score(policy, params, rollouts)
    np.testing.assert_allclose(logprobs_PGT, expected["logprobs_PGT"], atol=1e-4)
    np.testing.assert_allclose(entropy_PGT, expected["entropy_PGT"], atol=1e-4)


@pytest.mark.slow
def test_the_real_smollm2_gives_the_log_probs_of_transformers():
    policy, params = load_from(fetch())
    rollouts, expected = read_rollouts(GOLDEN / "smollm2.npz")
    logprobs_PGT, entropy_PGT = score(policy, params, rollouts)
    np.testing.assert_allclose(logprobs_PGT, expected["logprobs_PGT"], atol=1e-4)
    np.testing.assert_allclose(entropy_PGT, expected["entropy_PGT"], atol=1e-4)


def test_a_wrong_rope_scaling_changes_the_log_probs_of_the_golden_model(tmp_path):
    config = json.loads((GOLDEN / "llama3" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(GOLDEN / "llama3" / "model.safetensors")
    policy = decoder_policy(read_shape(tmp_path))
    _, params = load_golden("llama3")
    rollouts, expected = read_expected("llama3")
    assert np.abs(score(policy, params, rollouts)[0] - expected["logprobs_PGT"]).max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_decoding_with_a_cache_gives_the_hidden_states_of_teacher_forcing(name):
    policy, params = load_golden(name)
    rollouts, _ = read_expected(name)
    tokens_PGT = rollouts.tokens_PGT
    _, prefix = policy.read(params, rollouts.prompts)
    _, hidden_PGTD = policy.respond(params, rollouts.prompts, tokens_PGT, rollouts.valid_PGT)
    (P, G, T), L = tokens_PGT.shape, prefix["valid_PL"].shape[1]
    shared, own = policy.cache(prefix, L + 3, G, T, int8=False)
    extend, served, start_PG = jax.jit(policy.extend), policy.serve(params), jnp.zeros((P, G), jnp.int32)
    for t in range(T):
        hidden_PGD, own = extend(served, shared, own, tokens_PGT[:, :, t], jnp.int32(t), start_PG)
        np.testing.assert_allclose(hidden_PGD, hidden_PGTD[:, :, t], atol=2e-4)


@pytest.mark.parametrize(("name", "platform"), [*((name, "cpu") for name in FAMILIES), ("mistral", "tpu")])
@pytest.mark.slow
def test_rows_may_start_at_any_cursor_of_the_ring_buffer(name, platform):
    policy, params = load_golden(name)
    extend = jax.jit(decoder_policy(read_shape(GOLDEN / name), platform=platform).extend)
    rollouts, _ = read_expected(name)
    tokens_PGT = rollouts.tokens_PGT
    _, prefix = policy.read(params, rollouts.prompts)
    _, hidden_PGTD = policy.respond(params, rollouts.prompts, tokens_PGT, rollouts.valid_PGT)
    (P, G, T), L = tokens_PGT.shape, prefix["valid_PL"].shape[1]
    shared, own = policy.cache(prefix, L, G, T, int8=False)
    start_PG = np.random.default_rng(0).integers(0, T, (P, G)) + T // 2
    served = policy.serve(params)
    for cursor in range(T // 2, 2 * T):
        index_PG = np.clip(cursor - start_PG, 0, T - 1)
        now_PG = np.take_along_axis(np.asarray(tokens_PGT), index_PG[:, :, None], axis=2)[:, :, 0]
        hidden_PGD, own = extend(served, shared, own, now_PG, jnp.int32(cursor), jnp.asarray(start_PG))
        active_PG = (start_PG <= cursor) & (cursor < start_PG + T)
        expected_PGD = np.take_along_axis(np.asarray(hidden_PGTD), index_PG[:, :, None, None], axis=2)[:, :, 0]
        np.testing.assert_allclose(np.asarray(hidden_PGD)[active_PG], expected_PGD[active_PG], atol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_moves_an_earlier_log_prob_or_another_row(name):
    policy, params = load_golden(name)
    rollouts, _ = read_expected(name)
    before_PGT = score(policy, params, rollouts)[0]
    changed_PGT = rollouts.tokens_PGT.at[1, 0, 10].add(1)
    after_PGT = score(policy, params, rollouts_of(rollouts.prompts, changed_PGT))[0]
    moved_PGT = np.array(before_PGT != after_PGT)
    assert moved_PGT[1, 0, 10:].all()
    moved_PGT[1, 0, 10:] = False
    assert not moved_PGT.any()


@pytest.mark.parametrize("layout", [Layout(1, 8, 1), Layout(1, 2, 4), Layout(2, 2, 2)])
def test_weights_read_shard_by_shard_equal_the_weights_read_whole(layout):
    _, whole = load_golden("qwen3")
    _, sharded = load_golden("qwen3", layout.mesh())
    assert any(len({str(s.index) for s in a.addressable_shards}) > 1 for a in jax.tree.leaves(sharded))
    jax.tree.map(np.testing.assert_array_equal, whole, sharded)


def test_log_probs_do_not_depend_on_the_size_of_a_chunk(monkeypatch):
    policy, params = load_golden("llama")
    rollouts, expected = read_expected("llama")
    monkeypatch.setattr("grpo_jax.learner.logprobs.CHUNK_TOKENS", 30)  # 5 positions of 6 rows, of 24
    logprobs_PGT, entropy_PGT = token_logprobs(policy, params, rollouts)
    np.testing.assert_allclose(logprobs_PGT, expected["logprobs_PGT"], atol=1e-4)
    np.testing.assert_allclose(entropy_PGT, expected["entropy_PGT"], atol=1e-4)


def write_config(directory: Path, **changes) -> Path:
    config = json.loads((GOLDEN / "llama" / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_old_and_new_rope_fields_give_the_same_shape(tmp_path):
    new = read_shape(GOLDEN / "llama3")
    fields = json.loads((GOLDEN / "llama3" / "config.json").read_text())["rope_parameters"]
    theta = fields.pop("rope_theta")
    old = {"rope_parameters": None, "rope_theta": theta, "rope_scaling": fields, "tie_word_embeddings": False}
    assert read_shape(write_config(tmp_path, **old)) == new


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "llama, qwen2, qwen3"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "'spiral' is not supported"),
        ({"hidden_act": "gelu"}, "only 'silu' is supported"),
    ],
)
def test_a_config_this_decoder_would_compute_differently_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        read_shape(write_config(tmp_path, **changes))


@pytest.mark.faults
def test_a_config_that_does_not_match_its_weights_is_refused(tmp_path):
    write_config(tmp_path, intermediate_size=81)
    (tmp_path / "model.safetensors").symlink_to(GOLDEN / "llama" / "model.safetensors")
    policy = decoder_policy(read_shape(tmp_path))
    shapes = policy.shapes
    with pytest.raises(ValueError, match=r"down_proj.weight has shape \[32, 80\]; its config.json says \[32, 81\]"):
        load_weights(tmp_path, shapes, weight_shardings(shapes, ONE))


@pytest.mark.faults
def test_weights_that_the_model_does_not_have_are_refused():
    shape = read_shape(GOLDEN / "llama")
    fewer = decoder_policy(shape.__class__(**{**shape.__dict__, "layers": 1}))
    shapes = fewer.shapes
    with pytest.raises(ValueError, match="no parameters for 9 of the weights"):
        load_weights(GOLDEN / "llama", shapes, weight_shardings(shapes, ONE))


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_those_of_an_installed_transformers(name):
    torch = pytest.importorskip("torch", reason="torch is not needed by users; the golden arrays stand in for it")
    from transformers import AutoModelForCausalLM

    policy, params = load_golden(name)
    rollouts, expected = read_expected(name)
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name).eval()
    row = np.concatenate([expected["prompts"][:3], expected["tokens_PGT"][0, 1]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor(row)[None]).logits[0, 2:-1], dim=-1)
    theirs_T = logprobs[torch.arange(24), torch.tensor(row[3:])].numpy()
    np.testing.assert_allclose(score(policy, params, rollouts)[0][0, 1], theirs_T, atol=1e-4)


@pytest.mark.parametrize(
    ("vectors", "outputs", "dtype", "platform", "result_dtype", "error"),
    [
        (32, 96, "float32", "cpu", None, 1e-6),
        (300, 96, "float32", "cpu", None, 1e-6),
        (300, 32, "float32", "cpu", None, 1e-6),
        (32, 96, "bfloat16", "cpu", "float32", 5e-3),
        (300, 96, "bfloat16", "tpu", "float32", 5e-3),
        (300, 96, "float32", "gpu", "float32", 1e-6),
    ],
)
def test_products_and_their_gradients_are_those_of_float64(vectors, outputs, dtype, platform, result_dtype, error):
    draw = np.random.default_rng(0)
    x, weight, grad = (draw.normal(size=size) for size in ((3, vectors, 64), (outputs, 64), (3, vectors, outputs)))
    x, weight = jnp.asarray(x, dtype), jnp.asarray(weight, dtype)
    y, vjp = jax.vjp(partial(project, platform=platform, result_dtype=result_dtype), x, weight)
    assert y.dtype == (result_dtype or dtype)
    exact = [np.asarray(a, np.float64) for a in (x, weight)]
    expected = [exact[0] @ exact[1].T, grad @ exact[1], np.einsum("brv,brd->vd", grad, exact[0])]
    for found, right in zip((y, *vjp(jnp.asarray(grad, y.dtype))), expected, strict=True):
        assert np.linalg.norm(np.asarray(found, np.float64) - right) < error * np.linalg.norm(right)


def test_policies_of_the_same_shape_share_their_compiled_programs():
    shape = read_shape(GOLDEN / "llama")
    assert isinstance(decoder_policy(shape), Policy)
    assert decoder_policy(shape) is decoder_policy(read_shape(GOLDEN / "llama"))


@pytest.mark.parametrize("name", ["mistral", "qwen3"])
def test_log_probs_by_the_tpu_kernel_are_those_of_transformers(name, monkeypatch):
    """All responses to a prompt are in one packed row; the kernel runs in an interpreter."""
    shape = read_shape(GOLDEN / name)
    monkeypatch.setattr(policy_module, "kernel", lambda *_: partial(attention.splash_rows, interpret=True))
    policy = policy_module._policy.__wrapped__(shape, jnp.float32, "full", "cpu", False, jnp.float32)
    _, params = load_golden(name)
    rollouts, expected = read_expected(name)
    P, G, T = rollouts.tokens_PGT.shape
    slots_PBW = np.arange(G * T, dtype=np.int32).reshape(1, 1, -1).repeat(P, axis=0)
    logprobs_PGT, entropy_PGT = score(policy, params, rollouts, slots_PBW)
    np.testing.assert_allclose(logprobs_PGT, expected["logprobs_PGT"], atol=1e-4)
    np.testing.assert_allclose(entropy_PGT, expected["entropy_PGT"], atol=1e-4)
