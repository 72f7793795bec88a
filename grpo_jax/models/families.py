"""Hugging Face model families: what a `config.json` says about the shape, and what the weights are called.

A family is a row of `FAMILIES`: what it changes in the Llama layout.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.models.decoder import Shape
from grpo_jax.models.files import positive_number, read_json, switch, whole_number
from grpo_jax.models.rope import Rope


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
    config = read_json(file)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"{file}: model_type {name!r} is not supported; the families are {', '.join(FAMILIES)}.")
    family = FAMILIES[name]
    _refuse_variants(file, config)
    try:
        heads, kv_heads, channels = _read_heads(file, config)
        windowed = family.window is not None and family.window in config
        return Shape(
            vocabulary=whole_number(file, config, "vocab_size"),
            width=whole_number(file, config, "hidden_size"),
            feedforward=whole_number(file, config, "intermediate_size"),
            layers=whole_number(file, config, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            channels=channels,
            rope=_read_rope(file, config),
            norm_epsilon=positive_number(file, config, "rms_norm_eps"),
            max_positions=whole_number(file, config, "max_position_embeddings"),
            tied=switch(file, {"tie_word_embeddings": False} | config, "tie_word_embeddings"),
            window=whole_number(file, config, family.window) if windowed else None,
            attention_bias=family.attention_bias,
            head_norm=family.head_norm,
        )
    except KeyError as missing:
        raise ValueError(f"{file}: {missing} is missing; it belongs in the config of a {name} model.") from missing


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


def _refuse_variants(file: Path, config: dict[str, Any]) -> None:
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"{file}: {key} is {config[key]!r}; only {value!r} is supported.")


def _read_rope(file: Path, config: dict[str, Any]) -> Rope:
    """The rotary settings, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`."""
    fields = {"rope_theta": config.get("rope_theta", 10000.0)}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key, {})
        if not isinstance(given, dict):
            raise ValueError(f"{file}: {key} must hold keys and values; got {given!r}.")
        fields |= {name: value for name, value in given.items() if value is not None}
    scaling = fields.get("rope_type", fields.get("type", "default"))
    theta = positive_number(file, fields, "rope_theta")
    if scaling == "default":
        return Rope(theta)
    if scaling == "linear":
        return Rope(theta, scaling, positive_number(file, fields, "factor"))
    if scaling == "llama3":
        low, high = (positive_number(file, fields, f"{end}_freq_factor") for end in ("low", "high"))
        if low >= high:
            raise ValueError(f"{file}: low_freq_factor must be below high_freq_factor; got {low} and {high}.")
        original = whole_number(file, fields, "original_max_position_embeddings")
        return Rope(theta, scaling, positive_number(file, fields, "factor"), low, high, original)
    raise ValueError(f"{file}: rope type {scaling!r} is not supported; default, linear and llama3 are.")
