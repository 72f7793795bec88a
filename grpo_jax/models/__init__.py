"""Language models as policies. The only folder that imports Flax."""

import os

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # or it would advise to install torch

from grpo_jax.models.decoder import Shape
from grpo_jax.models.exporting import export
from grpo_jax.models.load import Model, find_shape, load, tiny
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.shapes import SHAPES

__all__ = ["SHAPES", "Model", "Shape", "decoder_policy", "export", "find_shape", "load", "tiny"]
