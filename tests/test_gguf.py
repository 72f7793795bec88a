"""A GGUF file is read as the safetensors that it was made of: config, weights, tokenizer; what is broken is refused."""

import json
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_families import GOLDEN, loaded, seeded, tensors_of, text_of, write_model
from tokenizers import pre_tokenizers

import grpo_jax as gj
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models.from_gguf.folder import unpack
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.weights import load_weights
from grpo_jax.structs import Prompts

ONE = gj.Layout().mesh(jax.devices()[:1])
WORDS = 96  # of the vocabularies of the golden models
HEADS, KV_HEADS = 4, 2
# Golden models, and the architecture of their files. A GGUF file cannot say all that a config can: `CHANGES`.
ARCHITECTURES = {
    "llama_biases": "llama",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "granite": "granite",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "phi3": "phi3",
    "exaone4": "exaone4",
    "qwen3": "qwen3",
    "qwen2": "qwen2",
    "llama3": "llama",
}
CHANGES = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6},
    "smollm3": {"no_rope_layers": [1, 1, 1]},
    "olmo3": {"rope_theta": 10000.0},
}
PERMUTED = ("llama", "granite", "smollm3")


def source(name: str, folder: Path) -> Path:
    """The golden model as a directory of safetensors, with a config that a GGUF file can express."""
    if (GOLDEN.parent / name).is_dir():
        return GOLDEN.parent / name
    directory = write_model(folder, name)
    config = json.loads((directory / "config.json").read_text()) | CHANGES.get(name, {})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As `LlamaModel.permute` of llama.cpp's converter."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(name: str, directory: Path, path: Path, quantised: bool = False, **facts) -> Path:
    """The model of a directory as llama.cpp's converter writes it."""
    arch, config = ARCHITECTURES[name], json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (metadata(arch, config, directory) | facts).items():
        add(writer, key if key.startswith(("tokenizer.", "split.")) else f"{arch}.{key}", value)
    kind = next(kind for kind, text in gguf.MODEL_ARCH_NAMES.items() if text == arch)
    table = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    tensors = {key: a for file in directory.glob("*.safetensors") for key, a in load_file(file).items()}
    for key, weight in tensors.items():
        if key == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        weight = weight.astype(np.float32)
        if arch in PERMUTED and "_proj" in key and (".q_proj." in key or ".k_proj." in key):
            weight = permuted(weight, HEADS if ".q_proj." in key else config["num_key_value_heads"])
        if arch.startswith("gemma") and key.endswith("norm.weight"):
            weight = weight + 1
        theirs = table.get_name(key, try_suffixes=(".weight", ".bias"))
        if quantised and weight.ndim == 2 and weight.shape[1] % 32 == 0:  # in blocks of 32
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, weight)
    for key, values in factors(arch, config).items():
        writer.add_tensor(key, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    (kinds | {str: writer.add_string, list: writer.add_array})[type(value)](key, value)


def metadata(arch: str, config: dict, directory: Path) -> dict:
    """What the converter writes of a config.json (`set_gguf_parameters` of each of its classes)."""
    shape = read_shape(directory)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    facts = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
    }
    if arch not in ("gemma", "gemma2"):
        facts["rope.freq_base"] = float([span.rope for span in shape.spans if span.rope is not None][-1].theta)
    if "head_dim" in config:
        facts |= {"attention.key_length": shape.channels, "attention.value_length": shape.channels}
    if arch in PERMUTED:
        facts |= {"vocab_size": shape.vocabulary, "rope.dimension_count": shape.channels}
    if scaling.get("rope_type", scaling.get("type")) in ("linear", "yarn"):
        facts |= {"rope.scaling.type": scaling.get("rope_type", scaling.get("type"))}
        facts |= {"rope.scaling.factor": float(scaling["factor"])}
    if "original_max_position_embeddings" in scaling and arch in ("olmo2", "phi3"):
        facts |= {"rope.scaling.original_context_length": scaling["original_max_position_embeddings"]}
    if arch in ("gemma2", "gemma3", "phi3", "exaone4") or config["model_type"] == "olmo3":
        facts["attention.sliding_window"] = config["sliding_window"]
    if config["model_type"] in ("olmo3", "exaone4"):
        facts["attention.sliding_window_pattern"] = [span.window is not None for span in shape.spans]
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        facts |= {key: config[key]} if key in config else {}
    if arch == "granite":
        facts |= {"attention.scale": config["attention_multiplier"], "logit_scale": config["logits_scaling"]}
        facts |= {f"{key}_scale": config[f"{key}_multiplier"] for key in ("embedding", "residual")}
    if arch == "phi3":
        facts["rope.dimension_count"] = int(shape.channels * config["partial_rotary_factor"])
    return facts | vocabulary(shape.vocabulary)


