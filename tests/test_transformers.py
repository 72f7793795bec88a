"""An exported model is the same model in transformers 4 and in 5, and what these save is the same model here.

A version of transformers is an interpreter that has it, and torch. The variable TRANSFORMERS lists them, with ":"
between; without it the interpreter of the tests is used, if it has torch. `.ci/transformers` makes two.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

import grpo_jax as gj
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models.load import Model, Origin
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.weights import load_weights

GOLDEN = Path(__file__).parent / "golden"
SCRIPT = Path(__file__).parent / "in_transformers.py"
HERE = [sys.executable] if importlib.util.find_spec("torch") else []
VERSIONS = os.environ["TRANSFORMERS"].split(":") if "TRANSFORMERS" in os.environ else HERE
ONE = gj.Layout().mesh(jax.devices()[:1])
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
UNTIED = {"tie_word_embeddings": False}
OLDER = ["llama", "llama3", "mistral", "qwen2", "qwen3"]
SHAPES = json.loads((GOLDEN / "families" / "shapes.json").read_text())
VARIANTS = {  # a case -> the golden model that it is, and what differs in its config; None: the key is left out
    "glm4_untied": ("glm4", UNTIED | {"rope_parameters": None, "rope_theta": 1e6}),
    "exaone4_untied": ("exaone4", UNTIED | {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "phi3_untied": ("phi3", UNTIED | {"rope_scaling": None, "rope_theta": 1e6}),
    "olmo3_with_two_thetas": ("olmo3", {}),
    "olmo3": ("olmo3", UNTIED | {"rope_theta": 5e5, "rope_scaling": YARN}),
    "olmo3_of_another_theta": ("olmo3", {"rope_theta": 1e6, "rope_scaling": None}),
    "llama_linear": ("llama_biases", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "granite_yarn": ("granite", {"rope_theta": 1e6, "rope_scaling": YARN}),
    "gemma3_of_other_thetas": ("gemma3_text", {"rope_theta": 5e5, "rope_local_base_freq": 2e4}),
    "qwen3_with_layer_types": ("qwen3_sliding", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}),
}
# In transformers 4, layers with a window have the theta of the others; 5 takes 500,000 for them from older configs.
FIVE_ONLY = {"olmo3_with_two_thetas", "olmo3_with_two_thetas@5", "olmo3_of_another_theta@5"}
CASES = sorted({*SHAPES, *OLDER} - {"olmo3"} | VARIANTS.keys() | {"gemma3"})
STYLED = [f"{name}@5" for name in CASES if name != "gemma3"]  # with the config.json that transformers 5 writes
HALVES = ("gate_proj", "up_proj")
HARMLESS = re.compile(r"Setting `pad_token_id`|rope_scaling|rope_parameters|original_max_position_embeddings")

pytestmark = pytest.mark.slow
if not VERSIONS:
    pytest.skip("no interpreter with torch; `.ci/transformers` makes two", allow_module_level=True)


@dataclass(frozen=True)
class Case:
    """A model, what it was made of, and its logits of the last of each row of tokens."""

    source: Path
    model: Model
    params: dict
    logits_PV: np.ndarray


def config_of(name: str) -> dict:
    golden, changes = VARIANTS.get(name, (name, {}))
    config = json.loads((GOLDEN / "families" / f"{golden}.json").read_text()) | changes
    return {key: value for key, value in config.items() if value is not None}


def tensors_of(name: str, config: dict) -> dict[str, np.ndarray]:
    """Weights drawn by their names."""
    shapes = dict(SHAPES[VARIANTS.get(name, (name, {}))[0]])
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]

    def draw(key: str, shape: list[int]) -> np.ndarray:
        normal = np.random.default_rng(list(key.encode())).normal(size=shape)
        return (0.2 * normal + 0.5 * (len(shape) == 1)).astype(np.float32)

    return {key: draw(key, shape) for key, shape in shapes.items()}


def write_source(name: str, folder: Path) -> Path:
    """The model of a case as its makers publish it."""
    if name in OLDER:
        return shutil.copytree(GOLDEN / name, folder)
    folder.mkdir()
    config = config_of("gemma3_text" if name == "gemma3" else name)
    tensors = tensors_of("gemma3_text" if name == "gemma3" else name, config)
    if name == "gemma3":  # with a part that sees
        tensors = {key.replace("model.", "language_model.model.", 1): array for key, array in tensors.items()}
        tensors["vision_tower.patch.weight"] = np.ones((2, 2), np.float32)
        config.pop("model_type")
        config = {"model_type": "gemma3", "text_config": config, "architectures": ["Gemma3ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def made(source: Path) -> Case:
    shape = read_shape(source)
    policy = decoder_policy(shape)
    params = load_weights(source, policy.shapes, weight_shardings(policy.shapes, ONE))
    model = Model(policy, shape, gj.tiny().tokenizer, lambda mesh: params, Origin(str(source), source))
    ids_PL = np.random.default_rng(0).integers(3, 96, (2, 24)).astype(np.int32)
    last_PD, _ = policy.read(params, gj.Prompts(ids_PL, np.ones(ids_PL.shape, bool)))
    return Case(source, model, params, np.asarray(policy.unembed(params, last_PD)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def cases(folder) -> dict[str, Case]:
    """Every case, exported into a folder of its name."""
    found = {name: made(write_source(name, folder.parent / f"{folder.name}-{name}")) for name in CASES}
    for name in STYLED:
        old = found[name.removesuffix("@5")].source
        new = old.with_name(f"{old.name}@5")
        AutoConfig.from_pretrained(old).save_pretrained(new)
        shutil.copyfile(old / "model.safetensors", new / "model.safetensors")
        found[name] = made(new)
    tiny = gj.load("tiny")
    found["tiny"] = Case(folder, tiny, tiny.params(ONE), np.zeros(()))
    for name, case in found.items():
        ids_PL = np.random.default_rng(0).integers(3, 96, (2, 24))
        (folder / name).mkdir()
        (folder / name / "ids.json").write_text(json.dumps(ids_PL.tolist()))
        gj.export(case.model, case.params, folder / name / "float32")
        if name in CASES:
            gj.export(case.model, case.params, folder / name / "bfloat16", dtype="bfloat16")
    return found


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: Path(path).parent.parent.name)
def reports(request, folder, cases, tmp_path_factory) -> Path:
    """What one version finds in the exports."""
    out = tmp_path_factory.mktemp("reports")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or request.param == sys.executable}
    done = subprocess.run([request.param, SCRIPT, folder, out], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def read(reports: Path, name: str) -> dict:
    return json.loads((reports / name / "report.json").read_text())


@pytest.mark.parametrize("name", [*CASES, *STYLED])
def test_logits_are_the_same_and_nothing_is_missing(name, reports, cases):
    report = read(reports, name)
    assert report["info"] == {}  # weights that are missing, not used, or of another shape
    assert [line for line in report["warnings"] if not HARMLESS.search(line)] == []
    assert report["dtype"] == "torch.float32" and report["tied"] == cases[name].model.shape.tied
    assert report["architectures"] == [report["class"]]
    assert report["ends"] == cases[name].model.tokenizer.end_ids[0]
    close = np.allclose(np.load(reports / name / "logits.npy")[:, -1], cases[name].logits_PV, atol=1e-4)
    four = (reports / "version").read_text().startswith("4.")
    assert close == (not four or name not in FIVE_ONLY)


@pytest.mark.parametrize("name", CASES)
def test_weights_in_bfloat16_are_the_rounded_ones_bit_for_bit(name, reports, cases):
    assert read(reports, name)["rounded"] == "torch.bfloat16"
    files = cases[name].source.glob("*.safetensors")
    source = of_each_expert({key: array for file in files for key, array in load_file(file).items()})
    found = of_each_expert(dict(np.load(reports / name / "bits.npz")))
    for key, array in source.items():
        if not key.startswith("vision_tower."):
            bits = array.astype(ml_dtypes.bfloat16).view(np.int16)
            np.testing.assert_array_equal(found[key.removeprefix("language_model.")], bits)


def of_each_expert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as transformers 4 names them, where version 5 has one tensor for all experts of a layer."""
    found = {}
    for key, array in tensors.items():
        if not key.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            found[key] = array
            continue
        experts, _, name = key.rpartition(".")
        parts = (
            {"down_proj": array} if name == "down_proj" else dict(zip(HALVES, np.split(array, 2, axis=1), strict=True))
        )
        found |= {f"{experts}.{e}.{part}.weight": each[e] for part, each in parts.items() for e in range(len(array))}
    return found


