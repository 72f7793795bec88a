"""A model that is exported is the model, for this library and for transformers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

import grpo_jax as gj
from grpo_jax.cli import main
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models import exporting, families
from grpo_jax.models.families import NAMES
from grpo_jax.models.hf_config import with_both_ropes
from grpo_jax.models.load import Model, Origin
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.weights import load_weights

GOLDEN = Path(__file__).parent / "golden"
OLD = Path(__file__).parent / "data" / "run_of_0d0afb5" / "old"
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
QKV = {"query_HCD": "(HC)D", "key_KCD": "(KC)D", "value_KCD": "(KC)D"}
ONE = gj.Layout().mesh(jax.devices()[:1])


def loaded(directory: Path) -> tuple[Model, dict]:
    """The model in a directory with the tokenizer of `tiny`, and its parameters."""
    shape = read_shape(directory)
    policy = decoder_policy(shape)
    params = load_weights(directory, policy.shapes, weight_shardings(policy.shapes, ONE))
    return Model(policy, shape, gj.tiny().tokenizer, lambda mesh: params, Origin(str(directory), directory)), params


def tensors(directory: Path) -> dict[str, np.ndarray]:
    return {name: array for file in directory.glob("*.safetensors") for name, array in load_file(file).items()}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [1_000_000_000, 20_000], ids=["one file", "shards"])
def test_weights_come_back_bit_for_bit(name, shard_bytes, tmp_path):
    source = shutil.copytree(GOLDEN / name, tmp_path / "source")
    rounded = {key: array.astype(ml_dtypes.bfloat16) for key, array in tensors(source).items()}
    for file in source.glob("*.safetensors*"):
        file.unlink()
    save_file(rounded, source / "model.safetensors")
    model, params = loaded(source)
    out = gj.export(model, params, tmp_path / "out", dtype="bfloat16", shard_bytes=shard_bytes)
    found = tensors(out)
    expected = {key: value for key, value in rounded.items() if not (model.shape.tied and key == "lm_head.weight")}
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found[key].view(np.uint16), array.view(np.uint16))
    again, params_again = loaded(out)
    assert again.shape == model.shape
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    files = {path.name for path in out.glob("*.safetensors*")}
    assert ("model.safetensors.index.json" in files) == (len(files) > 1) == (shard_bytes == 20_000)
    for file in out.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_reads_the_same_config_from_an_export(name, tmp_path):
    model, params = loaded(GOLDEN / name)
    out = gj.export(model, params, tmp_path / "out")
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (GOLDEN / name, out))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed <= {"dtype", "torch_dtype", "rope_theta", "rope_scaling", "_name_or_path", "transformers_version"}
    written = json.loads((out / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == model.shape.rope.theta
    if model.shape.rope.scaling == "llama3":
        assert written["rope_scaling"] == written["rope_parameters"]
        assert written["rope_scaling"]["rope_theta"] == model.shape.rope.theta


def test_parameters_that_share_a_tensor_are_joined_in_the_order_of_the_table():
    """As in Phi-3: query, key and value are rows of one tensor, and so are gate and up."""
    params, shape = gj.tiny().params(ONE), gj.tiny().shape
    qkv = "model.layers.{n}.self_attn.qkv_proj.weight"
    fused = {f"layers/attention/{ours}": (qkv, axes) for ours, axes in QKV.items()}
    found = {tensor.name: tensor for tensor in exporting._tensors(params, NAMES | fused, shape)}
    attention = params["layers"]["attention"]
    expected = np.concatenate([np.asarray(attention[ours])[1].reshape(-1, shape.width) for ours in QKV])
    np.testing.assert_array_equal(found[qkv.format(n=1)].read(), expected)
    assert found[qkv.format(n=1)].shape == expected.shape
    with pytest.raises(ValueError, match="parameter extra_D has no name"):
        list(exporting._tensors(params | {"extra_D": params["norm_D"]}, NAMES, shape))


def test_an_export_does_not_depend_on_how_the_weights_are_divided(tmp_path):
    model = gj.load("tiny")
    for name, layout in {"one": None, "eight": gj.Layout(data=1, fsdp=4, tensor=2)}.items():
        gj.export(model, model.params(ONE if layout is None else layout.mesh()), tmp_path / name)
    one, eight = tensors(tmp_path / "one"), tensors(tmp_path / "eight")
    assert one.keys() == eight.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, eight[name])


def test_both_kinds_of_rotary_settings_are_written_from_either():
    llama, gemma3, smollm3 = (families.FAMILIES[name] for name in ("llama", "gemma3_text", "smollm3"))
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 8.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0}}
    assert with_both_ropes(old, llama) == with_both_ropes(new, llama)
    whole = {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0}
    assert with_both_ropes(old, llama) == {"rope_theta": 5e5, "rope_scaling": whole, "rope_parameters": whole}
    kinds = with_both_ropes({"rope_theta": 1e6, "rope_local_base_freq": 1e4}, gemma3)["rope_parameters"]
    assert (kinds["full_attention"]["rope_theta"], kinds["sliding_attention"]["rope_theta"]) == (1e6, 1e4)
    back = with_both_ropes({"rope_parameters": kinds}, gemma3)
    assert (back["rope_theta"], back["rope_local_base_freq"]) == (1e6, 1e4)
    scaled = with_both_ropes({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, smollm3)
    assert scaled["rope_theta"] == scaled["rope_scaling"]["rope_theta"] == 2e6  # the family's


def test_rows_of_padding_and_the_head_of_a_tied_model_are_not_written(tmp_path):
    model, params = gj.load("tiny"), gj.tiny().params(ONE)
    padded = params | {"embed_VD": np.pad(params["embed_VD"], ((0, 5), (0, 0)))}
    padded["head_VD"] = padded["embed_VD"]
    out = gj.export(model, padded, tmp_path / "out")
    assert tensors(out)["model.embed_tokens.weight"].shape == params["embed_VD"].shape
    assert "lm_head.weight" not in tensors(out)
    jax.tree.map(np.testing.assert_array_equal, gj.load(str(out)).params(ONE), params)


def test_the_files_of_the_tokenizer_are_copied_as_they_are(tmp_path):
    source = shutil.copytree(GOLDEN / "llama", tmp_path / "source")
    files = {
        "tokenizer.json": "{ }",
        "tokenizer_config.json": '{"a":  1}',
        "chat_template.jinja": "x\r\n",
        "LICENSE": "l",
    }
    for file, text in files.items():
        (source / file).write_bytes(text.encode())
    (source / "generation_config.json").write_text('{"eos_token_id": 2, "top_k": 5}')
    model, params = loaded(source)
    out = gj.export(model, params, tmp_path / "out")
    assert {file: (out / file).read_bytes().decode() for file in files} == files
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, *model.tokenizer.end_ids], "top_k": 5}


def test_a_run_is_exported_with_its_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # this process has started its backend
    run = shutil.copytree(OLD, tmp_path / "old")
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--step", "3"]) == 0
    model = gj.load(str(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, model.params(ONE), gj.load(str(run)).params(ONE))
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "Base model: tiny",
        "Weights of step 3",
        "step 3",
        "use: arithmetic",
        "grpo-jax train",
        "AutoTokenizer",
    ):
        assert part in card
    assert str(tmp_path) not in card
    messages = [{"role": "user", "content": "3 + 4"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert theirs == model.tokenizer.encode("3 + 4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--out", "HERE"], "exists already"),
        (["tiny", "--out", "NEW", "--step", "3"], "--step names a step of a run"),
        (["tiny", "--out", "NEW", "--push", "nowhere"], "named org/name; got 'nowhere'"),
        (["no/where/at/all", "--out", "NEW"], "is none of them"),
    ],
)
@pytest.mark.faults
def test_what_cannot_be_exported_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    places = {"HERE": str(tmp_path), "NEW": str(tmp_path / "new")}
    assert main(["export", *(places.get(each, each) for each in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(exporting, "card", fail)
    with pytest.raises(OSError, match="No space"):
        gj.export(gj.load("tiny"), gj.tiny().params(ONE), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
import jax
import grpo_jax as gj
from grpo_jax.models import exporting
exporting._sync = lambda folder: (print("written", flush=True), time.sleep(60))
params = gj.tiny().params(gj.Layout().mesh(jax.devices()[:1]))
gj.export(gj.load("tiny"), params, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.faults
def test_an_export_that_is_killed_leaves_no_directory_of_its_name(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out")], stdout=subprocess.PIPE, env=os.environ, text=True
    )
    with child:
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    out = gj.export(gj.load("tiny"), gj.tiny().params(ONE), tmp_path / "out")
    assert (out / "model.safetensors").is_file()
