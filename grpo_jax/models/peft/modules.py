"""Which modules of a model PEFT adapts, and which of our weights are in each.

PEFT keeps, for a module with the weight `[outputs, inputs]`, `lora_A [rank, inputs]` and `lora_B [outputs, rank]`. A
module may hold several of our weights, one after the other along its outputs, as Phi-3's `qkv_proj` does.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.models.families import NAMES, Stored
from grpo_jax.models.lora import INPUTS, adapted_weights, kind_of, weight_axes
from grpo_jax.models.model_config import PARTS, read_names
from grpo_jax.structs import Params

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # what stands before the name of a module
OURS = "grpo_jax"  # the key of the metadata in which an export of ours says what PEFT's config does not


@dataclass(frozen=True)
class Weight:
    """One of our weights: its path, its number of layers, and the sizes of its outputs and inputs."""

    path: tuple[str, ...]
    layers: int
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The target that it is."""
        return kind_of(self.path[-1])

    @property
    def rows(self) -> int:
        """Its outputs, as rows of a matrix."""
        return math.prod(self.outputs)


def stored_names(directory: Path | None, files: Iterable[str] = PARTS[:1]) -> dict[str, Stored]:
    """Our name of each weight -> its tensor in transformers. In a model of several parts, their names begin as in
    `files`; as in transformers 5 if it is left out.
    """
    if directory is None:
        return {ours: Stored(*theirs) for ours, theirs in NAMES.items()}
    return read_names(directory, files)


def modules_of(base: Params, names: Mapping[str, Stored]) -> dict[str, list[Weight]]:
    """The modules that can be adapted, by their name with {n} for the layer, and the weights in each, in their order.

    Experts are left out: what PEFT calls their adapters depends on the version of transformers.
    """
    found: dict[str, list[tuple[int, Weight]]] = {}
    for path, array in adapted_weights(base, tuple(INPUTS)):
        letters, leading, inputs = weight_axes(path[-1], array.shape)
        if letters.startswith("E"):
            continue
        stored, split = names["/".join(path)], array.ndim - inputs
        weight = Weight(path, array.shape[0], array.shape[leading:split], array.shape[split:])
        found.setdefault(stored.name.removesuffix(".weight"), []).append((stored.index, weight))
    return {module: [weight for _, weight in sorted(held, key=_place)] for module, held in found.items()}


def _place(held: tuple[int, Weight]) -> int:
    return held[0]


def at_path(adapters: Params, path: tuple[str, ...]) -> Any:
    """What a tree of adapters has for the weight of this path; nothing if it is not adapted."""
    node: Any = adapters
    for name in path:
        node = node.get(name, {})
    return node
