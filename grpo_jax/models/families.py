"""Hugging Face model families: what a `config.json` says about the shape, and what the weights are called.

A family is a row of `FAMILIES`: what it changes in the Llama layout.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.models.decoder import Rope, Shape


@dataclass(frozen=True)
class Family:
    """What a family of models changes in the Llama layout."""

    attention_bias: bool = False
    head_norm: bool = False
    window: str | None = None  # the key of its config.json that says how many positions a token attends to


FAMILIES = {  # by the `model_type` of their config.json
    "llama": Family(),
    "qwen2": Family(attention_bias=True),
    "qwen3": Family(head_norm=True),
    "mistral": Family(window="sliding_window"),
}

# Our name of a weight -> its Hugging Face name, and the axes there: parentheses merge a pair. {n} is the layer.
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
    """The shape that a directory's `config.json` describes; refuses what this decoder would compute differently."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    name = config.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"{file}: model_type {name!r} is not supported; the families are {', '.join(FAMILIES)}.")
    family = FAMILIES[name]
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
            window=None if family.window is None else config.get(family.window),
            attention_bias=family.attention_bias,
            head_norm=family.head_norm,
        )
    except KeyError as missing:
        raise ValueError(f"{file}: {missing} is missing; it belongs in the config of a {name} model.") from missing


def _refuse_variants(file: Path, config: dict[str, Any]) -> None:
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"{file}: {key} is {config[key]!r}; only {value!r} is supported.")


def _read_rope(file: Path, config: dict[str, Any]) -> Rope:
    """The rotary settings, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`."""
    fields = {"rope_theta": config.get("rope_theta", 10000.0)}
    fields |= config.get("rope_scaling") or {}
    fields |= config.get("rope_parameters") or {}
    scaling = fields.get("rope_type", fields.get("type", "default"))
    if scaling == "default":
        return Rope(fields["rope_theta"])
    if scaling == "linear":
        return Rope(fields["rope_theta"], scaling, fields["factor"])
    if scaling == "llama3":
        return Rope(
            fields["rope_theta"],
            scaling,
            fields["factor"],
            fields["low_freq_factor"],
            fields["high_freq_factor"],
            fields["original_max_position_embeddings"],
        )
    raise ValueError(f"{file}: rope type {scaling!r} is not supported; default, linear and llama3 are.")
