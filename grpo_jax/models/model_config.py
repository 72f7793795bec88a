"""Reads a directory's `config.json`: the shape of the model, and the names of its weights.

A key that changes what a model computes is read, or refused by its name.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from grpo_jax.models.decoder import Shape, Span
from grpo_jax.models.expert_config import read_experts
from grpo_jax.models.families import FAMILIES, FUSED, FUSED_EXPERTS, NAMES, Family, Stored
from grpo_jax.models.files import positive_number, read_json, switch, whole_number
from grpo_jax.models.rope import Rope
from grpo_jax.models.rope_config import read_rope

# Words in the names of keys that change what is computed.
CHANGES = re.compile(
    r"multiplier|softcap|scal(e|ar|ing)|quant|(^|_)norm|sliding|window|(^|_)rope|rotary|(^|_)qk|bias|(^|_)mup|alibi|clip"
    r"|expert|bidirectional|activation|layer_types|sinks|per_layer|altup|laurel|shared|head_dim_|_act$"
)
KNOWN = {"rope_theta", "rope_scaling", "rope_parameters", "hidden_act", "hidden_activation", "initializer_range"}
UNUSED = {"sliding_window", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"}  # without effect
PARTS = ("model.language_model.", "language_model.model.")  # what stands before the names of a part's weights


def read_shape(directory: Path, config_name: str = "config.json") -> Shape:
    """The shape that a directory's `config.json` describes; refuses what this decoder would compute differently."""
    file = directory / config_name
    name, family, config = _read(file)
    _refuse_unknown(file, family, config)
    try:
        heads, kv_heads, channels = _read_heads(file, config)
        spans = _read_spans(file, family, config, channels)
        alike = len(set(spans)) == 1
        rotating = [span.rope for span in spans if span.rope is not None]
        longest = whole_number(file, config, "max_position_embeddings")
        if any(rope.scaling == "longrope" for rope in rotating):  # longer texts have other frequencies, from the start
            longest = min(longest, *(rope.original_positions for rope in rotating))
        experts = read_experts(file, family, config, len(spans))
        feedforward = whole_number(file, config, "intermediate_size")
        if experts is not None:
            feedforward = experts.chosen * experts.feedforward + (0 if experts.shared is None else experts.shared)
        fields = _read_numbers(file, family, config) | _read_biases(file, name, family, config) | dict(family.shape)
        width = whole_number(file, config, "hidden_size")
        scale = {"embed_scale": width**0.5} if "norm_offset" in fields else {}  # all Gemmas
        return Shape(
            vocabulary=whole_number(file, config, "vocab_size"),
            width=width,
            feedforward=feedforward,
            layers=len(spans),
            heads=heads,
            kv_heads=kv_heads,
            channels=channels,
            rope=rotating[-1] if rotating else Rope(10000.0),
            norm_epsilon=positive_number(file, config, "rms_norm_eps"),
            max_positions=longest,
            tied=switch(file, {"tie_word_embeddings": False} | config, "tie_word_embeddings"),
            window=spans[0].window if alike else None,
            pattern=() if alike and rotating else spans,
            experts=experts,
            **fields | scale,
        )
    except KeyError as missing:
        raise ValueError(f"{file}: {missing} is missing; it belongs in the config of a {name} model.") from missing


def read_names(directory: Path, files: Iterable[str]) -> dict[str, Stored]:
    """Our name of each weight -> the tensor that holds it, in a model whose tensors are called `files`."""
    _, family, _ = _read(directory / "config.json")
    names = {ours: Stored(*theirs) for ours, theirs in NAMES.items()} | dict(family.names)
    files = list(files)
    if FUSED.format(n=0) in files:
        names |= FUSED_EXPERTS
    if family.part is None:
        return names
    part = next((part for part in PARTS if any(name.startswith(part) for name in files)), "model.")
    head = "language_model.lm_head." if part == PARTS[1] else "lm_head."
    return {
        ours: stored._replace(name=re.sub(r"^lm_head\.", head, re.sub(r"^model\.", part, stored.name)))
        for ours, stored in names.items()
    }


def has_other_parts(directory: Path) -> bool:
    """Whether the model has more than a language model: its other weights are not read."""
    return _read(directory / "config.json")[1].part is not None


