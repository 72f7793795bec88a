"""Adapters leave as files that `peft` loads, and come from such files. The oracle is W + factor B A in NumPy."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import grpo_jax as gj
from grpo_jax.cli import main
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models import find_shape, hub
from grpo_jax.models.load import Model, Origin
from grpo_jax.models.lora import INPUTS, Lora, merged
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.structs import TrainState
from grpo_jax.training.checkpoint import Checkpoints, Keep
from grpo_jax.training.resuming import Fingerprint, write_fingerprint

GOLDEN = Path(__file__).parent / "golden"
ONE = gj.Layout().mesh(jax.devices()[:1])
PLAIN = json.loads((Path(__file__).parent / "data" / "adapter_config.json").read_text())  # as PEFT 0.21 saves it
UNTIED = {"tie_word_embeddings": False}
BASES = {
    "llama": ("llama_biases", {}),
    "untied": ("qwen3_dynamic", UNTIED),
    "gemma2": ("gemma2", {}),
    "phi3": ("phi3", UNTIED | {"rope_scaling": None, "rope_theta": 1e4}),
    "glm4": ("glm4", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "gemma3": ("gemma3_text", {}),
}
CASES = {  # a base, and which of its weights are adapted
    "llama": ("llama", "all"),
    "untied": ("untied", "all"),
    "gemma2": ("gemma2", "all"),
    "phi3": ("phi3", "all"),
    "phi3_in_part": ("phi3", ["query", "value", "up", "out"]),
    "glm4": ("glm4", "all"),
    "qwen2_moe": ("qwen2_moe", "attention"),
}


def write_base(name: str, folder: Path) -> Path:
    """A random model of a family with a tokenizer, as transformers reads it."""
    golden, changes = BASES[name]
    source = folder / f"{name}_source"
    source.mkdir()
    config = json.loads((GOLDEN / "families" / f"{golden}.json").read_text()) | changes | {"vocab_size": 300}
    (source / "config.json").write_text(json.dumps(config))
    gj.tiny().tokenizer.backend.save_pretrained(source)
    policy = decoder_policy(read_shape(source))
    params = jax.jit(policy.init)(jax.random.key(0))
    model = Model(policy, read_shape(source), gj.tiny().tokenizer, lambda mesh: params, Origin(str(source), source))
    return gj.export(model, params, folder / name)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(name, folder) for name in sorted({base for base, _ in CASES.values()})}


def stirred(params: dict) -> dict:
    """The parameters with adapters that are not zero."""
    leaves, tree = jax.tree.flatten(params["lora"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return params | {"lora": jax.tree.unflatten(tree, drawn)}


def tensors(directory: Path) -> dict[str, np.ndarray]:
    return {name: array for file in directory.glob("*.safetensors") for name, array in load_file(file).items()}


def added(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """The tensors of the base with the adapter added, as PEFT says in its documentation what its files mean."""
    config, found, whole = json.loads((adapter / "adapter_config.json").read_text()), tensors(adapter), tensors(base)
    for name in sorted(found):
        if ".lora_A." not in name:
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        last = module.rpartition(".")[2]
        rank = config["rank_pattern"].get(last, config["r"])
        alpha = config["alpha_pattern"].get(last, config["lora_alpha"])
        a_AD, b_FA = (np.float64(found[name.replace("lora_A", which)]) for which in ("lora_A", "lora_B"))
        assert len(a_AD) == rank
        factor = alpha / (rank**0.5 if config["use_rslora"] else rank)
        whole[f"{module}.weight"] = whole[f"{module}.weight"] + factor * b_FA @ a_AD
    return whole


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_adapters_come_back_bit_for_bit_and_their_files_mean_what_the_merged_export_is(case, bases, tmp_path):
    name, targets = CASES[case]
    lora = {"rank": 3, "alpha": 5.0, "targets": targets}
    model = gj.load(str(bases[name]), lora=lora)
    params = stirred(model.params(ONE))
    out = gj.export(model, params, tmp_path / "adapter", adapter=True)
    assert {path.name for path in out.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    again = gj.load(str(out), lora=lora)
    assert again.lora == model.lora and again.origin.base == str(bases[name])
    jax.tree.map(np.testing.assert_array_equal, again.params(ONE), params)
    whole = gj.export(model, params, tmp_path / "whole")
    assert_close(tensors(whole), added(bases[name], out))
    loaded = gj.load(str(out))
    assert loaded.lora is None and loaded.first_weights == str(out)
    jax.tree.map(np.testing.assert_array_equal, loaded.params(ONE), merged(params, model.lora))
    assert find_shape(str(out)) == model.shape


@pytest.mark.slow
@pytest.mark.long
def test_adapters_do_not_depend_on_how_they_are_divided(bases, tmp_path):
    lora, mesh = {"rank": 4, "alpha": 4.0}, gj.Layout(data=1, fsdp=4, tensor=2).mesh()
    model = gj.load(str(bases["phi3"]), lora=lora)
    params = stirred(model.params(ONE))
    divided = jax.device_put(params, weight_shardings(params, mesh))
    for name, each in {"one": params, "eight": divided}.items():
        gj.export(model, each, tmp_path / name, adapter=True)
    for name, array in tensors(tmp_path / "one").items():
        np.testing.assert_array_equal(array, tensors(tmp_path / "eight")[name])
    found = gj.load(str(tmp_path / "one"), lora=lora).params(mesh)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(str(a.sharding)), found, divided)


def write_peft(base: Path, out: Path, ranks: dict[str, int], **changes) -> Path:
    """An adapter as PEFT saves it: of all layers, with a rank for each module (by its last name)."""
    rng, found = np.random.default_rng(0), {}
    for name, weight in tensors(base).items():
        module = name.removesuffix(".weight")
        if (rank := ranks.get(module.rpartition(".")[2])) is not None and weight.ndim == 2:
            a_AD, b_FA = rng.normal(size=(rank, weight.shape[1])), 0.2 * rng.normal(size=(weight.shape[0], rank))
            found[f"base_model.model.{module}.lora_A.weight"] = a_AD.astype(np.float32)
            found[f"base_model.model.{module}.lora_B.weight"] = b_FA.astype(np.float32)
    out.mkdir()
    known = {"base_model_name_or_path": str(base), "r": max(ranks.values()), "target_modules": sorted(ranks)}
    (out / "adapter_config.json").write_text(json.dumps(PLAIN | known | changes))
    save_file(found, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


ATTENTION = {"q_proj": 4, "k_proj": 4, "v_proj": 4, "o_proj": 4}


@pytest.mark.parametrize(
    ("base", "ranks", "changes", "settings"),
    [
        ("llama", ATTENTION, {"lora_alpha": 8}, Lora(4, 8.0, "attention")),
        ("llama", {"down_proj": 4}, {"lora_alpha": 8, "use_rslora": True}, Lora(4, 16.0, ["down"])),
        (
            "untied",
            {"q_proj": 2, "o_proj": 5},
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"self_attn.q_proj": 7, "q_proj": 7}},
            Lora(5, 8.0, ["query", "out"]),
        ),
        ("phi3", {"qkv_proj": 4, "down_proj": 4}, {}, Lora(4, 8.0, ["query", "key", "value", "down"])),
    ],
    ids=["plain", "rslora", "ranks", "shared"],
)
@pytest.mark.slow
def test_an_adapter_of_peft_is_what_its_files_say(base, ranks, changes, settings, bases, tmp_path):
    adapter = write_peft(bases[base], tmp_path / "adapter", ranks, **changes)
    model = gj.load(str(adapter))
    whole = gj.export(model, model.params(ONE), tmp_path / "whole")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["alpha_pattern"] = {key: value for key, value in config["alpha_pattern"].items() if "." not in key}
    wanted = tmp_path / "wanted"  # with keys that the oracle looks up
    shutil.copytree(adapter, wanted)
    (wanted / "adapter_config.json").write_text(json.dumps(config))
    assert_close(tensors(whole), added(bases[base], wanted))
    again = gj.load(str(adapter), lora=asdict(settings))
    assert again.lora == settings
    jax.tree.map(np.testing.assert_array_equal, merged(again.params(ONE), settings), model.params(ONE))


def test_ranks_that_are_filled_up_stay_as_they_are_when_they_are_trained(bases, tmp_path):
    adapter = write_peft(bases["llama"], tmp_path / "adapter", {"q_proj": 2, "o_proj": 5}, r=5)
    model = gj.load(str(adapter), lora={"rank": 5, "alpha": 8.0, "targets": ["query", "out"]})
    params = model.params(ONE)
    prompts = gj.Prompts(np.arange(6)[None], np.ones((1, 6), bool))

    def loss(adapters):
        last_PD, _ = model.policy.read(params | {"lora": adapters}, prompts)
        return last_PD.sum()

    query = jax.jit(jax.grad(loss))(params["lora"])["layers"]["attention"]["query_HCD"]
    assert all(np.abs(a).max() > 0 for a in query.values())
    np.testing.assert_array_equal(query["lora_a_AD"][:, 2:], 0)
    np.testing.assert_array_equal(query["lora_b_HCA"][..., 2:], 0)


def test_adapters_of_a_model_with_other_parts_are_those_of_its_language_model(tmp_path):
    """In Gemma-3 with its vision part, whose modules have the same last names: transformers 5 names them so."""
    text = write_base("gemma3", tmp_path)
    base = shutil.copytree(text, tmp_path / "base")
    config = json.loads((text / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": config, "architectures": ["Gemma3ForConditionalGeneration"]}
    (base / "config.json").write_text(json.dumps(config))
    named = {f"language_model.{name}": array for name, array in tensors(text).items()}
    save_file(named | {"vision_tower.patch.weight": np.ones((2, 2), np.float32)}, base / "model.safetensors")
    lora = {"rank": 2, "targets": ["query"]}
    model = gj.load(str(base), lora=lora)
    params = stirred(model.params(ONE))
    out = gj.export(model, params, tmp_path / "adapter", adapter=True)
    modules = [f"model.language_model.layers.{n}.self_attn.q_proj" for n in range(3)]
    assert json.loads((out / "adapter_config.json").read_text())["target_modules"] == modules
    ours = {f"base_model.model.{module}.lora_{which}.weight" for module in modules for which in "AB"}
    assert tensors(out).keys() == ours
    jax.tree.map(np.testing.assert_array_equal, gj.load(str(out), lora=lora).params(ONE), params)
    older = {name.replace("model.language_model.", "language_model.model."): a for name, a in tensors(out).items()}
    save_file(older, out / "adapter_model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, gj.load(str(out), lora=lora).params(ONE), params)


def test_an_adapter_comes_from_the_hub_and_the_embedded_model_is_known_by_its_name_there(bases, tmp_path, monkeypatch):
    adapter = write_peft(bases["llama"], tmp_path / "adapter", ATTENTION)
    monkeypatch.setattr(hub, "_download", lambda repository, local_files_only: adapter)
    wanted = gj.load(str(adapter)).params(ONE)
    jax.tree.map(np.testing.assert_array_equal, gj.load("someone/adapter").params(ONE), wanted)
    monkeypatch.setattr(hub.smollm2, "fetch", lambda: bases["llama"])
    model = gj.load("smollm2-135m-instruct", lora={"rank": 2})
    out = gj.export(model, model.params(ONE), tmp_path / "out", adapter=True)
    named = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (
        'AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in (out / "README.md").read_text()
    )
    assert gj.load(str(out)).origin.base == "smollm2-135m-instruct"


def run_of_adapters(base: str, folder: Path) -> tuple[Path, Model, dict]:
    """A run directory with adapters of a base in its one checkpoint, their settings, and all parameters."""
    model = gj.load(base, lora={"rank": 2, "alpha": 4.0})
    params = stirred(model.params(ONE))
    folder.mkdir()
    write_fingerprint(folder, folder.name, Fingerprint({}), model)
    checkpoints = Checkpoints(folder / "checkpoints", Keep(1), model.policy.frozen)
    checkpoints.save(3, TrainState(np.int32(3), params, ()))
    checkpoints.close()
    return folder, model, params


@pytest.mark.slow
def test_the_command_writes_the_adapters_of_a_run_or_all_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # this process has started its backend
    run, model, params = run_of_adapters("tiny", tmp_path / "run")
    assert main(["export", str(run), "--out", str(tmp_path / "whole")]) == 0
    whole = gj.load(str(tmp_path / "whole")).params(ONE)
    jax.tree.map(np.testing.assert_array_equal, whole, merged(params, model.lora))
    assert main(["export", str(run), "--out", str(tmp_path / "adapter"), "--adapter", "--dtype", "bfloat16"]) == 0
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="np") as found:
        told = json.loads(found.metadata()["grpo_jax"])
    assert told == {"digest": "tiny", "targets": list(INPUTS)}
    card = (tmp_path / "adapter" / "README.md").read_text()
    for part in ("library_name: peft", "trained by GRPO: run", 'PeftModel.from_pretrained(model, "DIRECTORY")'):
        assert part in card
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "adapter"), "3 + 4", "--max-tokens", "2"]) == 0
    assert main(["export", "tiny", "--out", str(tmp_path / "none"), "--adapter"]) == 2
    assert "tiny has no adapters" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_that_goes_on_with_the_adapters_of_another_keeps_the_base_of_these(tmp_path, monkeypatch, capsys):
    """The base is itself a run: its weights are meant, not those of the model that it was trained from."""
    first = shutil.copytree(Path(__file__).parent / "data" / "run_of_0d0afb5" / "old", tmp_path / "first")
    second, _, params = run_of_adapters(str(first), tmp_path / "second")
    model = gj.load(str(second), lora={"rank": 2, "alpha": 4.0})
    assert model.origin.base == f"{first}@3" and model.first_weights == f"{second}@3"
    jax.tree.map(np.testing.assert_array_equal, model.params(ONE), params)
    assert find_shape(str(second)) == model.shape
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # this process has started its backend
    assert main(["export", str(second), "--out", str(tmp_path / "for_peft"), "--adapter"]) == 0
    assert f"grpo-jax export {first}@3 --out DIRECTORY writes that" in capsys.readouterr().err
    out = gj.export(model, params, tmp_path / "adapter", adapter=True)
    jax.tree.map(np.testing.assert_array_equal, gj.load(str(out), lora=asdict(model.lora)).params(ONE), params)


def edit(adapter: Path, **changes) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without(adapter: Path, ending: str) -> None:
    found = tensors(adapter)
    name = next(name for name in sorted(found) if name.endswith(ending))
    del found[name]
    save_file(found, adapter / "adapter_model.safetensors")


def another(adapter: Path, name: str, shape: tuple[int, ...]) -> None:
    save_file(tensors(adapter) | {name: np.zeros(shape, np.float32)}, adapter / "adapter_model.safetensors")


def as_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: edit(a, peft_type="IA3"), "peft_type is 'IA3', and only LORA is supported.*merge_and_unload"),
        (lambda a: edit(a, use_dora=True), "use_dora is True, and this changes"),
        (lambda a: edit(a, modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]"),
        (lambda a: edit(a, bias="all"), "bias is 'all'"),
        (lambda a: edit(a, layers_to_transform=[0]), r"layers_to_transform is \[0\]"),
        (lambda a: edit(a, init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        (lambda a: edit(a, something_new=2), "something_new is 2"),
        (lambda a: edit(a, alpha_pattern={"q.*": 3}), "alpha_pattern must hold the names of modules"),
        (lambda a: edit(a, r=None), "r is missing"),
        (lambda a: edit(a, lora_alpha=0), "lora_alpha must be a finite number above 0"),
        (lambda a: edit(a, base_model_name_or_path=""), "base_model_name_or_path must name the model"),
        (
            lambda a: edit(a, base_model_name_or_path="no/where/at/all"),
            "is an adapter of no/where/at/all.*none of them",
        ),
        (lambda a: edit(a, base_model_name_or_path=str(a)), "which is an adapter itself"),
        (lambda a: edit(a, base_model_name_or_path="tiny"), "is the adapter of nothing that tiny has"),
        (lambda a: without(a, "lora_B.weight"), "lora_B.weight is missing, as all layers are adapted alike"),
        (lambda a: another(a, "base_model.model.lm_head.lora_A.weight", (2, 32)), "lm_head.*is the adapter of nothing"),
        (lambda a: another(a, f"{Q_PROJ}.lora_B.weight", (32, 7)), r"have the shapes \[4, 32\] and \[32, 7\]"),
        (lambda a: another(a, f"{Q_PROJ}.lora_A.weight", (4,)), r"have the shapes \[4\] and"),
        (as_pickle, "only as pickles"),
        (lambda a: (a / "adapter_model.safetensors").unlink(), "has no .*safetensors"),
    ],
)
@pytest.mark.faults
def test_an_adapter_that_would_be_something_else_here_is_refused_in_a_sentence(damage, message, bases, tmp_path):
    adapter = write_peft(bases["llama"], tmp_path / "adapter", ATTENTION)
    gj.load(str(adapter))
    damage(adapter)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gj.load(str(adapter))


@pytest.mark.faults
def test_an_adapter_of_ours_is_refused_where_its_base_has_changed(bases, tmp_path):
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    model = gj.load(str(base), lora={})
    out = gj.export(model, model.params(ONE), tmp_path / "adapter", adapter=True)
    gj.load(str(out))
    save_file({name: array + 1 for name, array in tensors(base).items()}, base / "model.safetensors")
    with pytest.raises(ValueError, match=r"adapters in .*adapter were trained on other weights than .*base has now"):
        gj.load(str(out))


@pytest.mark.faults
def test_other_settings_than_those_of_the_adapter_are_refused(bases, tmp_path):
    adapter = write_peft(bases["llama"], tmp_path / "adapter", ATTENTION)
    with pytest.raises(ValueError, match=r"write model\.lora: \{rank: 4, alpha: 8, targets: attention\}"):
        gj.load(str(adapter), lora={"rank": 8})


@pytest.mark.faults
def test_adapters_of_experts_are_not_written_and_those_of_some_experts_not_read(bases, tmp_path):
    model = gj.load(str(bases["qwen2_moe"]), lora={"rank": 2})
    with pytest.raises(ValueError, match=r"Adapters of experts have no settled names in PEFT.*adapter=True"):
        gj.export(model, model.params(ONE), tmp_path / "out", adapter=True)
    assert list(tmp_path.iterdir()) == []
    adapter = write_peft(bases["qwen2_moe"], tmp_path / "adapter", {"gate_proj": 2})
    with pytest.raises(ValueError, match=r"experts.0.gate_proj.* is the adapter of nothing"):
        gj.load(str(adapter))
    shared = {name: array for name, array in tensors(adapter).items() if "shared" in name}
    save_file(shared, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapts some weights called gate.*, and not layers/feedforward/gate_EFD"):
        gj.load(str(adapter))
