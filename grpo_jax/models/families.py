"""Hugging Face model families: what a `config.json` says about the shape, and what the weights are called.

A family is a row of `FAMILIES`: the switches in which it differs from the Llama layout.
"""

import json
import re
from pathlib import Path
from typing import Any

from grpo_jax.models.decoder import Rope, Shape

FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "qwen2": {"attention_bias": True},
    "qwen3": {"head_norm": True},
    "mistral": {},
}

WINDOWS = {"mistral": "sliding_window"}  # the key that says how many positions a token of the family attends to

# Our name -> theirs, and the axes of theirs: a merged pair stands in parentheses. {n} is the layer.
NAMES = {
    "embed_VD": ("model.embed_tokens.weight", "VD"),
    "norm_D": ("model.norm.weight", "D"),
    "head_VD": ("lm_head.weight", "VD"),
    "layers/attention_norm_D": ("model.layers.{n}.input_layernorm.weight", "D"),
    "layers/attention/query_HCD": ("model.layers.{n}.self_attn.q_proj.weight", "(HC)D"),
    "layers/attention/key_KCD": ("model.layers.{n}.self_attn.k_proj.weight", "(KC)D"),
    "layers/attention/value_KCD": ("model.layers.{n}.self_attn.v_proj.weight", "(KC)D"),
    "layers/attention/out_DHC": ("model.layers.{n}.self_attn.o_proj.weight", "D(HC)"),
    "layers/attention/query_bias_HC": ("model.layers.{n}.self_attn.q_proj.bias", "(HC)"),
    "layers/attention/key_bias_KC": ("model.layers.{n}.self_attn.k_proj.bias", "(KC)"),
    "layers/attention/value_bias_KC": ("model.layers.{n}.self_attn.v_proj.bias", "(KC)"),
    "layers/attention/query_norm_C": ("model.layers.{n}.self_attn.q_norm.weight", "C"),
    "layers/attention/key_norm_C": ("model.layers.{n}.self_attn.k_norm.weight", "C"),
    "layers/feedforward_norm_D": ("model.layers.{n}.post_attention_layernorm.weight", "D"),
    "layers/feedforward/gate_FD": ("model.layers.{n}.mlp.gate_proj.weight", "FD"),
    "layers/feedforward/up_FD": ("model.layers.{n}.mlp.up_proj.weight", "FD"),
    "layers/feedforward/down_DF": ("model.layers.{n}.mlp.down_proj.weight", "DF"),
}


def read_shape(directory: Path) -> Shape:
    """The shape a directory's own `config.json` describes; refuses what this decoder would compute differently."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{file}: model_type {family!r} is not supported; the families are {', '.join(FAMILIES)}.")
    _refuse_variants(file, config)
    try:
        heads = config["num_attention_heads"]
        return Shape(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            feedforward=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", heads),
            channels=config.get("head_dim") or config["hidden_size"] // heads,
            rope=_read_rope(file, config),
            norm_epsilon=config["rms_norm_eps"],
            max_positions=config["max_position_embeddings"],
            tied=config.get("tie_word_embeddings", False),
            window=config.get(WINDOWS[family]) if family in WINDOWS else None,
            **FAMILIES[family],
        )
    except KeyError as missing:
        raise ValueError(f"{file}: {missing} is missing; it belongs in the config of a {family} model.") from missing


def _refuse_variants(file: Path, config: dict[str, Any]) -> None:
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"{file}: {key} is {config[key]!r}; only {value!r} is supported.")


def _read_rope(file: Path, config: dict[str, Any]) -> Rope:
    """Rotary settings in either place: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling`."""
    fields = {"rope_theta": config.get("rope_theta", 10000.0)}
    fields |= config.get("rope_scaling") or {}
    fields |= config.get("rope_parameters") or {}
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind == "default":
        return Rope(fields["rope_theta"])
    if kind == "linear":
        return Rope(fields["rope_theta"], kind, fields["factor"])
    if kind == "llama3":
        return Rope(
            fields["rope_theta"],
            kind,
            fields["factor"],
            fields["low_freq_factor"],
            fields["high_freq_factor"],
            fields["original_max_position_embeddings"],
        )
    raise ValueError(f"{file}: rope type {kind!r} is not supported; default, linear and llama3 are.")


def letters(name: str) -> str:
    """The axes a parameter's name ends in: "HCD" for "layers/attention/query_HCD"."""
    found = re.search(r"_([A-Z]+)$", name)
    if found is None:
        raise ValueError(f"The parameter {name!r} does not end in its axes, such as `gate_FD`.")
    return found[1]
