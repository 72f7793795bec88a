"""Adapters that `peft` wrote, read strictly: what would be computed differently here is refused by its name."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import safe_open

from grpo_jax.devices.placing import place
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models.families import Stored
from grpo_jax.models.files import AGAIN, positive_number, read_json, switch, whole_number
from grpo_jax.models.hub import ADAPTER, hub_name, is_adapter
from grpo_jax.models.lora import INPUTS, Lora, adapted_weights
from grpo_jax.models.peft.modules import OURS, PREFIX, WEIGHTS, Weight, modules_of
from grpo_jax.structs import Params

READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "alpha_pattern", "use_rslora"}
# Keys that do not change what a finished adapter computes, or that its tensors say again.
WITHOUT_EFFECT = {"task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "megatron_core"}
WITHOUT_EFFECT |= {"target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "eva_config"}
WITHOUT_EFFECT |= {"runtime_config", "qalora_group_size"}
# Ways to begin that leave the base as it is. Others subtract the first adapters from it.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
HARMLESS = {"bias": ("none",), "revision": ("main",), "init_lora_weights": BEGINNINGS}
WHOLE = "Add it to its model with PEFT (merge_and_unload), and name the directory of the whole model."


@dataclass(frozen=True)
class PeftFolder:
    """A directory with an adapter of PEFT's: its config, and the shapes of its tensors without `base_model.model.`.

    `base` is the model that it belongs to. An export of this library also says the `digest` of that and the `targets`.
    """

    directory: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    base: str
    digest: str = ""
    targets: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Its weights."""
        return self.directory / WEIGHTS


@dataclass(frozen=True)
class Held:
    """Where the adapter of one of our weights is: the rows of its module's `B`, and which equal part of the rank."""

    weight: Weight
    module: str  # with {n} for the layer
    rows: slice
    part: int = 0
    parts: int = 1

    def ranks(self, whole: int) -> slice:
        """Its part of the rank of the module."""
        rank = whole // self.parts
        return slice(self.part * rank, (self.part + 1) * rank)


def read_folder(directory: Path) -> PeftFolder:
    """The adapter in a directory. Nothing but the shapes is read of its tensors."""
    config = read_json(directory / ADAPTER)
    _check_config(directory / ADAPTER, config)
    file = directory / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{directory} has no {WEIGHTS}. Save the adapter with save_pretrained of PEFT.")
    with safe_open(file, framework="np") as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        metadata = tensors.metadata() or {}
    ours = _ours(file, metadata.get(OURS, "{}"))
    base, known = config["base_model_name_or_path"], str(ours.get("base", ""))
    base = known if hub_name(known) == base else base
    if is_adapter(Path(base).expanduser()):
        raise ValueError(f"{directory} is an adapter of {base}, which is an adapter itself. {WHOLE}")
    shapes = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    return PeftFolder(directory, config, shapes, base, str(ours.get("digest", "")), tuple(ours.get("targets", ())))