def vocabulary(size: int) -> dict:
    """A tokenizer of bytes, with one merge and a chat template."""
    tokens = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())[: size - 4], "ab"][:size]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}<eos>{% endfor %}",
    }


def factors(arch: str, config: dict) -> dict[str, list[float]]:
    """What each frequency is divided by (`generate_extra_tensors`)."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if arch == "phi3":
        return {f"rope_factors_{kind}.weight": scaling[f"{kind}_factor"] for kind in ("long", "short")}
    if scaling.get("rope_type") != "llama3":
        return {}
    channels = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    found, theta = [], config.get("rope_theta", scaling.get("rope_theta"))
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    for wave in 2 * np.pi * theta ** (np.arange(0, channels, 2) / channels):
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = np.clip((original / wave - low) / (high - low), 0, 1)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": found}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of this test's own."""
    monkeypatch.setenv("GRPO_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gguf_file_is_the_model_that_it_was_made_of(name, tmp_path):
    directory = source(name, tmp_path)
    folder = unpack(write_gguf(name, directory, tmp_path / "model.gguf"))
    (policy, params), (expected_policy, expected) = loaded(folder), loaded(directory)
    if name == "llama3":  # its factors are a list there, and three numbers here
        np.testing.assert_allclose(logprobs(policy, params), logprobs(expected_policy, expected), atol=1e-4)
    else:
        assert read_shape(folder) == read_shape(directory)
    added = 2e-7 if name.startswith("gemma") else 0  # 1 is added to norms and taken away again
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=added), params, expected)


def logprobs(policy, params):
    tokens = jnp.arange(3, 40)[None]
    hidden = policy.respond(params, Prompts(tokens, tokens > 0), tokens[:, None], tokens[:, None] > 0)[1]
    return jax.nn.log_softmax(policy.unembed(params, hidden[0, 0]), axis=-1)


@pytest.mark.parametrize("name", ["granite", "exaone4", "phi3"])
@pytest.mark.slow
def test_log_probs_of_a_gguf_file_are_those_that_transformers_computed(name, tmp_path):
    policy, params = loaded(unpack(write_gguf(name, write_model(tmp_path, name), tmp_path / "model.gguf")))
    prompts, tokens_PGT, expected_TV = text_of(name)
    last_PD, hidden_PGTD = policy.respond(params, prompts, tokens_PGT, tokens_PGT >= 0)
    hidden_TD = jnp.concatenate([last_PD, hidden_PGTD[0, 0]])
    np.testing.assert_allclose(jax.nn.log_softmax(policy.unembed(params, hidden_TD), -1), expected_TV, atol=1e-4)


def test_quantised_weights_are_read_in_slices_as_the_gguf_package_dequantises_them(tmp_path):
    directory = source("granite", tmp_path)
    folder = unpack(write_gguf("granite", directory, tmp_path / "model.gguf", quantised=True))
    kind, (policy, one) = gguf.GGMLQuantizationType.Q8_0, loaded(folder)
    up_FD = tensors_of("granite")["model.layers.1.mlp.up_proj.weight"]
    rounded_FD = gguf.quants.dequantize(gguf.quants.quantize(up_FD, kind), kind)
    assert np.abs(rounded_FD - up_FD).max() > 1e-4
    np.testing.assert_array_equal(one["layers"]["feedforward"]["up_FD"][1], rounded_FD)
    mesh = gj.Layout(data=2, fsdp=2, tensor=2).mesh()
    sliced = load_weights(folder, policy.shapes, weight_shardings(policy.shapes, mesh))
    jax.tree.map(np.testing.assert_array_equal, one, sliced)


