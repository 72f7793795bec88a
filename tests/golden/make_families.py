"""Makes tests/golden/families: tiny models of each family, with every feature on, scored by transformers.

    pip install torch transformers && python tests/golden/make_families.py

A weight is a function of its name (`seeded` in tests/test_families.py), so the golden files hold none.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_families import GOLDEN, seeded

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
GEMMA = SIZES | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.5],
    "long_factor": [1.0, 3.0, 9.0],
    "partial_rotary_factor": 0.75,
}
ORIGINAL = {"original_max_position_embeddings": 64}
UPPER = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
BIASES = {"attention_bias": True, "mlp_bias": True}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}
GEMMA3 = GEMMA | {
    "sliding_window_pattern": 3,
    "attention_bias": True,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS = {
    "llama_biases": ("llama", SIZES | BIASES),
    "gemma": ("gemma", GEMMA | {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("gemma3_text", GEMMA3 | {"final_logit_softcapping": 3.0}),
    "qwen2_sliding": ("qwen2", SIZES | UPPER | {"rope_parameters": YARN}),
    "qwen3_sliding": ("qwen3", SIZES | UPPER | {"head_dim": 16, "attention_bias": True}),
    "qwen3_dynamic": (
        "qwen3",
        SIZES | {"head_dim": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "smollm3": ("smollm3", SIZES | BIASES | {"no_rope_layers": [1, 0, 1]}),
    "olmo2": ("olmo2", SIZES | {"attention_bias": True}),
    "olmo3": ("olmo3", SIZES | {"num_hidden_layers": 4, "sliding_window": 5, "rope_scaling": YARN}),
    "granite": ("granite", SIZES | BIASES | MULTIPLIERS),
    "phi3": ("phi3", SIZES | {"sliding_window": 5, "rope_scaling": LONG, "partial_rotary_factor": 0.75} | ORIGINAL),
    "glm4": ("glm4", SIZES | {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "qwen2_moe": ("qwen2_moe", SIZES | EXPERTS | {"shared_expert_intermediate_size": 24}),
    "qwen3_moe": (
        "qwen3_moe",
        SIZES | EXPERTS | UPPER | {"head_dim": 16, "attention_bias": True, "norm_topk_prob": True},
    ),
    "exaone4": ("exaone4", SIZES | {"sliding_window": 5, "sliding_window_pattern": 3}),
}


def load_balance(model: torch.nn.Module, router_logits: tuple[torch.Tensor, ...]) -> np.ndarray:
    """The load-balancing loss of all tokens but the first seven, which are the prompt."""
    loss, config = sys.modules[type(model).__module__].load_balancing_loss_func, model.config
    counted = torch.tensor([[0] * 7 + [1] * 17])
    return loss(router_logits, config.num_experts, config.num_experts_per_tok, counted).numpy()


def make(name: str, family: str, fields: dict) -> dict[str, list[int]]:
    """Writes the config and the log-probs of one text; the shapes of the weights are returned."""
    config = AutoConfig.for_model(family, **json.loads(json.dumps(fields)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    tensors = dict(model.state_dict())
    tensors.pop("lm_head.weight" if config.tie_word_embeddings else "")
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(torch.tensor(seeded(key, tuple(tensor.shape))))
        tokens_T = np.random.default_rng(0).integers(3, 96, 24)
        router = {"output_router_logits": True} if "num_experts" in fields else {}
        output = model(torch.tensor(tokens_T)[None], **router)
        logprobs_TV = torch.log_softmax(output.logits[0], dim=-1).numpy()
    balance = {"load_balance": load_balance(model, output.router_logits)} if router else {}
    np.savez_compressed(GOLDEN / f"{name}.npz", tokens_T=tokens_T, logprobs_TV=logprobs_TV, **balance)
    kept = {"model_type": family, "rms_norm_eps": config.rms_norm_eps} | fields
    (GOLDEN / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    shapes = {name: make(name, *given) for name, given in MODELS.items()}
    (GOLDEN / "shapes.json").write_text(json.dumps(shapes) + "\n")
