"""Hugging Face model families: what each changes in the Llama layout, and what its weights are called.

A family is a row of `FAMILIES`. How its `config.json` is read stands in `model_config`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

Config = Mapping[str, Any]


class Stored(NamedTuple):
    """The Hugging Face tensor that holds one of our weights, or a part of its rows."""

    name: str  # {n} is the layer, {e} the expert
    axes: str  # the axes there: parentheses merge a pair
    parts: tuple[str, ...] = ()  # the axes of each weight whose rows it holds, where it holds several
    index: int = 0  # which of them is ours


@dataclass(frozen=True)
class Family:
    """What a family of models changes in the Llama layout, and how its config.json says the rest."""

    shape: Config = field(default_factory=dict)  # fields of `Shape`
    meanings: Config = field(default_factory=dict)  # what it means that a key is left out
    reads: frozenset[str] = frozenset()  # keys that change the computation and that not every family has
    activations: tuple[str, ...] = ("silu",)  # the names of its activation; all mean `shape["activation"]`
    local: Callable[[Config, int], bool] | None = None  # whether layer n has a window; None: none has
    window: str = "sliding_window"  # the key that says how many positions a token of a local layer attends to
    local_theta: str | None = None  # the key of the local layers' rope base, which has no scaling; None: one rope
    rotates: Callable[[Config, int], bool] | None = None  # whether layer n has rotary positions; None: all have
    interleaved: bool = False  # rotary positions pair neighbouring channels
    names: Mapping[str, Stored] = field(default_factory=dict)  # of weights, where they are not those of `NAMES`
    part: str | None = None  # the key of its config.json under which the language model is
    renamed: Mapping[str, str] = field(default_factory=dict)  # names of keys in transformers 5 -> those in 4


def everywhere(config: Config, n: int) -> bool:
    """Every layer has the window."""
    return True


def _every_other(config: Config, n: int) -> bool:
    return n % 2 == 0


def _in_pattern(config: Config, n: int) -> bool:
    """All but each last layer of `sliding_window_pattern`."""
    return (n + 1) % config["sliding_window_pattern"] != 0


def _upper(config: Config, n: int) -> bool:
    """The layers from `max_window_layers` on, where `use_sliding_window` says so."""
    return config["use_sliding_window"] and n >= config["max_window_layers"]


def _switched_on(config: Config, n: int) -> bool:
    """Every layer, where `use_sliding_window` says so."""
    return config["use_sliding_window"]


def _has_rope(config: Config, n: int) -> bool:
    if "no_rope_layers" in config:  # a list, with 1 for the layers that do have rotary positions
        return config["no_rope_layers"][n] == 1
    return (n + 1) % config["no_rope_layer_interval"] != 0


def _unrotated(config: Config, n: int) -> bool:
    """The layers without rotary positions, where `use_sliding_window` says so."""
    return config["use_sliding_window"] and not _has_rope(config, n)


def _rotates_locally(config: Config, n: int) -> bool:
    """All layers rotate, or only those with a window where there are any."""
    if "sliding_window" not in config:
        return True
    if "layer_types" in config:
        return config["layer_types"][n] == "sliding_attention"
    return _in_pattern(config, n)


# Our name of a weight -> the Hugging Face tensor.
NAMES = {
    "embed_VD": ("model.embed_tokens.weight", "VD"),
    "norm_D": ("model.norm.weight", "D"),
    "head_VD": ("lm_head.weight", "VD"),
    "layers/attention_norm_D": ("model.layers.{n}.input_layernorm.weight", "D"),
    "layers/attention_output_norm_D": ("model.layers.{n}.post_attention_layernorm.weight", "D"),
    "layers/attention/query_HCD": ("model.layers.{n}.self_attn.q_proj.weight", "(HC)D"),
    "layers/attention/key_KCD": ("model.layers.{n}.self_attn.k_proj.weight", "(KC)D"),
    "layers/attention/value_KCD": ("model.layers.{n}.self_attn.v_proj.weight", "(KC)D"),
    "layers/attention/out_DHC": ("model.layers.{n}.self_attn.o_proj.weight", "D(HC)"),
    "layers/attention/query_bias_HC": ("model.layers.{n}.self_attn.q_proj.bias", "(HC)"),
    "layers/attention/key_bias_KC": ("model.layers.{n}.self_attn.k_proj.bias", "(KC)"),
    "layers/attention/value_bias_KC": ("model.layers.{n}.self_attn.v_proj.bias", "(KC)"),
    "layers/attention/out_bias_D": ("model.layers.{n}.self_attn.o_proj.bias", "D"),
    "layers/attention/query_norm_C": ("model.layers.{n}.self_attn.q_norm.weight", "C"),
    "layers/attention/key_norm_C": ("model.layers.{n}.self_attn.k_norm.weight", "C"),
    "layers/attention/query_norm_HC": ("model.layers.{n}.self_attn.q_norm.weight", "(HC)"),
    "layers/attention/key_norm_KC": ("model.layers.{n}.self_attn.k_norm.weight", "(KC)"),
    "layers/feedforward_norm_D": ("model.layers.{n}.post_attention_layernorm.weight", "D"),
    "layers/feedforward_output_norm_D": ("model.layers.{n}.post_feedforward_layernorm.weight", "D"),
    "layers/feedforward/gate_FD": ("model.layers.{n}.mlp.gate_proj.weight", "FD"),
    "layers/feedforward/up_FD": ("model.layers.{n}.mlp.up_proj.weight", "FD"),
    "layers/feedforward/down_DF": ("model.layers.{n}.mlp.down_proj.weight", "DF"),
    "layers/feedforward/gate_bias_F": ("model.layers.{n}.mlp.gate_proj.bias", "F"),
    "layers/feedforward/up_bias_F": ("model.layers.{n}.mlp.up_proj.bias", "F"),
    "layers/feedforward/down_bias_D": ("model.layers.{n}.mlp.down_proj.bias", "D"),
    "layers/feedforward/router_ED": ("model.layers.{n}.mlp.gate.weight", "ED"),
    "layers/feedforward/gate_EFD": ("model.layers.{n}.mlp.experts.{e}.gate_proj.weight", "FD"),
    "layers/feedforward/up_EFD": ("model.layers.{n}.mlp.experts.{e}.up_proj.weight", "FD"),
    "layers/feedforward/down_EDF": ("model.layers.{n}.mlp.experts.{e}.down_proj.weight", "DF"),
    "layers/feedforward/shared/gate_FD": ("model.layers.{n}.mlp.shared_expert.gate_proj.weight", "FD"),
    "layers/feedforward/shared/up_FD": ("model.layers.{n}.mlp.shared_expert.up_proj.weight", "FD"),
    "layers/feedforward/shared/down_DF": ("model.layers.{n}.mlp.shared_expert.down_proj.weight", "DF"),
    "layers/feedforward/shared_gate_1D": ("model.layers.{n}.mlp.shared_expert_gate.weight", "1D"),
}
# The same weights where all experts of a layer are one tensor, as transformers 5 holds them in memory.
FUSED = "model.layers.{n}.mlp.experts.gate_up_proj"
FUSED_EXPERTS = {
    "layers/feedforward/gate_EFD": Stored(FUSED, "EFD", ("F", "F"), 0),
    "layers/feedforward/up_EFD": Stored(FUSED, "EFD", ("F", "F"), 1),
    "layers/feedforward/down_EDF": Stored("model.layers.{n}.mlp.experts.down_proj", "EDF"),
}

_GEMMA = {"norm_offset": 1.0, "activation": "gelu"}
_GELU = ("gelu_pytorch_tanh", "gelu")  # a Gemma's config.json may say gelu, and means the tanh approximation
_GEMMA_KEYS = {"tie_word_embeddings": True, "head_dim": 256, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256}
_GEMMA_READS = frozenset(
    {"attention_bias", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"}
    | {"layer_types"}
)
_GEMMA_NAMES = {"layers/feedforward_norm_D": Stored("model.layers.{n}.pre_feedforward_layernorm.weight", "D")}
_GATE_UP = {
    f"layers/feedforward/{ours}": Stored("model.layers.{n}.mlp.gate_up_proj.weight", "FD", ("F", "F"), index)
    for index, ours in enumerate(("gate_FD", "up_FD"))
}
_QKV = {
    f"layers/attention/{ours}": Stored(
        "model.layers.{n}.self_attn.qkv_proj.weight", f"({axes})D", ("HC", "KC", "KC"), index
    )
    for index, (ours, axes) in enumerate((("query_HCD", "HC"), ("key_KCD", "KC"), ("value_KCD", "KC")))
}
_UPPER_KEYS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_UPPER_READS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
_EXPERT_KEYS = {"decoder_sparse_step": 1, "mlp_only_layers": (), "norm_topk_prob": False}
_EXPERT_READS = frozenset({"num_experts", "num_experts_per_tok", "moe_intermediate_size", *_EXPERT_KEYS})
_GEMMA3 = Family(
    shape=_GEMMA | {"norms": "both", "head_norm": True},
    meanings=_GEMMA_KEYS
    | {"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072, "rope_theta": 1e6}
    | {"rope_local_base_freq": 1e4, "sliding_window": 4096, "sliding_window_pattern": 6},
    reads=_GEMMA_READS | {"rope_local_base_freq", "sliding_window_pattern"},
    activations=_GELU,
    local=_in_pattern,
    local_theta="rope_local_base_freq",
    names=_GEMMA_NAMES,
)
_OLMO2 = Family(
    shape={"norms": "after", "projection_norm": True},
    meanings={"rms_norm_eps": 1e-5},
    reads=frozenset({"attention_bias"}),
)

FAMILIES = {  # by the `model_type` of their config.json
    "llama": Family(reads=frozenset({"attention_bias", "mlp_bias"})),
    "qwen2": Family({"attention_bias": True}, _UPPER_KEYS, _UPPER_READS, local=_upper),
    "qwen3": Family(
        {"head_norm": True}, _UPPER_KEYS | {"head_dim": 128}, _UPPER_READS | {"attention_bias"}, local=_upper
    ),
    "qwen2_moe": Family(
        meanings=_EXPERT_KEYS
        | {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "qkv_bias": True}
        | {"shared_expert_intermediate_size": 5632},
        reads=_EXPERT_READS | {"qkv_bias", "shared_expert_intermediate_size"},
    ),
    "qwen3_moe": Family(
        shape={"head_norm": True},
        meanings=_EXPERT_KEYS
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"use_sliding_window": False, "sliding_window": 4096},
        reads=_EXPERT_READS | {"attention_bias", "use_sliding_window", "sliding_window", "max_window_layers"},
        local=_switched_on,
        renamed={"num_local_experts": "num_experts"},
    ),
    "mistral": Family(meanings={"sliding_window": 4096}, reads=frozenset({"sliding_window"}), local=everywhere),
    "gemma": Family(_GEMMA, _GEMMA_KEYS, frozenset({"attention_bias"}), activations=_GELU),
    "gemma2": Family(
        shape=_GEMMA | {"norms": "both"},
        meanings=_GEMMA_KEYS
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096},
        reads=_GEMMA_READS,
        activations=_GELU,
        local=_every_other,
        names=_GEMMA_NAMES,
    ),
    "gemma3_text": _GEMMA3,
    "gemma3": replace(_GEMMA3, part="text_config"),
    "smollm3": Family(
        meanings={"tie_word_embeddings": True, "rope_theta": 2e6, "no_rope_layer_interval": 4}
        | {"use_sliding_window": False},
        reads=frozenset({"attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval"})
        | {"use_sliding_window", "sliding_window", "layer_types"},
        local=_unrotated,
        rotates=_has_rope,
    ),
    "olmo2": _OLMO2,
    "olmo3": Family(
        shape=_OLMO2.shape,
        meanings={"rms_norm_eps": 1e-5} | {"sliding_window": 4096, "rope_theta": 5e5, "sliding_window_pattern": 4},
        reads=frozenset({"attention_bias", "sliding_window", "layer_types"}),
        local=_in_pattern,
        local_theta="rope_theta",
    ),
    "granite": Family(
        meanings={"embedding_multiplier": 1.0, "logits_scaling": 1.0}
        | {"residual_multiplier": 1.0, "attention_multiplier": 1.0},
        reads=frozenset({"attention_bias", "mlp_bias", "embedding_multiplier", "logits_scaling"})
        | {"residual_multiplier", "attention_multiplier"},
    ),
    "phi3": Family(
        meanings={"original_max_position_embeddings": 4096},
        reads=frozenset({"sliding_window", "partial_rotary_factor"}),
        local=everywhere,
        names=_QKV | _GATE_UP,
    ),
    "glm4": Family(
        shape={"norms": "both"},
        meanings={"partial_rotary_factor": 0.5, "attention_bias": True, "head_dim": 128, "rms_norm_eps": 1.5625e-7},
        reads=frozenset({"attention_bias", "partial_rotary_factor"}),
        interleaved=True,
        names=_GATE_UP
        | {
            "layers/attention_output_norm_D": Stored("model.layers.{n}.post_self_attn_layernorm.weight", "D"),
            "layers/feedforward_output_norm_D": Stored("model.layers.{n}.post_mlp_layernorm.weight", "D"),
        },
    ),
    "exaone4": Family(
        shape={"norms": "after", "head_norm": True},
        meanings={"sliding_window": 4096, "sliding_window_pattern": 4},
        reads=frozenset({"sliding_window", "sliding_window_pattern", "layer_types"}),
        local=_in_pattern,
        rotates=_rotates_locally,
    ),
}
