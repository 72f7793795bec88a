"""The programs of a step compile for a TPU slice, on any machine with libtpu: pip install "grpo-jax[tpu]"."""

import json
import math
import os
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, PartitionSpec

from grpo_jax.cli import main
from grpo_jax.commands import plan
from grpo_jax.config import read
from grpo_jax.distribution import Distribution
from grpo_jax.models.decoder import Rope, Shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.rollout import stages
from grpo_jax.runtime.hlo import collective_bytes
from grpo_jax.runtime.sharding import (
    CACHE,
    PROMPTS,
    Layout,
    fit,
    prefix_sharding,
    serving_shardings,
)
from grpo_jax.runtime.topology import find_slice
from grpo_jax.structs import Prompts

SHAPE = Shape(
    vocabulary=32768,
    width=1024,
    feedforward=3072,
    layers=8,
    heads=16,
    kv_heads=8,
    channels=128,
    rope=Rope(1e6),
    norm_epsilon=1e-6,
    max_positions=4096,
    tied=True,
    head_norm=True,
)


@pytest.fixture(autouse=True)
def no_cache_of_programs():
    """What was compiled for a TPU cannot be loaded again without one."""
    compilation_cache.reset_cache()
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def mesh_of(name: str, layout: Layout, **options) -> Mesh:
    pytest.importorskip("libtpu", reason="libtpu is large, and only these tests need it where there is no TPU")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return layout.mesh(topology.devices)


def placed(tree, shardings):
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def fitted(tree, spec: PartitionSpec, mesh: Mesh):
    return placed(tree, jax.tree.map(lambda a: fit(spec, a.shape, mesh), tree))


def compile_decoding(mesh: Mesh, P: int, G: int, L: int, S: int, int8: bool = False):
    """The decoding loop compiled for a mesh, and the bytes of the responses' cache on each device."""
    policy, distribution = decoder_policy(SHAPE, jnp.bfloat16, platform="tpu"), Distribution(ends=(2,))
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    served = jax.eval_shape(policy.serve, shapes)
    prompts = Prompts(jax.ShapeDtypeStruct((P, L), jnp.int32), jax.ShapeDtypeStruct((P, L), bool))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (P, G)))
    read = partial(stages.read, policy, shape=(L, G, S), int8=int8, mesh=None)
    last_PD, shared, own = jax.eval_shape(read, shapes, prompts)
    start = partial(stages.begin, policy, distribution, max_tokens=S, S=S, mesh=None)
    rows = jax.eval_shape(lambda served, *rest: start(served, *rest), served, prompts, last_PD, keys)
    with jax.set_mesh(mesh):
        compiled = stages.decode.lower(
            policy,
            distribution,
            placed(served, serving_shardings(served, mesh)),
            placed(shared, jax.tree.map(lambda a: prefix_sharding(a.shape, mesh), shared)),
            own := fitted(own, CACHE, mesh),
            fitted(rows, PROMPTS, mesh),
            S,
            stages.Until(2**30, -1, 1, P + 1),
            1,
        ).compile()
    return compiled, sum(
        a.dtype.itemsize * a.sharding.shard_shape(a.shape)[0] * a.size // a.shape[0] for a in jax.tree.leaves(own)
    )


def unfused(program: str) -> str:
    """The computations of a program that write to memory: not those inside of fusions, which work in registers."""
    inside = set(re.findall(r"calls=%([\w.\-]+)", program))
    return "\n".join(
        part for part in re.split(r"\n(?=\S.*\{\n)", program) if part.lstrip("%").partition(" ")[0] not in inside
    )


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_decoding_on_one_chip_copies_no_cache(chip, int8):
    mesh = mesh_of(f"{chip}:1x1", Layout(), chips_per_host_bounds=(1, 1, 1))
    compiled, cache_bytes = compile_decoding(mesh, P=8, G=8, L=512, S=2048, int8=int8)
    used = compiled.memory_analysis()
    assert used.temp_size_in_bytes < 0.1 * cache_bytes
    assert used.alias_size_in_bytes > 0.99 * cache_bytes
    copies = re.findall(r"= \w+\[8,8,8,2048,128\]\S* copy\(", unfused(compiled.as_text()))
    assert copies == []


