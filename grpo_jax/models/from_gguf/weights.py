"""The tensors of a GGUF file under the names, and in the order of rows, that Hugging Face has them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from grpo_jax.models.files import AGAIN
from grpo_jax.models.from_gguf.config import FACTORS
from grpo_jax.models.from_gguf.reading import GgufFile, open_gguf


@dataclass(frozen=True)
class GgufTensor:
    """A reader of slices of one tensor, in float32. Only the rows that are asked for are dequantised."""

    file: GgufFile
    tensor: gguf.ReaderTensor
    channels: int | None = None  # of a head whose neighbouring rows are rotated together; None: rows are in order
    offset: float = 0.0  # what was added to the values

    def get_shape(self) -> list[int]:
        """The sizes of its axes, outermost first."""
        return [int(size) for size in reversed(self.tensor.shape)]

    def get_dtype(self) -> str:
        """The type of the values that are read, whatever they are stored as."""
        return "F32"

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        rows, *others = index
        try:
            values = gguf.quants.dequantize(self.tensor.data[rows], self.tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.file.path}: {self.tensor.name} is stored as {self.tensor.tensor_type.name}, which the package"
                f" gguf cannot dequantise. Use a file of another quantisation, such as Q8_0 or BF16."
            ) from error
        if self.channels is not None:  # in each head all of the first half, then the second half
            pairs = values.reshape(-1, self.channels // 2, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        return values[(slice(None), *others)] - np.float32(self.offset)


class GgufWeights:
    """The tensors of a GGUF file by the names that Hugging Face has for them; `names` are all that a model may have."""

    def __init__(self, path: Path, names: Iterable[str]):
        self.file = open_gguf(path)
        self.directory = path.parent
        layers, table = self.file.of_model()["block_count"], self.file.architecture.arch
        found = gguf.get_tensor_name_map(table, layers)
        self.theirs: dict[str, str] = {}
        dense = [name for name in names if "{e}" not in name]  # no architecture here has experts
        for name in (each.format(n=n) for each in dense for n in range(layers if "{n}" in each else 1)):
            stem, suffix = name.rsplit(".", 1)
            theirs = found.get_name(stem)
            if theirs is not None and f"{theirs}.{suffix}" in self.file.tensors:
                self.theirs[name] = f"{theirs}.{suffix}"
        others = self.file.tensors.keys() - set(self.theirs.values()) - set(FACTORS)
        self.files = dict.fromkeys((*self.theirs, *others), path.resolve())

    def tensor(self, name: str) -> Any:
        """A reader of slices of one tensor."""
        if name not in self.theirs:
            raise ValueError(f"{self.file.path.resolve()}: the weight {name} is not in it. {AGAIN}")
        architecture, tensor = self.file.architecture, self.file.tensors[self.theirs[name]]
        paired = architecture.pairs and re.search(r"\.attn_[qk]\.(weight|bias)$", tensor.name) is not None
        offset = architecture.norm_offset if name.endswith("norm.weight") else 0.0
        return GgufTensor(self.file, tensor, self._channels(tensor) if paired else None, offset)

    def _channels(self, tensor: gguf.ReaderTensor) -> int:
        facts = self.file.of_model()
        heads = facts["attention.head_count"]
        if ".attn_k." in tensor.name:
            heads = facts.get("attention.head_count_kv", heads)
        return int(tensor.shape[-1]) // heads