def _read(file: Path) -> tuple[str, Family, dict[str, Any]]:
    """The family of a model, its name, and its config with what it means that keys are left out."""
    config = read_json(file)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"{file}: model_type {name!r} is not supported; the families are {', '.join(FAMILIES)}.")
    family, written = FAMILIES[name], json.loads(file.read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise ValueError(
            f"{file}: quantization_config says that the weights are quantised, and they are trained as they are."
            f" Use a version of the model that is not quantised."
        )
    if family.part is not None:
        part = config.get(family.part, {})
        if not isinstance(part, dict):
            raise ValueError(f"{file}: {family.part} must hold keys and values; got {part!r}.")
        written = part
        config = {key: value for key, value in config.items() if key == "tie_word_embeddings"} | part
        config = {key: value for key, value in config.items() if value is not None}
    config |= {key: value for key, value in family.meanings.items() if key not in written}
    config |= {key: config.pop(newer) for newer, key in family.renamed.items() if newer in config}
    if "_sliding_window_pattern" in config:
        config["sliding_window_pattern"] = config["_sliding_window_pattern"]
    return name, family, config


def _refuse_unknown(file: Path, family: Family, config: dict[str, Any]) -> None:
    for key in ("hidden_act", "hidden_activation"):
        if key in config and config[key] not in family.activations:
            raise ValueError(f"{file}: {key} is {config[key]!r}; only {family.activations[0]!r} is supported.")
    for key, value in config.items():
        if key in family.reads or key in KNOWN or key in family.meanings or _has_no_effect(key, config):
            continue
        if CHANGES.search(key) and not key.endswith(("_init", "_dropout", "_eps", "_range")) and value:
            raise ValueError(
                f"{file}: {key} is {value!r}, and this changes what the model computes in a way that is not supported."
                f" Choose another model; the families are {', '.join(FAMILIES)}."
            )


def _has_no_effect(key: str, config: dict[str, Any]) -> bool:
    """Whether a key is about windows that no layer has. Transformers 5 writes the layers' types for every family."""
    if key == "layer_types":
        return type(config[key]) is list and all(kind == "full_attention" for kind in config[key])
    return key in UNUSED and not config.get("use_sliding_window", False)


def _read_heads(file: Path, config: dict[str, Any]) -> tuple[int, int, int]:
    """How many query and key heads there are, and the channels of each."""
    heads = whole_number(file, config, "num_attention_heads")
    width = whole_number(file, config, "hidden_size")
    kv_heads = whole_number(file, {"num_key_value_heads": heads} | config, "num_key_value_heads")
    channels = whole_number(file, {"head_dim": width // heads} | config, "head_dim")
    if heads % kv_heads or channels % 2:
        raise ValueError(
            f"{file}: num_attention_heads must be a multiple of num_key_value_heads, and head_dim even, as positions"
            f" rotate pairs of channels; got {heads}, {kv_heads} and {channels}."
        )
    return heads, kv_heads, channels


def _read_spans(file: Path, family: Family, config: dict[str, Any], channels: int) -> tuple[Span, ...]:
    """How each layer attends."""
    layers = whole_number(file, config, "num_hidden_layers")
    for key in ("layer_types", "no_rope_layers"):
        if key in family.reads and key in config and (type(config[key]) is not list or len(config[key]) != layers):
            raise ValueError(f"{file}: {key} must say one thing for each of the {layers} layers; got {config[key]!r}.")
    windowed = family.local is not None and family.window in config
    if windowed and "sliding_window_pattern" in family.reads and "layer_types" not in config:
        whole_number(file, config, "sliding_window_pattern")
    local_N = [windowed and _is_local(file, family, config, n) for n in range(layers)]
    window = whole_number(file, config, family.window) if any(local_N) else None

    def rope(kind: str, theta: str | None) -> Any:
        return read_rope(file, config, kind, theta, channels, family.interleaved)

    everywhere = rope("full_attention", None)
    nearby = everywhere if family.local_theta is None else rope("sliding_attention", family.local_theta)
    return tuple(
        Span(window if local else None, (nearby if local else everywhere) if _rotates(family, config, n) else None)
        for n, local in enumerate(local_N)
    )


def _rotates(family: Family, config: dict[str, Any], n: int) -> bool:
    return family.rotates is None or family.rotates(config, n)


def _is_local(file: Path, family: Family, config: dict[str, Any], n: int) -> bool:
    if "layer_types" in family.reads and "layer_types" in config and not _switched_off(family, config):
        kind = config["layer_types"][n]
        if kind not in ("sliding_attention", "full_attention"):
            raise ValueError(
                f"{file}: layer_types names {kind!r}; only sliding_attention and full_attention are supported."
            )
        return kind == "sliding_attention"
    return family.local is not None and family.local(config, n)


def _switched_off(family: Family, config: dict[str, Any]) -> bool:
    return "use_sliding_window" in family.reads and not config["use_sliding_window"]


def _read_numbers(file: Path, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a shape that are numbers of their own in `config.json`; those without effect are left out."""
    keys: dict[str, tuple[str, Callable[[float], float]]] = {
        "attn_logit_softcapping": ("softcap", lambda x: x),
        "final_logit_softcapping": ("logit_softcap", lambda x: x),
        "query_pre_attn_scalar": ("query_scale", lambda x: x**-0.5),
        "attention_multiplier": ("query_scale", lambda x: x),
        "embedding_multiplier": ("embed_scale", lambda x: x),
        "residual_multiplier": ("residual_scale", lambda x: x),
        "logits_scaling": ("logit_scale", lambda x: 1 / x),
    }
    known = [key for key in keys if key in family.reads and key in config]
    return {keys[key][0]: keys[key][1](positive_number(file, config, key)) for key in known}


def _read_biases(file: Path, name: str, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    given = {"attention_bias": False, "mlp_bias": False} | config
    biases = {key: switch(file, given, key) for key in ("attention_bias", "mlp_bias") if key in family.reads}
    if "attention_bias" in biases and name != "glm4":  # its output of attention has none
        biases["out_bias"] = biases["attention_bias"]
    if "qkv_bias" in family.reads:
        biases["attention_bias"] = switch(file, config, "qkv_bias")
    return biases