@pytest.mark.slow
def test_decoding_on_eight_chips_gathers_no_weight():
    mesh = mesh_of("v5e:2x4", Layout(data=1, fsdp=4, tensor=2))
    compiled, _ = compile_decoding(mesh, P=8, G=8, L=512, S=2048)
    gathered = re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather", compiled.as_text())
    largest = max((math.prod(map(int, filter(None, shape.split(",")))) for _, shape in gathered), default=0)
    assert largest < SHAPE.width * SHAPE.width / 2


CONFIG = """
model: {name: qwen3-0.6b, remat: full}
task: {use: arithmetic}
rollout: {responses: 8, max_tokens: 256}
objective: {use: dapo}
algorithm: {microbatch: 4}
mesh: {data: 1, fsdp: 4, tensor: 2}
train: {steps: 1, prompts: 8, max_prompt_tokens: 128}
"""


def case_of(tmp_path, topology: str, *overrides: str) -> plan.Case:
    pytest.importorskip("libtpu", reason="libtpu is large, and only these tests need it where there is no TPU")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return plan.assemble(read(tmp_path / "config.yaml", overrides), find_slice(topology))


@pytest.mark.slow
def test_learning_compiles_for_eight_chips_with_its_state_donated_and_its_attention_fused(tmp_path, monkeypatch):
    shape = replace(SHAPE, layers=2)
    monkeypatch.setattr(plan, "find_shape", lambda name: shape)
    case = case_of(tmp_path, "v5e-8")
    learn, step = plan.compile_learning(case, 4)
    weights = plan.device_bytes(case.state.params)
    assert step.memory_analysis().alias_size_in_bytes > 0.99 * plan.device_bytes(case.state)
    assert learn.memory_analysis().alias_size_in_bytes > 0.99 * weights  # the gradient is added to in place
    program = learn.as_text()
    assert "splash" in program
    scores = 4 * 8 // 4 * (16 // 2) * 256 * 384  # of all pairs of tokens, on one device
    largest = max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"= \w+\[([\d,]+)\]", program))
    assert largest < max(scores, 2 * shape.vocabulary * shape.width)
    assert collective_bytes(program) > weights


@pytest.mark.slow
def test_a_plan_says_what_fits(tmp_path, capsys):
    pytest.importorskip("libtpu", reason="libtpu is large, and only these tests need it where there is no TPU")
    config, file = tmp_path / "config.yaml", tmp_path / "plan.json"
    config.write_text(CONFIG.replace("qwen3-0.6b", "tiny").replace("mesh: {data: 1, fsdp: 4, tensor: 2}", ""))
    assert main(["plan", str(config), "--topology", "v5e-1", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["fits"] and figures["largest_microbatch"] == 8
    for phase in ("sample", "train"):
        assert figures[phase]["temp_bytes"] < figures[phase]["peak_hbm_bytes"] < figures["hbm_limit_bytes"]
        assert figures[phase]["argument_bytes"] > 4 * 200_000 * (phase == "train")
    assert "It fits." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "chips", "grid"),
    [
        ("v5e-1", 1, "1x1"),
        ("v5litepod-8", 8, "2x4"),
        ("v6e-4", 4, "2x2"),
        ("v5p-8", 4, "2x2x1"),
        ("v5p-16", 8, "2x2x2"),
        ("v4-8", 4, "2x2x1"),
        ("v5e-256", 256, "16x16"),
    ],
)
def test_slices_go_by_the_names_people_know(name, chips, grid):
    found = find_slice(name)
    assert (found.chips, found.grid) == (chips, grid)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e-12", "nearest are v5e-8 and v5e-16"),
        ("v5p-12", "nearest are v5p-8 and v5p-16"),
        ("v7-8", "such as v"),
        ("a100", "such as"),
    ],
)
def test_a_slice_that_does_not_exist_is_refused_with_the_nearest(name, words):
    with pytest.raises(ValueError, match=words):
        find_slice(name)


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    program = """HloModule m

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ag = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), dimensions={0}
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %c = pred[] constant(true)
}

ENTRY %main (a: f32[2,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %ar = bf16[16]{0} all-reduce(bf16[16]{0} %y), to_apply=%add
}
"""
    assert collective_bytes(program) == 5 * 8 * 4 * 4 + 16 * 2