def _ours(file: Path, text: str) -> dict[str, Any]:
    """What an export of this library says beside PEFT's config."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: its metadata {OURS} cannot be read ({error}). {AGAIN}") from error


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Refuses kinds of adapters that compute something else."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {config.get('peft_type')!r}, and only LORA is supported. {WHOLE}")
    for key, value in config.items():
        if key in READ | WITHOUT_EFFECT or not value or value in HARMLESS.get(key, ()):
            continue
        raise ValueError(
            f"{file}: {key} is {value!r}, and this changes the adapter or its model in a way that is not supported."
            f" {WHOLE}"
        )
    for key in ("base_model_name_or_path", "r", "lora_alpha"):
        if key not in config:
            raise ValueError(f"{file}: {key} is missing. Write it there, as PEFT does.")
    if not isinstance(config["base_model_name_or_path"], str) or not config["base_model_name_or_path"]:
        raise ValueError(f"{file}: base_model_name_or_path must name the model that the adapter belongs to.")
    whole_number(file, dict(config), "r")
    positive_number(file, dict(config), "lora_alpha")
    switch(file, {"use_rslora": False} | dict(config), "use_rslora")
    patterns = config.get("alpha_pattern", {})
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in patterns):
        raise ValueError(f"{file}: alpha_pattern must hold the names of modules; got {patterns!r}. {WHOLE}")
    for key in patterns:
        positive_number(file, patterns, key)


def adapters_in(
    folder: PeftFolder, base: Params, names: Mapping[str, Stored]
) -> tuple[Lora, Callable[[Params, Mesh], Params]]:
    """The settings of the adapters for a base with these shapes, and how they are read for the shapes of adapters.

    All adapters here have one rank and one factor. A smaller rank is filled up with zeros. They stay zeros in training,
    as the gradient of either matrix is a product with the other. Another factor is a factor of `B`.
    """
    modules = modules_of(base, names)
    held = _held(folder, modules)
    _check_tensors(folder, held, modules)
    targets = tuple(kind for kind in INPUTS if any(each.weight.kind == kind for each in held.values()))
    _check_whole(folder, held, base, targets)
    rank = max(folder.shapes[_name(each.module, n, "A")][0] // each.parts for each, n in _layers(held.values()))
    alpha = float(folder.config["lora_alpha"]) * (rank / _divisor(folder, folder.config["r"]))
    return Lora(rank, alpha, targets), partial(_read, folder, held)


def _held(folder: PeftFolder, modules: Mapping[str, Sequence[Weight]]) -> dict[tuple[str, ...], Held]:
    """The adapter of each of our weights, by its path.

    Those in one module share its `A`, or have parts of it where an export of this library says so.
    """
    found = {}
    for module, weights in modules.items():
        if not any(_name(module, n, which) in folder.shapes for n in range(weights[0].layers) for which in "AB"):
            continue
        ours = [weight for weight in weights if weight.kind in folder.targets]
        row = 0
        for weight in weights:
            rows, row = slice(row, row + weight.rows), row + weight.rows
            if weight in ours:
                found[weight.path] = Held(weight, module, rows, ours.index(weight), len(ours))
            elif not folder.targets:
                found[weight.path] = Held(weight, module, rows)
    return found


def _name(module: str, n: int, which: str) -> str:
    return f"{module.format(n=n)}.lora_{which}.weight"


def _layers(held: Iterable[Held]) -> Iterator[tuple[Held, int]]:
    return ((each, n) for each in held for n in range(each.weight.layers))


def _check_tensors(folder: PeftFolder, held: Mapping[Any, Held], modules: Mapping[str, Sequence[Weight]]) -> None:
    """Refuses tensors that are missing, that no module of the model has, or that have another shape."""
    known = {_name(each.module, n, which) for each, n in _layers(held.values()) for which in "AB"}
    if unknown := sorted(folder.shapes.keys() - known):
        raise ValueError(
            f"{folder.file}: {unknown[0]} is the adapter of nothing that {folder.base} has and that can be adapted"
            f" here. {WHOLE}"
        )
    if missing := sorted(known - folder.shapes.keys()):
        raise ValueError(f"{folder.file}: {missing[0]} is missing, as all layers are adapted alike. {WHOLE}")
    if not known:
        raise ValueError(f"{folder.file} has no adapters. {AGAIN}")
    for each, n in _layers(held.values()):
        a, b = (folder.shapes[_name(each.module, n, which)] for which in "AB")
        outputs, inputs = sum(weight.rows for weight in modules[each.module]), math.prod(each.weight.inputs)
        if len(a) != 2 or a[0] < 1 or a[0] % each.parts or a[1] != inputs or b != (outputs, a[0]):
            name = _name(each.module, n, "A")
            raise ValueError(
                f"{folder.file}: {name} and its lora_B have the shapes {list(a)} and {list(b)}, and in {folder.base}"
                f" they are [rank, {inputs}] and [{outputs}, rank]. Name the model that the adapter was trained on as"
                f" base_model_name_or_path in {folder.directory / ADAPTER}."
            )


def _check_whole(folder: PeftFolder, held: Mapping[Any, Held], base: Params, targets: Sequence[str]) -> None:
    """Refuses adapters of some weights of a target, and not of its others, as shared experts without the experts."""
    for path, _ in adapted_weights(base, targets):
        if path not in held:
            raise ValueError(f"{folder.file} adapts some weights called {path[-1]}, and not {'/'.join(path)}. {WHOLE}")


def _divisor(folder: PeftFolder, rank: int) -> float:
    """What alpha is divided by: the rank, or its square root (rsLoRA, arXiv:2312.03732)."""
    return math.sqrt(rank) if folder.config.get("use_rslora", False) else float(rank)


def _factor(folder: PeftFolder, module: str, rank: int) -> float:
    """The factor of a module's adapter, as a multiple of that which `r` and `lora_alpha` give."""
    config = folder.config
    patterns = config.get("alpha_pattern", {})
    alphas = (alpha for key, alpha in patterns.items() if f".{module}".endswith(f".{key}"))
    alpha = next(alphas, config["lora_alpha"])
    return (alpha * _divisor(folder, config["r"])) / (config["lora_alpha"] * _divisor(folder, rank))


def _read(folder: PeftFolder, held: Mapping[tuple[str, ...], Held], shapes: Params, mesh: Mesh) -> Params:
    """The adapters, on their devices."""
    with safe_open(folder.file, framework="np") as tensors:
        stored = {name.removeprefix(PREFIX): name for name in tensors.keys()}

        def tensor(module: str, n: int, which: str) -> np.ndarray:
            return tensors.get_tensor(stored[_name(module, n, which)]).astype(np.float32)

        def read(path: tuple, wanted: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
            *where, name = (str(entry.key) for entry in path)
            each, values = held[tuple(where)], np.zeros(wanted.shape, np.float32)
            for n in range(each.weight.layers):
                if name.startswith("lora_a"):
                    a_AD = tensor(each.module, n, "A")
                    own_AD = a_AD[each.ranks(len(a_AD))]
                    values[n, : len(own_AD)] = own_AD.reshape(-1, *each.weight.inputs)
                else:
                    b_FA = tensor(each.module, n, "B")
                    rank = b_FA.shape[1]
                    own_FA = b_FA[each.rows, each.ranks(rank)]
                    own_FA *= np.float32(_factor(folder, each.module.format(n=n), rank))
                    values[n, ..., : own_FA.shape[1]] = own_FA.reshape(*each.weight.outputs, -1)
            return place(values, sharding)

        return jax.tree_util.tree_map_with_path(read, shapes, weight_shardings(shapes, mesh))
