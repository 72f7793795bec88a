"""The shapes of well-known models by name. Benchmarks and memory plans use them with random or with no weights."""

from dataclasses import replace

from grpo_jax.models.decoder import Shape
from grpo_jax.models.rope import Rope

_QWEN = Shape(
    vocabulary=151936,
    width=1024,
    feedforward=3072,
    layers=28,
    heads=16,
    kv_heads=8,
    channels=128,
    rope=Rope(1e6),
    norm_epsilon=1e-6,
    max_positions=40960,
    tied=True,
)

# From the `config.json` of the models' own repositories. `tiny` is our own; its tokens are the bytes and three more.
SHAPES = {
    "tiny": Shape(
        vocabulary=259,
        width=64,
        feedforward=192,
        layers=2,
        heads=4,
        kv_heads=2,
        channels=16,
        rope=Rope(10000.0),
        norm_epsilon=1e-5,
        max_positions=1024,
        tied=True,
    ),
    "smollm2-135m": Shape(
        vocabulary=49152,
        width=576,
        feedforward=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        channels=64,
        rope=Rope(100000.0),
        norm_epsilon=1e-5,
        max_positions=8192,
        tied=True,
    ),
    "qwen3-0.6b": replace(_QWEN, head_norm=True),
    "qwen3-4b": replace(_QWEN, width=2560, feedforward=9728, layers=36, heads=32, head_norm=True),
    "qwen2.5-1.5b": replace(
        _QWEN, width=1536, feedforward=8960, heads=12, kv_heads=2, max_positions=32768, attention_bias=True
    ),
    "llama-3.1-8b": Shape(
        vocabulary=128256,
        width=4096,
        feedforward=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        channels=128,
        rope=Rope(500000.0, "llama3", factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0),
        norm_epsilon=1e-5,
        max_positions=131072,
        tied=False,
    ),
}
