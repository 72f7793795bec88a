"""The tokenizer in a GGUF file, as tokenizer.json and tokenizer_config.json."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from grpo_jax.models.from_gguf.reading import GgufFile
from grpo_jax.models.smollm2 import digits_tokenizer

# How text is split before merges: `tokenizer.ggml.pre` of vocabularies of bytes. Others of sentencepiece have one way.
SPLITS = {"gpt-2", "llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx", "tekken", "qwen2", "gpt-4o"}
SPLITS |= {"deepseek-r1-qwen", "kanana2"}
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # Hugging Face's word, and GGUF's
BESIDE = "Put the model's tokenizer.json and tokenizer_config.json beside it; they are used instead."


def write_tokenizer(file: GgufFile, directory: Path) -> None:
    """Writes the files of the tokenizer into a directory."""
    facts = {key.removeprefix("tokenizer."): a for key, a in file.facts.items() if key.startswith("tokenizer.")}
    if "ggml.tokens" not in facts:
        raise ValueError(f"{file.path} has no tokenizer (tokenizer.ggml.tokens). {BESIDE}")
    backend = _backend(file, facts)
    roles = {role: facts.get(f"ggml.{word}_token_id") for role, word in ROLES.items()}
    try:
        tokens = {role: facts["ggml.tokens"][number] for role, number in roles.items() if number is not None}
    except IndexError as error:
        raise ValueError(f"{file.path}: its special tokens {roles} are not all in its vocabulary. {BESIDE}") from error
    begins = facts.get("ggml.add_bos_token", facts["ggml.model"] == "llama")
    if begins and "bos" in tokens:
        backend.post_processor = TemplateProcessing(
            single=f"{tokens['bos']} $A",
            pair=f"{tokens['bos']} $A {tokens['bos']} $B",
            special_tokens=[(tokens["bos"], roles["bos"])],
        )
    backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config["model_input_names"] = ["input_ids", "attention_mask"]  # transformers 4 would add token_type_ids
    config |= {f"{role}_token": token for role, token in tokens.items()}
    if "chat_template" in facts:
        config["chat_template"] = facts["chat_template"]
    _write_json(directory / "tokenizer_config.json", config)
    ends = [facts[key] for key in ("ggml.eos_token_id", "ggml.eot_token_id") if key in facts]
    _write_json(directory / "generation_config.json", {"eos_token_id": sorted(set(ends))} if ends else {})


def _backend(file: GgufFile, facts: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer, which transformers makes of the vocabulary."""
    kind, split = facts.get("ggml.model"), facts.get("ggml.pre")
    if kind == "gpt2" and split == "smollm":
        return digits_tokenizer(file.facts)
    if kind not in ("llama", "gpt2") or (kind == "gpt2" and split not in SPLITS):
        raise ValueError(
            f"{file.path}: the tokenizer {kind!r} that splits text as {split!r} is not supported. {BESIDE}"
        )
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
    except ImportError as error:
        raise ValueError(
            f"{file.path}: its tokenizer is read by a newer version of transformers. Run `pip install -U transformers`,"
            f" or put the model's tokenizer.json and tokenizer_config.json beside it."
        ) from error
    given = {name: facts[key] for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items() if key in facts}
    try:
        made = convert_gguf_tokenizer(file.facts["general.architecture"], given)[0]
    except Exception as error:  # each kind of damage raises another class, and some a bare Exception
        raise ValueError(
            f"{file.path} has no tokenizer that can be read ({type(error).__name__}: {error}). {BESIDE}"
        ) from error
    return _without_additions(made, len(facts["ggml.tokens"]))


def _without_additions(backend: tokenizers.Tokenizer, size: int) -> tokenizers.Tokenizer:
    """The tokenizer without tokens beyond its vocabulary: transformers adds an <|endoftext|> where there is none."""
    if backend.get_vocab_size(with_added_tokens=True) <= size:
        return backend
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
