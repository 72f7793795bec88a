"""The programs of a step compile for a TPU slice, on any machine with libtpu: pip install "grpo-jax[tpu]"."""

import math
import os
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.distribution import Distribution
from grpo_jax.grpo import Algorithm, begin, update_on
from grpo_jax.models.decoder import Rope, Shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.objectives import dapo
from grpo_jax.rollout import Sampler, stages
from grpo_jax.runtime.optimizer import adamw
from grpo_jax.runtime.sharding import (
    CACHE,
    PROMPTS,
    Layout,
    fit,
    prefix_sharding,
    serving_shardings,
    weight_shardings,
)
from grpo_jax.structs import Batch, Prompts, Rollouts

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
    policy, distribution = decoder_policy(SHAPE, jnp.bfloat16), Distribution(ends=(2,))
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


@pytest.mark.slow
def test_learning_compiles_for_eight_chips_and_the_state_is_donated():
    P, G, L, T = 16, 8, 128, 128
    mesh = mesh_of("v5e:2x4", Layout(data=1, fsdp=4, tensor=2))
    policy = decoder_policy(SHAPE, jnp.bfloat16)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    by_prompt = NamedSharding(mesh, PROMPTS)

    def rows(shape, kind):
        return jax.ShapeDtypeStruct(shape, kind, sharding=by_prompt)

    prompts = Prompts(rows((P, L), jnp.int32), rows((P, L), bool))
    sampler = Sampler((2,), responses=G, max_tokens=T)
    algorithm = Algorithm(policy, sampler, str, len, dapo(), adamw(), microbatch=4)
    state = jax.eval_shape(lambda params: begin(algorithm, params), shapes)
    state = placed(state, weight_shardings(state, mesh))
    tokens_PGT, flags_PGT = rows((P, G, T), jnp.int32), rows((P, G, T), bool)
    numbers_PGT = rows((P, G, T), jnp.float32)
    rollouts = Rollouts(
        prompts,
        tokens_PGT,
        flags_PGT,
        flags_PGT,
        numbers_PGT,
        numbers_PGT,
        rows((P, G), bool),
        distribution=Distribution(),
    )
    batch = Batch(rollouts, rows((P, G), jnp.float32), numbers_PGT, None, None)
    layout = tuple(array.sharding for array in jax.tree.leaves(state))
    with jax.set_mesh(mesh):
        learning = update_on.lower(algorithm, layout, state, batch).compile()
    used = learning.memory_analysis()
    weights = 4 * sum(array.size for array in jax.tree.leaves(shapes))
    assert used.alias_size_in_bytes > 0.9 * 3 * weights / 8  # weights and both moments, a part on each chip
