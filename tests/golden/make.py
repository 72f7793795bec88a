"""Makes the golden arrays of tests/test_models.py: tiny random models of each family, scored by transformers.

    pip install torch transformers safetensors && python tests/golden/make.py
    python tests/golden/make.py DIRECTORY_OF_SMOLLM2      (`smollm2.npz` alone, from the real model)

Each family gets a folder with its config.json, its weights, and `expected.npz`: log-probs and entropies of given
responses to given prompts, computed row by row without padding.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, head_dim=8, sliding_window=9, tie_word_embeddings=False)),
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


def write(file: Path, model: torch.nn.Module, prompts: list[np.ndarray], tokens_PGT: np.ndarray) -> None:
    """Scores the responses and writes them down with their prompts."""
    rows = [
        [score(model, prompt, tokens) for tokens in group] for prompt, group in zip(prompts, tokens_PGT, strict=True)
    ]
    np.savez_compressed(
        file,
        prompts=np.concatenate(prompts),
        lengths_P=np.array([len(prompt) for prompt in prompts]),
        tokens_PGT=tokens_PGT,
        logprobs_PGT=np.array([[logprobs for logprobs, _ in row] for row in rows]),
        entropy_PGT=np.array([[entropy for _, entropy in row] for row in rows]),
    )


def make_families() -> None:
    """Writes one folder for each family."""
    for name, (family, config) in MODELS.items():
        torch.manual_seed(0)
        model = family(config).eval()
        for parameter in model.parameters():  # larger than at initialisation, biases and norms too, so errors show
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
        model.save_pretrained(HERE / name)
        draw = np.random.default_rng(0)
        prompts = [draw.integers(0, config.vocab_size, length) for length in (3, 17, 9)]
        write(HERE / name / "expected.npz", model, prompts, draw.integers(0, config.vocab_size, (3, 2, 24)))


def make_smollm2(directory: str) -> None:
    """Writes what the real model says of likely and of unlikely responses."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = ["The capital of France is", "def add(a, b):\n    return", "12 + 30 ="]
    prompts = [np.array(tokenizer(text)["input_ids"]) for text in texts]
    T = 16
    likely = [
        model.generate(torch.tensor(prompt)[None], do_sample=False, min_new_tokens=T, max_new_tokens=T)[0, -T:].numpy()
        for prompt in prompts
    ]
    unlikely = np.random.default_rng(0).integers(3, 49152, (len(prompts), T))
    write(HERE / "smollm2.npz", model, prompts, np.stack([np.stack(likely), unlikely], axis=1))


if __name__ == "__main__":
    make_smollm2(sys.argv[1]) if len(sys.argv) > 1 else make_families()