@pytest.fixture
def llama(tmp_path) -> Path:
    """A GGUF file with a tokenizer of bytes."""
    directory = tmp_path / "source"
    directory.mkdir()
    config = json.loads((GOLDEN / "llama_biases.json").read_text()) | {"vocab_size": 256}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = tensors_of("llama_biases")
    tensors |= {"model.embed_tokens.weight": seeded("model.embed_tokens.weight", (256, config["hidden_size"]))}
    save_file(tensors, directory / "model.safetensors")
    (tmp_path / "alone").mkdir()
    return write_gguf("llama_biases", directory, tmp_path / "alone" / "model.gguf")


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_gguf_file_or_its_folder_is_a_model_with_its_tokenizer_and_can_be_exported(whole_folder, llama, tmp_path):
    model = gj.load(str(llama.parent if whole_folder else llama))
    assert model.origin.base == str(llama.parent if whole_folder else llama)
    assert model.tokenizer.end_ids == (2,)
    ids = model.tokenizer.encode([{"role": "user", "content": "cab"}])
    pieces = model.tokenizer.backend.convert_ids_to_tokens(ids)
    assert pieces == ["c", "ab", "<eos>"]
    assert model.tokenizer.backend("cab")["input_ids"] == [1, *ids[:2]]
    params = model.params(ONE)
    out = gj.load(str(gj.export(model, params, tmp_path / "out")))
    assert (out.shape, out.tokenizer.encode("cab")) == (model.shape, model.tokenizer.encode("cab"))
    jax.tree.map(np.testing.assert_array_equal, out.params(ONE), params)
    assert sorted(path.name for path in llama.parent.iterdir()) == ["model.gguf"]  # nothing is written beside it


def test_a_tokenizer_beside_a_gguf_file_is_used_instead_of_its_own(llama):
    gj.load("tiny").tokenizer.backend.save_pretrained(llama.parent)
    with pytest.raises(ValueError, match="ids up to 258, and the model knows only 256"):
        gj.load(str(llama))


def cut_short(path: Path):
    path.write_bytes(path.read_bytes()[:-1000])
    return path, "is not a complete GGUF file .*cut short"


def cut_in_the_metadata(path: Path):
    path.write_bytes(path.read_bytes()[:300])
    return path, "is not a complete GGUF file"


def empty(path: Path):
    path.write_bytes(b"")
    return path, "is not a complete GGUF file"


def a_pointer(path: Path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return path, "git-lfs pointer"


def another_architecture(path: Path):
    rewritten(path, b"llama", b"mamba")
    return path, "general.architecture 'mamba' is not supported in a GGUF file; llama, qwen2, .* are"


def experts(path: Path):
    write_gguf("llama_biases", path.parent.parent / "source", path, expert_count=8)
    return path, "expert_count is 8, and what it changes in the model is not supported"


def another_rope(path: Path):
    write_gguf("llama_biases", path.parent.parent / "source", path, **{"rope.scaling.type": "spiral"})
    return path, "rotary positions scaled as 'spiral' are not supported"


def one_of_several_parts(path: Path):
    write_gguf("llama_biases", path.parent.parent / "source", path, **{"split.count": 3})
    return path, "is one of 3 parts of a model. Join them with `llama-gguf-split --merge`"


def an_unknown_tokenizer(path: Path):
    write_gguf("llama_biases", path.parent.parent / "source", path, **{"tokenizer.ggml.pre": "viking"})
    return path, "'viking'.*is not supported. Put the model's tokenizer.json"


def no_tokenizer(path: Path):
    rewritten(path, b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz")
    return path, "has no tokenizer .*beside it"


def a_missing_tensor(path: Path):
    rewritten(path, b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight")
    return path, "no parameters for 1 of the weights, such as blk.1.ffn_dawn.weight"


def two_files(path: Path):
    (path.parent / "other.gguf").write_bytes(path.read_bytes())
    return path.parent, "holds 2 GGUF files. Name one of them: .*model.gguf"


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    assert path.read_bytes().count(old)
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        cut_in_the_metadata,
        empty,
        a_pointer,
        another_architecture,
        experts,
        another_rope,
        one_of_several_parts,
        an_unknown_tokenizer,
        no_tokenizer,
        a_missing_tensor,
        two_files,
    ],
)
@pytest.mark.faults
def test_a_gguf_file_that_is_broken_or_not_supported_is_refused_with_its_name_and_a_way_out(damage, llama):
    path, message = damage(llama)
    with pytest.raises(ValueError, match=message) as raised:
        gj.load(str(path)).params(ONE)
    assert str(path) in str(raised.value)