@pytest.mark.parametrize("name", [*CASES, *STYLED])
def test_what_it_saves_is_the_same_model_here(name, reports, cases):
    saved = reports / name / "saved"
    if name in FIVE_ONLY and (reports / "version").read_text().startswith("4."):
        return
    shape, case = read_shape(saved), cases[name]
    assert shape == case.model.shape
    params = load_weights(saved, case.model.policy.shapes, weight_shardings(case.model.policy.shapes, ONE))
    jax.tree.map(np.testing.assert_array_equal, params, case.params)


@pytest.mark.parametrize("name", ["gemma3_text", "qwen2_sliding", "llama3"])
def test_greedy_tokens_are_the_same(name, reports, cases):
    case = cases[name]
    ids_PL = np.random.default_rng(0).integers(3, 96, (2, 24))[:1].astype(np.int32)
    sampler = gj.Sampler(case.model.tokenizer.end_ids, responses=1, max_tokens=6, temperature=0.0)
    prompts = gj.Prompts(ids_PL, np.ones(ids_PL.shape, bool))
    rollouts = sampler(case.model.policy, case.params, prompts, jax.random.key(0))
    assert read(reports, name)["generated"] == rollouts.tokens_PGT[0, 0].tolist()


def test_the_tokenizer_and_its_template_are_the_same(reports, cases):
    report, tokenizer = read(reports, "tiny"), cases["tiny"].model.tokenizer
    assert report["conversation"] == tokenizer.encode([{"role": "user", "content": "What is 16 + 6?"}])
    assert report["text"] == tokenizer.backend(" 16 + 6 = 22\n")["input_ids"]
    assert report["decoded"] == " 16 + 6 = 22\n"
    assert report["template"] == tokenizer.backend.chat_template
    assert report["inputs"] == ["attention_mask", "input_ids"]  # what `generate` takes
    assert report["card"].startswith("user: ...\nassistant:")  # the lines of the card run as they are
