"""A model family, a reward or a task can be added from outside the package, without changing any of its files."""

import functools
import json
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from grpo_jax.config import read
from grpo_jax.devices.mesh import Layout
from grpo_jax.models import decoder_policy, families, load
from grpo_jax.models.families import NAMES, Family, everywhere
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.tokenizer import byte_tokenizer
from grpo_jax.rewards import Example, score

CONFIG = {
    "model_type": "pebble",
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "local_positions": 8,
}


def hugging_face_tensors(params) -> dict[str, np.ndarray]:
    """The parameters as the tensors of a Hugging Face file: one for each layer, with merged axes."""
    tensors = {}
    for path, a in jax.tree_util.tree_leaves_with_path(params):
        name, axes = NAMES["/".join(str(entry.key) for entry in path)]
        layers = {name.format(n=n): a[n] for n in range(len(a))} if "{n}" in name else {name: a}
        for key, layer in layers.items():
            matrix = layer.reshape(-1, layer.shape[-1]) if axes.startswith("(") else layer
            tensors[key] = np.array(matrix.reshape(len(matrix), -1) if axes.endswith(")") else matrix)
    return tensors


def test_a_row_of_families_is_enough_to_load_a_model_of_that_family(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    byte_tokenizer().backend.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'pebble' is not supported"):
        read_shape(tmp_path)
    pebble = Family({"head_norm": True}, local=everywhere, window="local_positions")
    monkeypatch.setitem(families.FAMILIES, "pebble", pebble)
    params = decoder_policy(read_shape(tmp_path)).init(jax.random.key(0))
    save_file(hugging_face_tensors(params), tmp_path / "model.safetensors")
    model = load(str(tmp_path))
    assert (model.shape.window, model.shape.head_norm, model.shape.attention_bias) == (8, True, False)
    jax.tree.map(np.testing.assert_array_equal, model.params(Layout().mesh(jax.devices()[:1])), params)


def config_with(folder: Path, module: str, code: str, config: str) -> Path:
    """A config file, beside a module of the user that it can name."""
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    (folder / "config.yaml").write_text(textwrap.dedent(config))
    return folder / "config.yaml"


def test_a_function_of_example_and_response_is_a_reward_of_a_config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = config_with(
        tmp_path,
        "rewards_of_a_user",
        """
        def brevity(example, response, budget: int = 10) -> float:
            return max(0.0, 1 - len(response) / budget)
        """,
        """
        task: {use: arithmetic}
        train: {steps: 1}
        rewards:
          - {use: "rewards_of_a_user:brevity", budget: 4, weight: 0.5}
        """,
    )
    (part,) = read(config).rewards
    reward = part.build()
    assert isinstance(reward, functools.partial)
    np.testing.assert_array_equal(score(reward, [Example("Hi")], [["a", "abcd"]]), [[[0.75], [0.0]]])
    assert part.weight == 0.5


def test_a_function_that_returns_a_task_is_a_task_of_a_config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = config_with(
        tmp_path,
        "tasks_of_a_user",
        """
        from grpo_jax.rewards import Mix, exact
        from grpo_jax.tasks import Example, Task


        def capitals(country: str = "France", capital: str = "Paris") -> Task:
            example = Example(f"What is the capital of {country}?", capital)
            return Task([example], [], Mix(((exact, 1.0),)))
        """,
        """
        task: {use: "tasks_of_a_user:capitals", country: Italy, capital: Rome}
        train: {steps: 1}
        """,
    )
    task = read(config).task.build()
    assert task.train[0].prompt == "What is the capital of Italy?"
    np.testing.assert_array_equal(score(task.reward, task.train, [["Rome", "Milan"]]), [[[1.0], [0.0]]])
