"""The config.json of a model that is one GGUF file."""

from typing import Any

import numpy as np

from grpo_jax.models.families import FAMILIES
from grpo_jax.models.from_gguf.architectures import KEYS
from grpo_jax.models.from_gguf.reading import GgufFile

# Metadata that is read here in another way, or that changes nothing.
READ = {"vocab_size", "attention.key_length", "attention.value_length", "attention.sliding_window_pattern"}
READ |= {"attention.sliding_window", "rope.dimension_count", "rope.scaling.finetuned", "rope.scaling.type"}
READ |= {"rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor"}
FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")  # tensors that are settings


def config_of(file: GgufFile) -> dict[str, Any]:
    """The config.json that describes the model, in the words of its family."""
    facts, architecture = file.of_model(), file.architecture
    keys = KEYS | dict(architecture.keys)
    _refuse_unknown(file, facts, set(keys))
    try:
        config: dict[str, Any] = {"model_type": architecture.family, "vocab_size": _rows(file, "token_embd.weight")}
        config |= {keys[key]: _plain(value) for key, value in facts.items() if key in keys}
        config |= {"rope_theta": config.get("rope_theta", 10000.0), "head_dim": _channels(file, facts)}
        config |= {"tie_word_embeddings": "output.weight" not in file.tensors}
        biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
        reads = FAMILIES[architecture.family].reads
        config |= {key: name in file.tensors for key, name in biases.items() if key in reads}
        return config | architecture.unsaid(facts) | _rope(file, facts)
    except KeyError as missing:
        raise ValueError(f"{file.path}: {missing} is missing from its metadata or tensors.") from missing


def _refuse_unknown(file: GgufFile, facts: dict[str, Any], known: set[str]) -> None:
    for key, value in facts.items():
        if key not in known and key not in READ and value:
            raise ValueError(
                f"{file.path}: {key} is {value!r}, and what it changes in the model is not supported in a GGUF file."
                f" Use the model's safetensors, if its family is supported."
            )


def _rows(file: GgufFile, name: str) -> int:
    return int(file.tensors[name].shape[-1])  # the file lists the innermost axis first


def _plain(value: Any) -> Any:
    """A value as config.json has it: the file holds 1e-6 as a float32, which reads as 9.999999974752427e-07."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, list) and len(set(value)) == 1:  # the same for each layer
        return value[0]
    return value


def _channels(file: GgufFile, facts: dict[str, Any]) -> int:
    """The channels of a head. Where only a part of them rotates, the family says so."""
    rotating = facts.get("rope.dimension_count")
    whole = facts["embedding_length"] // facts["attention.head_count"]
    channels = facts.get("attention.key_length", rotating if rotating and file.architecture.pairs else whole)
    partial = rotating not in (None, channels) and file.architecture.family != "phi3"
    if partial or facts.get("attention.value_length", channels) != channels:
        raise ValueError(
            f"{file.path}: all channels of keys must rotate, and values have as many; it says that of {channels}"
            f" channels {rotating} rotate, and that values have {facts.get('attention.value_length', channels)}."
        )
    return channels


def _rope(file: GgufFile, facts: dict[str, Any]) -> dict[str, Any]:
    """How rotary positions are scaled: by factors in a tensor, or by a rule."""
    if FACTORS[0] in file.tensors or FACTORS[1] in file.tensors:
        return {"rope_scaling": _by_factors(file, facts)}
    kind, factor = facts.get("rope.scaling.type", "none"), facts.get("rope.scaling.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind not in ("linear", "yarn") or "rope.scaling.attn_factor" in facts:
        raise ValueError(
            f"{file.path}: rotary positions scaled as {kind!r} are not supported in a GGUF file; linear is, and yarn"
            f" without attn_factor. Use the model's safetensors."
        )
    scaling = {"rope_type": kind, "factor": _plain(factor)}
    if kind == "yarn" and "rope.scaling.original_context_length" in facts:
        scaling |= {"original_max_position_embeddings": facts["rope.scaling.original_context_length"]}
    return {"rope_scaling": scaling}


def _by_factors(file: GgufFile, facts: dict[str, Any]) -> dict[str, Any]:
    """A factor for each frequency, by which it is divided: those of llama3 are the same at any length."""
    longest = facts["context_length"]
    if FACTORS[0] in file.tensors:
        short = long = _numbers(file, FACTORS[0])
        more = {"original_max_position_embeddings": longest, "attention_factor": 1.0}
    else:
        short, long = (_numbers(file, name) for name in FACTORS[1:])
        more = {"original_max_position_embeddings": facts.get("rope.scaling.original_context_length", longest)}
        if "rope.scaling.attn_factor" in facts:
            more |= {"attention_factor": _plain(facts["rope.scaling.attn_factor"])}
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long} | more


def _numbers(file: GgufFile, name: str) -> list[float]:
    return [float(str(value)) for value in np.asarray(file.tensors[name].data, np.float32)]
