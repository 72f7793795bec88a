"""Adapters as `peft` loads them: `adapter_config.json` and the tensors of `adapter_model.safetensors`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from grpo_jax.devices.placing import everywhere
from grpo_jax.models.hub import ADAPTER
from grpo_jax.models.lora import Lora, adapted_weights, weight_axes
from grpo_jax.models.peft.modules import OURS, PREFIX, WEIGHTS, Weight, at_path
from grpo_jax.structs import Params

Tensors = dict[str, np.ndarray]


def check_writable(base: Params, settings: Lora) -> None:
    """Refuses adapters of experts, for which PEFT has no names that hold in all versions of transformers."""
    for path, array in adapted_weights(base, tuple(settings.targets)):
        if weight_axes(path[-1], array.shape)[0].startswith("E"):
            raise ValueError(
                "Adapters of experts have no settled names in PEFT, so they cannot be written as its files. Leave"
                " --adapter (adapter=True) out: the export is then the whole model with the adapters added."
            )


def peft_tensors(adapters: Params, modules: Mapping[str, Sequence[Weight]]) -> Tensors:
    """The two float32 tensors of each adapted module and layer. All hosts call it.

    Where a module holds several of our weights, the `A` of those that are adapted follow each other, and `B` is block
    diagonal. Its rank is the sum of theirs, and the product is exactly the same.
    """
    tensors: Tensors = {}
    for module, weights in modules.items():
        ours = [(_part(adapters, weight, "lora_a"), _part(adapters, weight, "lora_b")) for weight in weights]
        if all(a is None for a, _ in ours):
            continue
        a_NAD = np.concatenate([_rows(a) for a, _ in ours if a is not None], axis=1)
        b_NFA = _block_diagonal([(weight.rows, b) for weight, (_, b) in zip(weights, ours, strict=True)], a_NAD.shape)
        for n, (a_AD, b_FA) in enumerate(zip(a_NAD, b_NFA, strict=True)):
            name = PREFIX + module.format(n=n)
            tensors |= {f"{name}.lora_A.weight": a_AD, f"{name}.lora_B.weight": b_FA}
    return tensors


def _part(adapters: Params, weight: Weight, kind: str) -> np.ndarray | None:
    node = at_path(adapters, weight.path)
    return next((everywhere(array) for name, array in node.items() if name.startswith(kind)), None)


def _rows(a: np.ndarray) -> np.ndarray:
    """`[N, A, ...]` as `[N, A, inputs]`."""
    return a.reshape(*a.shape[:2], -1)


def _block_diagonal(parts: Sequence[tuple[int, np.ndarray | None]], shape: tuple[int, ...]) -> np.ndarray:
    """`B` of a module: that of each part in rows and columns of its own, rows of zeros where there is none."""
    b_NFA = np.zeros((shape[0], sum(rows for rows, _ in parts), shape[1]), np.float32)
    row = column = 0
    for rows, b in parts:
        if b is not None:
            b_NFA[:, row : row + rows, column : column + b.shape[-1]] = b.reshape(shape[0], rows, -1)
            column += b.shape[-1]
        row += rows
    return b_NFA


def peft_config(settings: Lora, tensors: Tensors, base: str | None, apart: bool) -> dict[str, Any]:
    """What `adapter_config.json` says. `apart`: only these very modules are meant, not others of the same last name."""
    ranks = {name.removesuffix(".lora_A.weight"): len(a) for name, a in tensors.items() if ".lora_A." in name}
    ranks = {module.removeprefix(PREFIX): rank for module, rank in ranks.items()}
    targets = set(ranks) if apart else {module.rpartition(".")[2] for module in ranks}
    larger = {module.rpartition(".")[2]: rank for module, rank in ranks.items() if rank != settings.rank}
    alpha = _whole(settings.alpha)
    return {
        "base_model_name_or_path": base,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": alpha,
        "rank_pattern": larger,
        "alpha_pattern": {module: alpha * (rank // settings.rank) for module, rank in larger.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "target_modules": sorted(targets),
    }


def _whole(number: float | int) -> float | int:
    """32 for 32.0, as most read it."""
    return int(number) if number == int(number) else number


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: Tensors, ours: Mapping[str, Any]) -> None:
    """Writes the two files. `ours` is what an export of this library says beside PEFT's config."""
    text = json.dumps(config, indent=2) + "\n"
    (folder / ADAPTER).write_text(text, encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", OURS: json.dumps(ours)})
