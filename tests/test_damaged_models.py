"""A model directory that is damaged or not to be trusted is refused in a sentence that names the file and a way out."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import grpo_jax as gj

ONE = gj.Layout().mesh(jax.devices()[:1])
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The parts of a model directory, as bytes by name, in one file and in shards."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"one": 1_000_000_000, "shards": 100_000}
    made = [gj.export(gj.load("tiny"), gj.tiny().params(ONE), folder / key, shard_bytes=n) for key, n in sizes.items()]
    return {path.name: {file.name: file.read_bytes() for file in path.iterdir()} for path in made}


@pytest.fixture
def model(whole, tmp_path):
    """A function that writes a model directory, in one file or in shards."""

    def write(kind: str):
        for name, content in whole[kind].items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return write


def change(directory, **tensors):
    """Adds or replaces tensors; None removes one."""
    found = load_file(directory / WEIGHTS) | tensors
    save_file({name: array for name, array in found.items() if array is not None}, directory / WEIGHTS)


def missing_shard(model):
    directory = model("shards")
    next(directory.glob("model-00002-of-*.safetensors")).unlink()
    return directory, r"index\.json lists weights that are not there: model-00002-of-.*download the model again"


def half_a_download(model):
    directory = model("one")
    (directory / WEIGHTS).rename(directory / f"{WEIGHTS}.incomplete")
    return directory, r"has no \*\.safetensors.*Add them"


def truncated_file(model):
    directory = model("one")
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-100])
    return directory, r"model\.safetensors is not a complete safetensors file.*download it again"


def wrong_shape(model):
    directory = model("one")
    change(directory, **{"model.norm.weight": np.ones(65, np.float32)})
    return directory, r"model\.safetensors: model\.norm\.weight has shape \[65\].*says \[64\]. Use the config\.json"


def extra_tensor(model):
    directory = model("one")
    change(directory, **{"model.vision.weight": np.ones(3, np.float32)})
    return directory, r"model\.safetensors: .*no parameters for 1 .*model\.vision\.weight. Remove the file"


def missing_tensor(model):
    directory = model("one")
    change(directory, **{"model.norm.weight": None})
    return directory, r"the weight model\.norm\.weight is in none of its files. Copy or download"


def index_of_another_model(model):
    directory = model("shards")
    index = json.loads((directory / INDEX).read_text())
    files = index["weight_map"]
    files["model.norm.weight"] = next(file for file in files.values() if file != files["model.norm.weight"])
    (directory / INDEX).write_text(json.dumps(index))
    return directory, r"model\.norm\.weight is not in it, although the index says so. Copy or download"


def pickle_only(model):
    directory = model("one")
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    return directory, r"only as pickles \(pytorch_model\.bin\).*Convert them to safetensors"


def code_of_its_own(model):
    directory = model("one")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "mine.Model"}}))
    return directory, r"config\.json asks for code of its own \(auto_map\).*delete auto_map"


def tokenizer_larger_than_the_embedding(model):
    directory = model("one")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 250}))
    return directory, "ids up to 258, and the model knows only 250. Use the tokenizer"


@pytest.mark.parametrize(
    "damage",
    [
        missing_shard,
        half_a_download,
        truncated_file,
        wrong_shape,
        extra_tensor,
        missing_tensor,
        index_of_another_model,
        pickle_only,
        code_of_its_own,
        tokenizer_larger_than_the_embedding,
    ],
)
@pytest.mark.faults
def test_a_damaged_model_is_refused_with_its_file_and_a_way_out(damage, model):
    directory, message = damage(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        gj.load(str(directory)).params(ONE)
    assert str(directory) in str(raised.value)


@pytest.mark.parametrize("kind", ["one", "shards"])
def test_the_same_directory_without_damage_loads(kind, model):
    params = gj.load(str(model(kind))).params(ONE)
    jax.tree.map(np.testing.assert_array_equal, params, gj.tiny().params(ONE))
