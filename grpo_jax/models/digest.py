"""A digest of a model's weights, by which an adapter knows its base: of some bytes of each tensor in its files."""

import hashlib
import json
from pathlib import Path

SAMPLE = 4096  # bytes that are read in the middle of each tensor


def digest_of(directory: Path) -> str:
    """A digest of the safetensors or GGUF files of a model directory. Training or merging changes it, copying does not.

    Of a safetensors file it has the names, types and shapes of all tensors, and 4 KiB of each.
    """
    found = hashlib.sha256()
    files = sorted({*directory.glob("*.safetensors"), *directory.glob("*.gguf")})
    tensors = [each for file in files for each in (_tensors(file) if file.suffix == ".safetensors" else _blocks(file))]
    for name, content in sorted(tensors):
        found.update(name.encode() + content)
    return found.hexdigest()[:16]


def _tensors(file: Path) -> list[tuple[str, bytes]]:
    """The tensors of a file: name, type and shape, and some bytes."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        found = []
        for name, told in header.items():
            first, last = told["data_offsets"]
            opened.seek(8 + size + max(first, (first + last - SAMPLE) // 2))
            content = opened.read(min(SAMPLE, last - first))
            found.append((f"{name} {told['dtype']} {told['shape']}", content))
    return found


def _blocks(file: Path, count: int = 256) -> list[tuple[str, bytes]]:
    """Evenly spaced parts of a file of another format."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        found = []
        for index in range(count):
            opened.seek(index * size // count)
            found.append((f"{size} {index:03d}", opened.read(SAMPLE)))
    return found
