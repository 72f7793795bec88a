"""Weights from safetensors files, each device reading the part that it holds."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from grpo_jax.models.families import Stored
from grpo_jax.models.files import AGAIN, read_index
from grpo_jax.models.from_gguf.folder import find_gguf
from grpo_jax.models.from_gguf.weights import GgufWeights
from grpo_jax.models.model_config import has_other_parts, read_names
from grpo_jax.structs import Params, axes_of

Index = tuple[slice, ...]
BLOCK = 1_000_000  # values that are read at once, which are in memory three times: as bytes, in their type, in float32
FLOATS = ("F64", "F32", "F16", "BF16")  # other types are quantised weights, which need scales that nobody applies


class Weights:
    """The tensors of a directory of safetensors files, by name; files are opened when needed and read in slices."""

    def __init__(self, directory: Path):
        index = directory / "model.safetensors.index.json"
        if index.exists():
            self.files = read_index(index)
        else:
            self.files = _files_of_weights(directory)
        self.directory = directory
        self.open: dict[Path, Any] = {}

    def tensor(self, name: str) -> Any:
        """A reader of slices of one tensor."""
        if name not in self.files:
            raise ValueError(f"{self.directory}: the weight {name} is in none of its files. {AGAIN}")
        file = self.files[name]
        if file not in self.open:
            self.open[file] = safe_open(file, framework="np")
        try:
            return self.open[file].get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{file}: {name} is not in it, although the index says so. {AGAIN}") from error


def _files_of_weights(directory: Path) -> dict[str, Path]:
    """The file in which each weight is, where no index says it."""
    files: dict[str, Path] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():
                if name in files:
                    raise ValueError(
                        f"{directory}: {name} is both in {files[name].name} and in {file.name}. Remove the file that is"
                        f" not part of the model."
                    )
                files[name] = file
    return files


Source = Weights | GgufWeights  # either has `files`, `directory` and `tensor`


def load_weights(directory: Path, shapes: Params, shardings: Params) -> Params:
    """Parameters of these shapes and types. Each slice that devices of this host hold is read from the files once, and
    is on its devices before the next one is read.
    """
    weights = _open(directory)
    names, letters = read_names(directory, weights.files), _sizes(shapes)
    _refuse_unknown(weights, names, shapes)

    def load(path: tuple, wanted: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        name = _name(path)
        parts: list[jax.Array] = []
        for index, devices in _holders(sharding, wanted.shape):
            values = _read(weights, names[name], name, wanted.shape, letters, index)
            values = values.astype(wanted.dtype, copy=False)
            parts += jax.block_until_ready([jax.device_put(values, device) for device in devices])
        return jax.make_array_from_single_device_arrays(wanted.shape, sharding, parts)

    return jax.tree_util.tree_map_with_path(load, shapes, shardings)


def _open(directory: Path) -> Source:
    """The tensors of a model directory, by the names that Hugging Face has for them."""
    file = find_gguf(directory)
    if file is None:
        return Weights(directory)
    return GgufWeights(file, {stored.name for stored in read_names(directory, ()).values()})


def _holders(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> Iterable[tuple[Index, list[jax.Device]]]:
    """Each slice of an array of this shape that devices of this host hold, and these devices."""
    holders: dict[str, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        index = (slice(None),) * len(shape) if index is None else index
        holders.setdefault(str(index), (index, []))[1].append(device)
    return holders.values()


def _name(path: tuple) -> str:
    return "/".join(str(entry.key) for entry in path)


def _sizes(shapes: Params) -> dict[str, int]:
    """The size of each axis, by its letter."""
    sizes: dict[str, int] = {}
    for path, wanted in jax.tree_util.tree_leaves_with_path(shapes):
        ours = axes_of(_name(path))
        sizes |= dict(zip(ours, wanted.shape[len(wanted.shape) - len(ours) :], strict=True))
    return sizes


def _refuse_unknown(weights: Source, names: dict[str, Stored], shapes: Params) -> None:
    """Refuses files with weights that the model does not have: the model is then not what its config says."""
    known = {names["head_VD"].name}  # also saved by some tied models
    for path, wanted in jax.tree_util.tree_leaves_with_path(shapes):
        theirs = names[_name(path)].name
        layers, experts = (wanted.shape[axis] if key in theirs else 1 for axis, key in enumerate(("{n}", "{e}")))
        known |= {theirs.format(n=n, e=e) for n in range(layers) for e in range(experts)}
    others = ("vision_tower.", "multi_modal_projector.") if has_other_parts(weights.directory) else ()
    unknown = sorted(
        name
        for name in weights.files
        if name not in known
        and not name.endswith("rotary_emb.inv_freq")
        and not name.removeprefix("model.").startswith(others)
    )
    if unknown:
        raise ValueError(
            f"{weights.files[unknown[0]]}: the model of config.json has no parameters for {len(unknown)} of the"
            f" weights, such as {unknown[0]}. Remove the file if it is not part of the model, or use one of a"
            " supported architecture."
        )


def _read(
    weights: Source,
    stored: Stored,
    name: str,
    shape: tuple[int, ...],
    letters: dict[str, int],
    index: Index,
) -> np.ndarray:
    """The slice `index` of one of our parameters, from the Hugging Face tensors that it consists of."""
    theirs, ours = stored.name, axes_of(name)
    if not ours:
        raise ValueError(f"The parameter {name!r} does not end in its axes, such as `gate_FD`.")
    slices = dict(zip(ours, index[-len(ours) :], strict=True))
    letters = letters | dict(zip(ours, shape[-len(ours) :], strict=True))  # F is another number in a shared expert
    values = np.empty([len(range(size)[each]) for size, each in zip(shape, index, strict=True)], np.float32)
    if "{n}" not in theirs:
        _fill(values, weights, stored, ours, letters, slices)
        return values
    for layer, n in zip(values, range(shape[0])[index[0]], strict=True):
        _fill_layer(layer, weights, stored._replace(name=theirs.replace("{n}", str(n))), ours, letters, slices)
    return values


def _fill_layer(
    values: np.ndarray,
    weights: Source,
    stored: Stored,
    ours: str,
    sizes: dict[str, int],
    slices: dict[str, slice],
) -> None:
    """Reads the slice of one layer into `values`; its experts may have a tensor each."""
    if "{e}" not in stored.name:
        return _fill(values, weights, stored, ours, sizes, slices)
    for expert, e in zip(values, range(sizes["E"])[slices["E"]], strict=True):
        _fill(expert, weights, stored._replace(name=stored.name.format(e=e)), ours.removeprefix("E"), sizes, slices)


def _fill(
    values: np.ndarray,
    weights: Source,
    stored: Stored,
    ours: str,
    sizes: dict[str, int],
    slices: dict[str, slice],
) -> None:
    """Reads the slice of one tensor into `values`, with merged axes split, a block of rows at a time. Of a pair, only
    the outer axis is sliced while reading.
    """
    groups = [pair or single for pair, single in re.findall(r"\((\w+)\)|(\w)", stored.axes)]
    tensor, joined, before = _checked(weights, stored, groups, sizes)
    wanted, split_shape = [], []
    for outer, *inner in groups:
        start, stop, _ = slices[outer].indices(sizes[outer])
        width = math.prod(sizes[letter] for letter in inner)
        wanted.append(slice(start * width, stop * width))
        split_shape += [stop - start] + [sizes[letter] for letter in inner]
    sliced = {group[0] for group in groups}
    kept = tuple(slice(None) if letter in sliced else slices[letter] for letter in ours)
    wanted[joined] = slice(wanted[joined].start + before, wanted[joined].stop + before)
    first, width = wanted[0].start, math.prod(sizes[letter] for letter in groups[0][1:])
    step = max(1, BLOCK // max(math.prod(split_shape[1:]), 1))
    for at in range(0, len(values), step):
        count = min(step, len(values) - at)
        block = slice(first + at * width, first + (at + count) * width)
        values[at : at + count] = tensor[(block, *wanted[1:])].reshape(count, *split_shape[1:])[kept]


def _checked(weights: Source, stored: Stored, groups: list[str], sizes: dict[str, int]) -> tuple[Any, int, int]:
    """A tensor whose shape and type are right. Where it holds several weights: along which axis, and where ours is."""
    name, tensor = stored.name, weights.tensor(stored.name)
    expected = [math.prod(sizes[letter] for letter in group) for group in groups]
    rows = [math.prod(sizes[letter] for letter in group) for group in stored.parts]
    joined = groups.index(stored.parts[stored.index]) if rows else 0  # the axis along which there are several
    expected[joined] = sum(rows) if rows else expected[joined]
    if tensor.get_shape() != expected:
        raise ValueError(
            f"{weights.files[name]}: {name} has shape {tensor.get_shape()}; its config.json says {expected}. Use the"
            " config.json that belongs to these weights."
        )
    if tensor.get_dtype() not in FLOATS:
        raise ValueError(
            f"{weights.files[name]}: {name} has type {tensor.get_dtype()}; a weight is one of {', '.join(FLOATS)}."
            f" Use a version of the model that is not quantised."
        )
    return tensor, joined, sum(rows[: stored.index])
