"""A language model by name: a directory, a Hugging Face name, a run, the embedded model, or `tiny`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models.decoder import Shape
from grpo_jax.models.hub import check, locate
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.remat import DEFAULT_REMAT, Remat
from grpo_jax.models.runs import TrainedRun, find_run, read_weights
from grpo_jax.models.shapes import TINY, known_shape
from grpo_jax.models.tokenizer import Tokenizer, byte_tokenizer, check_vocabulary, load_tokenizer
from grpo_jax.models.weights import load_weights
from grpo_jax.structs import Params, Policy


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: its base by name, the base's directory (`tiny` has none), and the run, if it is one."""

    base: str
    directory: Path | None = None
    run: TrainedRun | None = None


@dataclass(frozen=True)
class Model:
    """A policy, its tokenizer, and how to get its parameters onto a mesh."""

    policy: Policy
    shape: Shape
    tokenizer: Tokenizer
    params: Callable[[Mesh], Params]
    origin: Origin | None = None  # None for a model made in Python

    @property
    def first_weights(self) -> str | None:
        """The run and the step whose weights these are; None for those of a model."""
        return None if self.origin is None or self.origin.run is None else self.origin.run.name


def load(
    name: str = "smollm2-135m-instruct",  # a directory, a GGUF file, org/name, a run, smollm2-135m-instruct, or tiny
    activations: Literal["auto", "float32", "bfloat16"] = "auto",  # auto: float32 on CPU, bfloat16 elsewhere
    weights: Literal["float32", "bfloat16"] = "float32",  # bfloat16: half the memory; see docs/memory.md
    remat: Remat = DEFAULT_REMAT,  # none computes nothing twice; see docs/training.md
    template: dict[str, Any]
    | None = None,  # of the chat template, e.g. {enable_thinking: false}; null: as a run had them
    replay_experts: bool = False,  # learn with the experts that computed each token when it was sampled
) -> Model:
    """The model, with everything but its weights read and checked; `params` reads those later."""
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.get(activations)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    run = find_run(name)
    if run is None:
        return _load(name, dtype, remat, template, replay_experts, weights)
    template = dict(run.template) if template is None else template
    try:
        base = _load(run.base, dtype, remat, template, replay_experts, weights)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{run.path} was trained from {run.base}, which gives the tokenizer. {error}") from error
    origin = None if base.origin is None else replace(base.origin, run=run)
    return replace(base, params=partial(read_weights, run, base.policy.shapes), origin=origin)


def _load(
    name: str, activations: DTypeLike, remat: Remat, template: dict[str, Any] | None, replay_experts: bool, weights: str
) -> Model:
    """The model of a name that is not that of a run."""
    if name == "tiny":
        model = tiny(activations=activations, remat=remat, replay_experts=replay_experts, weights=weights)
        return model if template is None else replace(model, tokenizer=replace(model.tokenizer, template=template))
    directory = locate(name)
    check(directory)
    shape = read_shape(directory)
    tokenizer = load_tokenizer(directory, template)
    check_vocabulary(tokenizer, shape.vocabulary, directory)
    policy = decoder_policy(shape, activations, remat, replay_experts=replay_experts, weights=weights)

    def params(mesh: Mesh) -> Params:
        return load_weights(directory, policy.shapes, weight_shardings(policy.shapes, mesh))

    path = Path(name).expanduser()
    base = str(path.absolute()) if path.exists() else name
    return Model(policy, shape, tokenizer, params, Origin(base, directory))


def find_shape(name: str) -> Shape:
    """The shape of a model by its name, without its weights; nothing is downloaded for one that is in `SHAPES`."""
    run = None if name.startswith("random:") else find_run(name)
    name = name if run is None else run.base
    known = known_shape(name)
    return read_shape(locate(name)) if known is None else known


def tiny(seed: int = 0, **options: Any) -> Model:
    """A random two-layer model that reads bytes, for tests and for learning a small task from scratch.

    Its options are those of `decoder_policy`.
    """
    policy = decoder_policy(TINY, **options)

    def params(mesh: Mesh) -> Params:
        shardings = weight_shardings(policy.shapes, mesh)
        return jax.jit(policy.init, out_shardings=shardings)(jax.random.key(seed))

    return Model(policy, TINY, byte_tokenizer(), params, Origin("tiny"))
