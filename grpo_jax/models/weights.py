"""Weights from safetensors files, each device reading the part it holds, and back."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from grpo_jax.models.families import NAMES, letters
from grpo_jax.structs import Params

Index = tuple[slice, ...]


class Weights:
    """The tensors of a directory of safetensors files, by name; opened lazily, read in slices."""

    def __init__(self, directory: Path):
        index = directory / "model.safetensors.index.json"
        if index.exists():
            self.files = {name: directory / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        else:
            self.files = {}
            for file in sorted(directory.glob("*.safetensors")):
                with safe_open(file, framework="np") as tensors:
                    self.files |= dict.fromkeys(tensors.keys(), file)
        self.directory = directory
        self.open: dict[Path, Any] = {}

    def tensor(self, name: str) -> Any:
        """A slice reader of one tensor."""
        if name not in self.files:
            raise ValueError(f"{self.directory}: the weight {name} is missing; is this model complete?")
        file = self.files[name]
        if file not in self.open:
            self.open[file] = safe_open(file, framework="np")
        return self.open[file].get_slice(name)


def load_weights(directory: Path, shapes: Params, shardings: Params) -> Params:
    """Float32 parameters of these shapes, each device's part read from the files once and nothing held twice."""
    weights = Weights(directory)
    _refuse_strangers(weights, shapes)

    def load(path: tuple, wanted: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        name = "/".join(str(part.key) for part in path)
        parts: dict[str, np.ndarray] = {}

        def read(index: Index) -> np.ndarray:
            if str(index) not in parts:
                parts[str(index)] = _read(weights, name, wanted.shape, index)
            return parts[str(index)]

        return jax.make_array_from_callback(wanted.shape, sharding, read)

    return jax.tree_util.tree_map_with_path(load, shapes, shardings)


def _refuse_strangers(weights: Weights, shapes: Params) -> None:
    """Weights that would be left out mean that the model is not what its config says."""
    known = {"lm_head.weight"}  # also saved by some tied models
    for path, wanted in jax.tree_util.tree_leaves_with_path(shapes):
        theirs = NAMES["/".join(str(part.key) for part in path)][0]
        known |= {theirs.format(n=n) for n in range(wanted.shape[0] if "{n}" in theirs else 1)}
    strangers = sorted(name for name in weights.files if name not in known and not name.endswith("rotary_emb.inv_freq"))
    if strangers:
        raise ValueError(
            f"{weights.directory}: {len(strangers)} weights have no place in this model, such as {strangers[0]}."
            " Its layout is not supported."
        )


def _read(weights: Weights, name: str, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """The part `index` of one of our parameters, put together from their tensors."""
    theirs, axes = NAMES[name]
    ours = letters(name)
    sizes = dict(zip(ours, shape[-len(ours) :], strict=True))
    cuts = dict(zip(ours, index[-len(ours) :], strict=True))
    if "{n}" not in theirs:
        return _read_tensor(weights, theirs, axes, ours, sizes, cuts)
    layers = range(shape[0])[index[0]]
    return np.stack([_read_tensor(weights, theirs.format(n=n), axes, ours, sizes, cuts) for n in layers])


def _read_tensor(
    weights: Weights, name: str, axes: str, ours: str, sizes: dict[str, int], cuts: dict[str, slice]
) -> np.ndarray:
    """One tensor's part, its axes set apart. Of a merged pair the outer one is cut, the inner one read whole."""
    groups = [pair or single for pair, single in re.findall(r"\((\w+)\)|(\w)", axes)]
    tensor = weights.tensor(name)
    expected = [math.prod(sizes[letter] for letter in group) for group in groups]
    if tensor.get_shape() != expected:
        raise ValueError(
            f"{weights.directory}: {name} has shape {tensor.get_shape()}; its config.json says {expected}."
        )
    rows, lengths = [], []
    for outer, *inner in groups:
        start, stop, _ = cuts[outer].indices(sizes[outer])
        width = math.prod(sizes[letter] for letter in inner)
        rows.append(slice(start * width, stop * width))
        lengths += [stop - start] + [sizes[letter] for letter in inner]
    part = tensor[tuple(rows)].astype(np.float32).reshape(lengths)
    already_cut = {group[0] for group in groups}
    return np.ascontiguousarray(part[tuple(slice(None) if letter in already_cut else cuts[letter] for letter in ours)])
