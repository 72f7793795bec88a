"""Opens GGUF files, and says what is wrong with one that cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from grpo_jax.models.files import AGAIN
from grpo_jax.models.from_gguf.architectures import ARCHITECTURES, Architecture

# What the reader raises for a file that is cut short, or is none of its format.
BROKEN = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError)


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file: its metadata, and its tensors by name."""

    path: Path
    facts: dict[str, Any]
    tensors: dict[str, gguf.ReaderTensor]

    @property
    def architecture(self) -> Architecture:
        """What is known about files of this architecture."""
        return ARCHITECTURES[self.facts["general.architecture"]]

    def of_model(self) -> dict[str, Any]:
        """The metadata that describes the model, without the name of the architecture before each key."""
        start = f"{self.facts['general.architecture']}."
        return {key.removeprefix(start): value for key, value in self.facts.items() if key.startswith(start)}


def open_gguf(path: Path) -> GgufFile:
    """The file, whose architecture is a supported one."""
    try:
        reader = gguf.GGUFReader(path)
        facts = {key: field.contents() for key, field in reader.fields.items()}
    except BROKEN as error:
        raise ValueError(
            f"{path} is not a complete GGUF file ({type(error).__name__}: {error}): it was cut short, is a git-lfs"
            f" pointer, or has another format. {AGAIN}"
        ) from error
    name = facts.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{path}: general.architecture {name!r} is not supported in a GGUF file; {', '.join(ARCHITECTURES)} are."
            f" Use the model's safetensors, if its family is supported."
        )
    if facts.get("split.count", 1) > 1:
        raise ValueError(
            f"{path} is one of {facts['split.count']} parts of a model. Join them with `llama-gguf-split --merge`."
        )
    return GgufFile(path, facts, {tensor.name: tensor for tensor in reader.tensors})
