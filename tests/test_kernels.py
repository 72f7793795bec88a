"""What a TPU's kernels are given: blocks of attention by shape, and how often a backward pass computes attention."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from grpo_jax.models.attention.blocks import TILE, Blocks, choose_blocks, cycles, padded
from grpo_jax.models.decoder import Rope, Shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.rope import rotate, rotations
from grpo_jax.structs import prompt_shapes

# What a v5e and a v6e execute for a head of 128 channels, forward and backward, in thousands of cycles: final bundles
# times the visited blocks (docs/kernels.md has the command).
COUNTED = {
    (768, 256): {(768, 1024, 512): (14.9, 10.5), (384, 1024, 512): (15.9, 11.8), (256, 512, 512): (16.8, 14.0)},
    (1024, 256): {(512, 1280, 640): (25.7, 19.5), (512, 640, 640): (27.8, 22.8), (1024, 1280, 640): (25.7, 18.7)},
    (2048, 512): {(512, 512, 512): (76.2, 59.2), (512, 1280, 640): (87.8, 70.5), (1024, 512, 512): (83.7, 61.6)},
    (3072, 1024): {
        (1024, 1024, 512): (169.4, 127.1),
        (512, 512, 512): (183.6, 140.0),
        (512, 1024, 512): (178.1, 133.5),
    },
}


@pytest.mark.parametrize("lengths", COUNTED)
@pytest.mark.parametrize("chip", [0, 1])
def test_the_chosen_blocks_are_near_the_best_of_those_counted(lengths, chip):
    counted = COUNTED[lengths]
    chosen = counted[choose_blocks(*lengths, channels=128)]
    assert chosen[chip] <= 1.05 * min(each[chip] for each in counted.values())


def test_the_estimate_of_cycles_meets_the_counts():
    for lengths, counted in COUNTED.items():
        for blocks, (v5e, _) in counted.items():
            assert abs(cycles(Blocks(*blocks), *lengths, channels=128) / 1000 / v5e - 1) < 0.15


@pytest.mark.parametrize("channels", [64, 128, 256])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_blocks_are_tiles_that_divide_one_another_for_every_length(channels, itemsize):
    for T, L in [(1, 0), (128, 0), (150, 37), (1408, 256), (896, 100), (4096, 512), (12416, 0), (30000, 2000)]:
        queries, keys, step = choose_blocks(T, L, channels, itemsize)
        assert queries % TILE == keys % TILE == step % TILE == keys % step == 0
        assert padded(L + T, keys) < L + T + keys
        assert queries <= padded(T, TILE)
        assert Blocks(queries, keys, step).fused(1)


SHAPE = Shape(
    vocabulary=64,
    width=64,
    feedforward=128,
    layers=2,
    heads=2,
    kv_heads=1,
    channels=128,
    rope=Rope(1e6),
    norm_epsilon=1e-6,
    max_positions=512,
    tied=True,
)


@pytest.mark.parametrize(("remat", "passes"), [("full", 2), ("attention", 1), ("products", 1)])
def test_the_backward_pass_computes_attention_again_unless_its_output_is_kept(remat, passes):
    policy = decoder_policy(SHAPE, jnp.bfloat16, remat=remat, platform="tpu")
    prompts = prompt_shapes(1, 128)
    tokens_PGT = jnp.zeros((1, 2, 128), jnp.int32)

    def total(params, prompts):
        return policy.respond(params, prompts, tokens_PGT, tokens_PGT == 0)[1].astype(jnp.float32).sum()

    program = jax.make_jaxpr(jax.grad(total))(policy.shapes, prompts).jaxpr
    used, _ = dce_jaxpr(program, [True] * len(program.outvars))  # as the compiler leaves out what nothing reads
    kernels = re.findall(r"name=splash_mha_(fwd|dq|dkv)\w*", str(used))
    assert kernels.count("fwd") == 2 * passes  # of the prompts, and of the responses
    assert kernels.count("dkv") == 2
    assert kernels.count("dq") == 0  # one kernel computes all gradients


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_rotation_on_a_tpu_has_the_values_and_gradients_of_one_by_halves(dtype):
    x_PGHTC, weights_PGHTC = jax.random.normal(jax.random.key(0), (2, 1, 2, 3, 5, 64), dtype)
    cos_sin = rotations(Rope(1e4), 64, jnp.arange(10).reshape(1, 2, 5))

    def total(x_PGHTC, platform):
        rotated_PGHTC = rotate(x_PGHTC, *cos_sin, platform=platform)
        return jnp.sum(rotated_PGHTC * weights_PGHTC), rotated_PGHTC

    by_product, by_halves = (jax.grad(total, has_aux=True)(x_PGHTC, platform) for platform in ("tpu", "cpu"))
    for found, expected in zip(by_product, by_halves, strict=True):
        assert found.dtype == dtype
        found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
        assert jnp.abs(found - expected).max() <= (1e-6 if dtype == jnp.float32 else 0.02)
