"""A model as a directory that transformers, vLLM and this library load: weights, config, tokenizer and a card; or its
adapters alone, as PEFT loads them.

It is written into a sibling with a hidden name, which is renamed once all of it is on disk. So whenever the process
ends, the directory is whole or not there. On several hosts all of them call `export`, and the first one writes.
"""

import itertools
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from grpo_jax.devices.placing import everywhere
from grpo_jax.hosts import store
from grpo_jax.models.card import card
from grpo_jax.models.decoder import Shape
from grpo_jax.models.families import NAMES
from grpo_jax.models.hf_config import write_config, write_generation_config, write_tokenizer
from grpo_jax.models.hub import hub_name
from grpo_jax.models.load import Model, Origin, base_digest
from grpo_jax.models.lora import Lora, merged
from grpo_jax.models.model_config import has_other_parts, read_names
from grpo_jax.models.peft.modules import modules_of, stored_names
from grpo_jax.models.peft.writing import check_writable, peft_config, peft_tensors, write_adapter
from grpo_jax.structs import Params, axes_of

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
COPIED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
COPIED += ("chat_template*", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Tensor:
    """A tensor as transformers names it. `read` gives its values in float32; all hosts call it, in the same order."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def export(
    model: Model,
    params: Params,
    directory: str | Path,
    dtype: Literal["float32", "bfloat16"] = "float32",  # float32: exactly what was trained; bfloat16: half the size
    shard_bytes: int = 2_000_000_000,  # of a weights file, at most, unless one tensor is larger
    run: str | Path | None = None,  # the run directory that the card tells of; None: the one that was loaded, if any
    adapter: bool = False,  # write the adapters alone; else they are added to the weights
) -> Path:
    """Writes a directory that did not exist, and returns it."""
    target = Path(directory).expanduser().absolute()
    if store.decide(lambda: "taken" if _exists(target) else "free") == "taken":
        check_free(target, taken=True)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float32 or bfloat16; got {dtype!r}.")
    if adapter and (model.lora is None or "lora" not in params):
        raise ValueError("This model has no adapters, so adapter must be False: all its weights are written.")
    told = None if run is None else Path(run)
    part = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        if store.is_first():
            part.mkdir(parents=True)
        if adapter:
            _write_adapter(model, params["lora"], part, dtype)
        else:
            _write_model(model, params, part, dtype, shard_bytes)
        if store.is_first():
            (part / "README.md").write_text(card(model, told, adapter), encoding="utf-8")
            _sync(part)
            check_free(target)
            part.rename(target)
            _sync(target.parent, files=False)
        store.gather("the directory is there")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _write_model(model: Model, params: Params, folder: Path, dtype: str, shard_bytes: int) -> None:
    """Everything but the card. Adapters are added to the weights."""
    source = None if model.origin is None else model.origin.directory
    names = NAMES if source is None else read_names(source, ())
    if model.lora is not None:
        params = jax.jit(partial(merged, settings=model.lora))(params)
    _write_weights(_tensors(params, names, model.shape), folder, dtype, shard_bytes)
    if store.is_first():
        _write_others(model, folder, dtype)


def _write_adapter(model: Model, adapters: Params, folder: Path, dtype: str) -> None:
    """The two files that PEFT reads."""
    settings, origin = model.lora or Lora(), model.origin or Origin("")
    base = model.policy.shapes["base"]
    check_writable(base, settings)
    tensors = peft_tensors(adapters, modules_of(base, stored_names(origin.directory)))
    apart = origin.directory is not None and has_other_parts(origin.directory)
    config = peft_config(settings, tensors, hub_name(origin.base) or None, apart)
    ours = {"digest": base_digest(model), "targets": settings.targets}
    ours |= {"base": origin.base} if hub_name(origin.base) != origin.base else {}
    if store.is_first():
        write_adapter(folder, config, {name: a.astype(DTYPES[dtype]) for name, a in tensors.items()}, ours)


def check_free(target: Path, taken: bool = False) -> None:
    """Refuses to export into a directory that exists."""
    if taken or _exists(target):
        raise ValueError(f"{target} exists already, and an export writes over nothing. Name another directory.")


def _exists(target: Path) -> bool:
    return target.exists() or target.is_symlink()


def _tensors(params: Params, names: Mapping[str, Sequence[Any]], shape: Shape) -> Iterator[Tensor]:
    """The tensors of a model by the names that it is read with. A tied head and rows of padding are left out.

    Parameters that are in one tensor there follow each other in it, in the order of the table of names.
    """
    leaves = {
        "/".join(str(entry.key) for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if shape.tied:
        leaves.pop("head_VD", None)
    if unknown := sorted(leaves.keys() - names.keys()):
        raise ValueError(f"The parameter {unknown[0]} has no name in a Hugging Face model; leave it out of `params`.")
    together: dict[str, list[str]] = {}
    for ours in (name for name in names if name in leaves):
        together.setdefault(names[ours][0], []).append(ours)
    for theirs, parts in together.items():
        for place in _places(theirs, leaves[parts[0]]):
            name = theirs.format(**dict(zip("ne", place, strict=False)))
            found = [_tensor(name, names[ours][1], ours, leaves[ours], place, shape) for ours in parts]
            yield found[0] if len(found) == 1 else _joined(found)


def _places(theirs: str, leaf: Any) -> Iterator[tuple[int, ...]]:
    """The layer, or the layer and the expert, of each tensor whose name has their numbers in it."""
    numbered = [size for key, size in zip(("{n}", "{e}"), leaf.shape, strict=False) if key in theirs]
    return itertools.product(*map(range, numbered))


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor whose rows are those of several."""
    rows = sum(part.shape[0] for part in parts)
    return Tensor(
        parts[0].name, (rows, *parts[0].shape[1:]), lambda: np.concatenate([part.read() for part in parts], axis=0)
    )


def _tensor(name: str, axes: str, ours: str, leaf: Any, place: tuple[int, ...], shape: Shape) -> Tensor:
    """One tensor: the axes of ours in their order, those of a pair merged. The inverse of reading it (weights.py)."""
    groups = [pair or single for pair, single in re.findall(r"\((\w+)\)|(\w)", axes)]
    letters = axes_of(ours)[-len("".join(groups)) :]  # each expert has a tensor, or all of them have one
    sizes = dict(zip(letters, leaf.shape[-len(letters) :], strict=True))
    sizes |= {"V": shape.vocabulary} if "V" in sizes else {}
    wanted = tuple(math.prod(sizes[letter] for letter in group) for group in groups)
    kept = tuple(slice(sizes[letter]) for letter in letters)
    order = [letters.index(letter) for letter in "".join(groups)]

    def read() -> np.ndarray:
        values = everywhere(leaf[place] if place else leaf)[kept]
        return np.ascontiguousarray(values.transpose(order)).reshape(wanted)

    return Tensor(name, wanted, read)


def _write_weights(tensors: Iterator[Tensor], folder: Path, dtype: str, shard_bytes: int) -> None:
    """Writes the tensors into files of `shard_bytes`, one of which is in memory at once, and their index."""
    shards = _shards(list(tensors), DTYPES[dtype].itemsize, shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for file, shard in zip(names, shards, strict=True):
        arrays = {tensor.name: tensor.read().astype(DTYPES[dtype]) for tensor in shard}
        if store.is_first():
            save_file(arrays, folder / file, metadata={"format": "pt"})
    if len(shards) > 1 and store.is_first():
        places = {tensor.name: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
        size = sum(math.prod(tensor.shape) for shard in shards for tensor in shard) * DTYPES[dtype].itemsize
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: list[Tensor], itemsize: int, shard_bytes: int) -> list[list[Tensor]]:
    """The tensors by file, in their order."""
    shards: list[list[Tensor]] = [[]]
    used = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    return shards


def _write_others(model: Model, folder: Path, dtype: str) -> None:
    """Everything but the weights and the card."""
    source = None if model.origin is None else model.origin.directory
    write_config(source, folder, model.shape, dtype)
    write_generation_config(source, folder, model.tokenizer.end_ids)
    if source is None:
        write_tokenizer(model.tokenizer.backend, folder)
    for file in () if source is None else sorted({path for pattern in COPIED for path in source.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _sync(folder: Path, files: bool = True) -> None:
    """Waits until the folder, and every file of it, is on disk: a rename may reach it before what is renamed does."""
    for path in [*(folder.iterdir() if files else ()), folder]:
        if path.is_file():
            path.chmod(0o644)  # safetensors writes files that nobody else may read
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
