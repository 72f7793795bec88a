"""Loading of weights: what memory it needs beside what is kept, every dtype, blocks, and slices for devices."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_families import write_model

from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models import weights
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.weights import load_weights

GOLDEN = Path(__file__).parent / "golden"
LAYERS, WIDTH, FEEDFORWARD, WORDS = 8, 1024, 4096, 32_000
LARGEST = 4 * max(LAYERS * FEEDFORWARD * WIDTH, WORDS * WIDTH)  # bytes in float32 of the largest parameter
PROGRAM = """
import sys, time
from pathlib import Path

import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))

from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models import weights
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.weights import load_weights

directory = Path(sys.argv[1])
mesh = Layout(fsdp=-1, tensor=int(sys.argv[3])).mesh()
policy = decoder_policy(read_shape(directory))
shardings = weight_shardings(policy.shapes, mesh)
jax.block_until_ready(jax.device_put([1.0] * 8))
print("ready", flush=True)
sys.stdin.readline()
params = jax.block_until_ready(load_weights(directory, policy.shapes, shardings))
shards = [shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
print(sum(shards), flush=True)
"""


def write_sharded(directory: Path) -> None:
    """A Llama of 330 MB in bfloat16, in four files: each holds every fourth tensor."""
    config = json.loads((GOLDEN / "llama" / "config.json").read_text())
    config |= {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": FEEDFORWARD, "head_dim": 64}
    config |= {"num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 8}
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    shapes = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    for n in range(LAYERS):
        layer = {f"mlp.{part}_proj": (FEEDFORWARD, WIDTH) for part in ("gate", "up")}
        layer |= {"mlp.down_proj": (WIDTH, FEEDFORWARD)}
        layer |= {f"self_attn.{part}_proj": (WIDTH // 2, WIDTH) for part in "kv"}
        layer |= {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qo"}
        layer |= {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
        shapes |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    files = [f"model-{number}.safetensors" for number in range(4)]
    places = {name: files[index % 4] for index, name in enumerate(shapes)}
    for file in files:
        mine = {name: np.ones(shapes[name], ml_dtypes.bfloat16) for name, place in places.items() if place == file}
        save_file(mine, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def private_bytes(pid: int) -> int:
    """The memory of a process but for the pages of files, which the kernel takes back when it needs them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize(("devices", "tensor"), [(1, 1), (4, 2)])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Memory is read from /proc.")
@pytest.mark.slow
def test_loading_needs_little_beside_what_is_kept(devices, tensor, tmp_path):
    write_sharded(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(devices), str(tensor)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        before = peak = private_bytes(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            peak = max(peak, private_bytes(process.pid))
            time.sleep(0.001)
        kept = int(process.stdout.readline())
    assert kept > 500e6
    assert peak - before < kept + 1.2 * LARGEST


def loaded(directory: Path, mesh=None):
    """The parameters of a model, on one device or on a mesh."""
    policy = decoder_policy(read_shape(directory))
    mesh = Layout().mesh(jax.devices()[:1]) if mesh is None else mesh
    return load_weights(directory, policy.shapes, weight_shardings(policy.shapes, mesh))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_dtype_of_floats_is_loaded_as_the_float32_nearest_to_it(dtype, tmp_path):
    tensors = {name: a.astype(dtype) for name, a in load_file(GOLDEN / "qwen2" / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((GOLDEN / "qwen2" / "config.json").read_bytes())
    params = loaded(tmp_path)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(params["embed_VD"], tensors["model.embed_tokens.weight"].astype(np.float32))
    for n, gate_FD in enumerate(params["layers"]["feedforward"]["gate_FD"]):
        np.testing.assert_array_equal(gate_FD, tensors[f"model.layers.{n}.mlp.gate_proj.weight"].astype(np.float32))


@pytest.mark.parametrize("family", ["qwen2", "phi3"])
@pytest.mark.parametrize("layout", [Layout(), Layout(fsdp=4, tensor=2), Layout(data=2, fsdp=2, tensor=2)], ids=str)
def test_weights_do_not_depend_on_blocks_nor_on_devices(family, layout, tmp_path, monkeypatch):
    directory = GOLDEN / family if family == "qwen2" else write_model(tmp_path, family)
    expected = loaded(directory)
    monkeypatch.setattr(weights, "BLOCK", 100)
    jax.tree.map(np.testing.assert_array_equal, loaded(directory, layout.mesh()), expected)
