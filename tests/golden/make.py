"""Makes the golden arrays of tests/test_models.py: tiny random models of each family, scored by transformers.

    pip install torch transformers safetensors && python tests/golden/make.py

Each family gets a folder with its config.json, its weights, and `expected.npz`: log-probs and entropies of given
responses to given prompts, computed row by row without padding.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama3": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA3, tie_word_embeddings=False)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False)),
}


def score(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-prob and entropy of each response token."""
    with torch.no_grad():
        logits = model(torch.tensor(np.concatenate([prompt, response]))[None]).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs[np.arange(len(response)), response].numpy(), entropy.numpy()


def main() -> None:
    """Writes one folder for each family."""
    P, G, T = 3, 2, 24
    for name, (family, config) in MODELS.items():
        torch.manual_seed(0)
        model = family(config).eval()
        for parameter in model.parameters():  # larger than at initialisation, biases and norms too, so errors show
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
        model.save_pretrained(HERE / name)
        draw = np.random.default_rng(0)
        lengths_P = np.array([3, 17, 9])
        prompts = [draw.integers(0, config.vocab_size, length) for length in lengths_P]
        tokens_PGT = draw.integers(0, config.vocab_size, (P, G, T))
        scores = [[score(model, prompts[p], tokens_PGT[p, g]) for g in range(G)] for p in range(P)]
        np.savez_compressed(
            HERE / name / "expected.npz",
            prompts=np.concatenate(prompts),
            lengths_P=lengths_P,
            tokens_PGT=tokens_PGT,
            logprobs_PGT=np.array([[logprobs for logprobs, _ in row] for row in scores]),
            entropy_PGT=np.array([[entropy for _, entropy in row] for row in scores]),
        )


if __name__ == "__main__":
    main()
