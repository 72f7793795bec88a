"""The shapes of well-known models by name. Benchmarks and memory plans use them with random or with no weights.

Each but `tiny` is the part of the `config.json` of the model's own repository that says what it computes.
"""

import re
from pathlib import Path

from grpo_jax.models.decoder import Shape
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.rope import Rope

KNOWN = Path(__file__).parent / "known"

TINY = Shape(  # its tokens are the bytes and three more
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
)
SHAPES = {"tiny": TINY} | {file.stem: read_shape(KNOWN, file.name) for file in sorted(KNOWN.glob("*.json"))}


def known_shape(name: str) -> Shape | None:
    """The shape of a name such as google/gemma-3-1b-it, or of `random:` with one; None if it is not known here."""
    plain = name.removeprefix("random:").rpartition("/")[2].lower()
    return SHAPES.get(re.sub(r"-(instruct|base|it|pt)$", "", plain))
