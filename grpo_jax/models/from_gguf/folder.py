"""A GGUF file as a model directory: config and tokenizer as Hugging Face has them, and a link to the file.

The directory is made once, in the cache, and takes no room beside the file: weights are dequantised as they are read.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from grpo_jax.devices.folders import cache_folder
from grpo_jax.models.from_gguf.config import config_of
from grpo_jax.models.from_gguf.reading import GgufFile, open_gguf
from grpo_jax.models.from_gguf.tokenizer import write_tokenizer
from grpo_jax.models.smollm2 import publish

VERSION = "1"  # of what is written here: another one makes directories anew
LINK = "model.gguf"
TOKENIZERS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
BESIDE = (*TOKENIZERS, "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*")


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path names, or that a directory without safetensors holds; None if there is none."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf")) if path.is_dir() and not any(path.glob("*.safetensors")) else []
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {len(found)} GGUF files. Name one of them: {', '.join(str(each) for each in found[:4])}."
        )
    return found[0] if found else None


def unpack(path: Path) -> Path:
    """The directory of the model in a GGUF file. A tokenizer whose files lie beside it is used instead of its own.

    A config.json beside it is not read: the file says itself what the model computes.
    """
    beside = sorted({each for pattern in BESIDE for each in path.parent.glob(pattern) if each.is_file()})
    stats = [(str(each.resolve()), each.stat().st_size, each.stat().st_mtime_ns) for each in (path, *beside)]
    digest = hashlib.sha256(repr((VERSION, stats)).encode()).hexdigest()[:16]
    target = cache_folder() / "gguf" / f"{path.stem}-{digest}"
    if target.is_dir():
        return target
    file = open_gguf(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as work:
        draft = Path(work) / "model"
        draft.mkdir()
        _write(file, beside, draft)
        publish(draft, target)
    return target


def _write(file: GgufFile, beside: list[Path], draft: Path) -> None:
    config = config_of(file)
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not any(each.match(pattern) for each in beside for pattern in TOKENIZERS):
        write_tokenizer(file, draft)
    for each in beside:
        shutil.copyfile(each, draft / each.name)
    (draft / LINK).symlink_to(file.path.resolve())
