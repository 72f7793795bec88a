"""A language model by name: a directory, a Hugging Face name, the embedded model, or `tiny`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models.decoder import Shape
from grpo_jax.models.hub import check, locate
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.remat import DEFAULT_REMAT, Remat
from grpo_jax.models.shapes import SHAPES
from grpo_jax.models.tokenizer import Tokenizer, byte_tokenizer, check_vocabulary, load_tokenizer
from grpo_jax.models.weights import load_weights
from grpo_jax.structs import Params, Policy


@dataclass(frozen=True)
class Model:
    """A policy, its tokenizer, and how to get its parameters onto a mesh."""

    policy: Policy
    shape: Shape
    tokenizer: Tokenizer
    params: Callable[[Mesh], Params]


def load(
    name: str = "smollm2-135m-instruct",  # a directory, org/name, smollm2-135m-instruct, or tiny (random, bytes)
    activations: Literal["auto", "float32", "bfloat16"] = "auto",  # auto: float32 on CPU, bfloat16 elsewhere
    remat: Remat = DEFAULT_REMAT,  # none computes nothing twice; see docs/training.md
) -> Model:
    """The model, with everything but its weights read and checked; `params` reads those later."""
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.get(activations)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if name == "tiny":
        return tiny(activations=dtype, remat=remat)
    directory = locate(name)
    check(directory)
    shape = read_shape(directory)
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, shape.vocabulary, directory)
    policy = decoder_policy(shape, dtype, remat)

    def params(mesh: Mesh) -> Params:
        return load_weights(directory, policy.shapes, weight_shardings(policy.shapes, mesh))

    return Model(policy, shape, tokenizer, params)


def find_shape(name: str) -> Shape:
    """The shape of a model by its name, without its weights; nothing is downloaded for one that is in `SHAPES`."""
    known = re.sub(r"-(instruct|base)$", "", name.removeprefix("random:").rpartition("/")[2].lower())
    if known in SHAPES:
        return SHAPES[known]
    return read_shape(locate(name))


def tiny(seed: int = 0, **options: Any) -> Model:
    """A random two-layer model that reads bytes, for tests and for learning a small task from scratch.

    Its options are those of `decoder_policy`.
    """
    policy = decoder_policy(SHAPES["tiny"], **options)

    def params(mesh: Mesh) -> Params:
        shardings = weight_shardings(policy.shapes, mesh)
        return jax.jit(policy.init, out_shardings=shardings)(jax.random.key(seed))

    return Model(policy, SHAPES["tiny"], byte_tokenizer(), params)
