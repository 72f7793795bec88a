"""`grpo-jax bench`: how fast this machine samples and learns, and how fast it could be at most."""

import argparse
import importlib
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.commands.printing import is_for_people, print_json, show
from grpo_jax.config import ConfigError
from grpo_jax.devices.cache import keep_programs
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models import SHAPES, Shape, decoder_policy, load
from grpo_jax.structs import Params, Policy, Prompts

TOLD = logging.getLogger("grpo_jax")
MEASURES = {"rollout": "rollout", "train": "train", "step": "train"}


@dataclass(frozen=True)
class Subject:
    """The model that is measured."""

    policy: Policy
    shape: Shape
    params: Params
    dtype: np.dtype


def run(arguments: argparse.Namespace) -> int:
    """Prints the figures. Returns the exit code."""
    keep_programs()
    bench = importlib.import_module(f"grpo_jax.commands.bench.{MEASURES[arguments.what]}")
    try:
        subject = load_model(arguments)
        bench.check(arguments, subject)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not arguments.quiet:
        show(describe(arguments, subject))
    TOLD.info("measuring the machine ...")
    figures, text = bench.measure(arguments, subject)
    if is_for_people(arguments):
        show(text)
    if arguments.json:
        print_json(arguments, figures | {"arguments": plain(arguments)})
    return 0


def load_model(arguments: argparse.Namespace) -> Subject:
    """The model of the arguments: from a directory, by its name, or random in a well-known shape."""
    mesh, dtype = Layout().mesh(), jnp.dtype(arguments.dtype)
    name = arguments.model.removeprefix("random:")
    if name == arguments.model:
        model = load(name, activations=arguments.dtype, remat=arguments.remat)
        return Subject(model.policy, model.shape, model.params(mesh), dtype)
    if name not in SHAPES:
        raise ValueError(f"There is no shape {name!r} for random weights; there are {', '.join(SHAPES)}.")
    policy = decoder_policy(SHAPES[name], dtype, arguments.remat)
    layout = weight_shardings(policy.shapes, mesh)
    return Subject(policy, SHAPES[name], jax.jit(policy.init, out_shardings=layout)(jax.random.key(0)), dtype)


def random_prompts(arguments: argparse.Namespace, shape: Shape) -> Prompts:
    """Prompts of random tokens, all of the same length."""
    size = (arguments.prompts, arguments.prompt_tokens)
    tokens_PL = np.random.default_rng(0).integers(0, shape.vocabulary, size).astype(np.int32)
    prompts = Prompts(tokens_PL, np.ones(size, bool))
    return prompts if jax.device_count() == 1 else place_prompts(prompts, Layout().mesh())


def median_seconds(work: Callable[[int], None], repeat: int) -> float:
    """The median time of some runs; `work` gets the number of the run."""
    seconds = []
    for index in range(repeat):
        begun = time.perf_counter()
        work(index + 1)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def matrix_sizes(shape: Shape) -> tuple[int, int]:
    """Weights that each token is multiplied with in all layers, and in the output head."""
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.channels
    return shape.layers * shape.width * (heads + 3 * shape.feedforward), shape.vocabulary * shape.width


def attention_cost(shape: Shape) -> int:
    """FLOP for a token to attend to one position in all layers."""
    return 4 * shape.layers * shape.heads * shape.channels


def describe(arguments: argparse.Namespace, subject: Subject) -> str:
    """What is measured, as text."""
    size = sum(array.size for array in jax.tree.leaves(subject.params))
    mean = "" if arguments.mean_tokens is None else f", ending at random after {arguments.mean_tokens} on average"
    return (
        f"{arguments.model}: {size / 1e6:.1f} M parameters, {subject.dtype.name}, on {jax.device_count()}"
        f" {jax.devices()[0].device_kind} device(s), JAX {jax.__version__}\n{arguments.prompts} prompts of"
        f" {arguments.prompt_tokens} tokens, {arguments.responses} responses of {arguments.response_tokens}{mean};"
        f" median of {arguments.repeat}"
    )


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON has them."""
    return {name: value for name, value in vars(arguments).items() if isinstance(value, str | int | None)}
