"""The programs of a step compile for a TPU slice, on any machine with libtpu: pip install "grpo-jax[tpu]"."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.grpo import Algorithm, begin, update_on
from grpo_jax.models.decoder import Rope, Shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.objectives import dapo
from grpo_jax.rollout.native import Sampler, _sample
from grpo_jax.runtime.optimizer import adamw
from grpo_jax.runtime.sharding import PROMPTS, Layout, weight_shardings
from grpo_jax.structs import Batch, Prompts, Rollouts

SHAPE = Shape(
    vocabulary=32768,
    width=512,
    feedforward=1536,
    layers=2,
    heads=8,
    kv_heads=4,
    channels=64,
    rope=Rope(1e6),
    norm_epsilon=1e-6,
    max_positions=4096,
    tied=True,
    head_norm=True,
)
P, G, L, T = 16, 8, 128, 128


@pytest.fixture(scope="module")
def mesh():
    pytest.importorskip("libtpu", reason="libtpu is large, and only this test needs it where there is no TPU")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    slice_of_eight = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    return Layout(data=1, fsdp=4, tensor=2).mesh(slice_of_eight.devices)


def placed(tree, shardings):
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


@pytest.mark.slow
def test_sampling_and_learning_compile_for_eight_chips_and_the_state_is_donated(mesh):
    policy = decoder_policy(SHAPE, jnp.bfloat16)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    by_prompt = NamedSharding(mesh, PROMPTS)

    def rows(shape, kind):
        return jax.ShapeDtypeStruct(shape, kind, sharding=by_prompt)

    prompts = Prompts(rows((P, L), jnp.int32), rows((P, L), bool))
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    sampler = Sampler((2,), responses=G, max_tokens=T)
    with jax.set_mesh(mesh):
        params = placed(shapes, weight_shardings(shapes, mesh))
        sampling = _sample.lower(sampler, policy, params, prompts, key).compile()
    assert sampling.memory_analysis().temp_size_in_bytes < 2**30

    algorithm = Algorithm(policy, sampler, str, len, dapo(), adamw(), microbatch=4)
    state = jax.eval_shape(lambda params: begin(algorithm, params), shapes)
    state = placed(state, weight_shardings(state, mesh))
    tokens_PGT, flags_PGT = rows((P, G, T), jnp.int32), rows((P, G, T), bool)
    numbers_PGT = rows((P, G, T), jnp.float32)
    rollouts = Rollouts(
        prompts, tokens_PGT, flags_PGT, flags_PGT, numbers_PGT, numbers_PGT, rows((P, G), bool), temperature=1.0
    )
    batch = Batch(rollouts, rows((P, G), jnp.float32), numbers_PGT, None, None)
    layout = tuple(array.sharding for array in jax.tree.leaves(state))
    with jax.set_mesh(mesh):
        learning = update_on.lower(algorithm, layout, state, batch).compile()
    used = learning.memory_analysis()
    weights = 4 * sum(array.size for array in jax.tree.leaves(shapes))
    assert used.alias_size_in_bytes > 0.9 * 3 * weights / 8  # weights and both moments, a part on each chip
