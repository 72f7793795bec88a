"""The architectures of GGUF files whose models are supported, and how these files differ from Hugging Face's.

Taken from the converter of llama.cpp (`convert_hf_to_gguf.py` and `conversion/`). Three differences would cause silent
errors: files of Llama's kin pair neighbouring channels of each head for rotary positions, and Hugging Face pairs the
halves of a head; weights of Gemma's norms have 1 added; and some numbers are in llama.cpp's code, not in the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """What files of an architecture leave unsaid, and how their weights differ from Hugging Face's."""

    family: str  # the `model_type` of a config.json
    arch: gguf.MODEL_ARCH  # by which the gguf package names tensors
    pairs: bool = False  # neighbouring rows of a head's queries and keys are rotated together
    norm_offset: float = 0.0  # what was added to the weights of norms
    keys: Mapping[str, str] = field(default_factory=dict)  # of metadata, and of config.json, besides `KEYS`
    unsaid: Callable[[Facts], dict[str, Any]] = lambda facts: {}  # what config.json must say besides


# Keys of metadata after the name of the architecture, and of config.json.
KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_SOFTCAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}


def _scaled_by_head(layers: int) -> Callable[[Facts], dict[str, Any]]:
    """The scale of Gemma's queries. Only the 27B models, with so many layers, scale by the width instead of `C`."""

    def unsaid(facts: Facts) -> dict[str, Any]:
        whole = facts["block_count"] == layers
        scale = facts["embedding_length"] // facts["attention.head_count"] if whole else facts["attention.key_length"]
        found = {"query_pre_attn_scalar": scale, "hidden_activation": "gelu_pytorch_tanh"}
        found |= {key: None for key in _SOFTCAPS if key not in facts}
        return found | ({} if "attention.sliding_window" in facts else {"sliding_window": None})

    return unsaid


def _gemma3(facts: Facts) -> dict[str, Any]:
    pattern = facts.get("attention.sliding_window_pattern", 6)
    return {"sliding_window_pattern": pattern} | _scaled_by_head(62)(facts)


def _layers(facts: Facts) -> dict[str, Any]:
    """Which layers have a window, where the file says it layer by layer."""
    pattern = facts.get("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        return {} if "attention.sliding_window" in facts else {"sliding_window": None}
    return {"layer_types": ["sliding_attention" if local else "full_attention" for local in pattern]}


def _olmo(facts: Facts) -> dict[str, Any]:
    return {"model_type": "olmo3"} | _layers(facts) if "attention.sliding_window" in facts else {}


def _phi3(facts: Facts) -> dict[str, Any]:
    channels = facts["embedding_length"] // facts["attention.head_count"]
    window = facts.get("attention.sliding_window", 0)
    return {
        "sliding_window": None if window == 0 else window,
        "original_max_position_embeddings": facts.get("rope.scaling.original_context_length", facts["context_length"]),
        "partial_rotary_factor": facts.get("rope.dimension_count", channels) / channels,
    }


ARCHITECTURES = {  # by `general.architecture`
    "llama": Architecture("llama", gguf.MODEL_ARCH.LLAMA, pairs=True),
    "qwen2": Architecture("qwen2", gguf.MODEL_ARCH.QWEN2),
    "qwen3": Architecture("qwen3", gguf.MODEL_ARCH.QWEN3),
    "gemma": Architecture(
        "gemma", gguf.MODEL_ARCH.GEMMA, norm_offset=1.0, unsaid=lambda facts: {"hidden_activation": "gelu_pytorch_tanh"}
    ),
    "gemma2": Architecture(
        "gemma2", gguf.MODEL_ARCH.GEMMA2, norm_offset=1.0, keys=_SOFTCAPS | _WINDOW, unsaid=_scaled_by_head(46)
    ),
    "gemma3": Architecture(
        "gemma3_text",
        gguf.MODEL_ARCH.GEMMA3,
        norm_offset=1.0,
        keys=_SOFTCAPS | _WINDOW | {"rope.freq_base_swa": "rope_local_base_freq"},
        unsaid=_gemma3,
    ),
    "granite": Architecture("granite", gguf.MODEL_ARCH.GRANITE, pairs=True, keys=_MULTIPLIERS),
    "smollm3": Architecture("smollm3", gguf.MODEL_ARCH.SMOLLM3, pairs=True),
    "olmo2": Architecture("olmo2", gguf.MODEL_ARCH.OLMO2, keys=_WINDOW, unsaid=_olmo),
    "phi3": Architecture("phi3", gguf.MODEL_ARCH.PHI3, unsaid=_phi3),
    "exaone4": Architecture("exaone4", gguf.MODEL_ARCH.EXAONE4, keys=_WINDOW, unsaid=_layers),
}
