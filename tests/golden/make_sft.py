"""Makes the golden numbers of tests/test_sft.py: losses, a gradient and weights of supervised fine-tuning by torch.

    pip install torch transformers safetensors && python tests/golden/make_sft.py

The model is tests/golden/llama, in float64. Each of three steps learns from four examples, some of whose tokens belong
to others than the assistant. The loss is the cross-entropy of transformers; the optimiser is torch's AdamW after
clipping, with a rate that rises linearly. Kept are the loss and the norm of each step, the gradient of the first, and
the weights after the last, both under the names of the weights in files of their own.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
STEPS, EXAMPLES, VOCABULARY = 3, 4, 96
SETTINGS = {"learning_rate": 1e-3, "warmup_steps": 2, "clip_norm": 0.5, "b1": 0.9, "b2": 0.95, "weight_decay": 0.1}


def drawn(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids of a prompt and of an answer, and which of the latter the assistant says; the last one always."""
    prompt_L, answer_T = (random.integers(VOCABULARY, size=random.integers(3, 20)) for _ in range(2))
    said_T = random.random(len(answer_T)) < 0.7
    said_T[-1] = True
    return prompt_L, answer_T, said_T


def loss_of(model: LlamaForCausalLM, examples: list[tuple[np.ndarray, ...]]) -> torch.Tensor:
    """The cross-entropy of what the assistant says, each of its tokens counting the same."""
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in examples)
    ids_PX = torch.zeros((len(examples), longest), dtype=torch.long)
    labels_PX, attended_PX = torch.full_like(ids_PX, -100), torch.zeros_like(ids_PX)
    for row, (prompt, answer, said) in enumerate(examples):
        end = len(prompt) + len(answer)
        ids_PX[row, :end] = torch.tensor(np.concatenate([prompt, answer]))
        attended_PX[row, :end] = 1
        labels_PX[row, len(prompt) : end] = torch.tensor(np.where(said, answer, -100))
    return model(ids_PX, attention_mask=attended_PX, labels=labels_PX).loss


def main() -> None:
    """Three steps, and what is kept of them."""
    model = LlamaForCausalLM.from_pretrained(HERE / "llama", attn_implementation="eager").double()
    betas, decay = (SETTINGS["b1"], SETTINGS["b2"]), SETTINGS["weight_decay"]
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, eps=1e-8, weight_decay=decay)
    random, losses, norms, kept = np.random.default_rng(22), [], [], {}
    for step in range(STEPS):
        examples = [drawn(random) for _ in range(EXAMPLES)]
        optimizer.zero_grad()
        loss = loss_of(model, examples)
        loss.backward()
        if step == 0:
            write("gradient", {name: weight.grad for name, weight in model.named_parameters()})
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["clip_norm"]).item())
        optimizer.param_groups[0]["lr"] = SETTINGS["learning_rate"] * min(1, (step + 1) / SETTINGS["warmup_steps"])
        optimizer.step()
        losses.append(loss.item())
        for index, arrays in enumerate(examples):
            kept |= {f"{kind}_{step}_{index}": a for kind, a in zip(("prompt", "answer", "said"), arrays, strict=True)}
    write("trained", dict(model.named_parameters()))
    np.savez(HERE / "sft" / "expected.npz", losses=losses, norms=norms, **kept)


def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Writes tensors in float32 as the weights of the model."""
    folder = HERE / "sft" / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "llama" / "config.json", folder)
    save_file({key: a.detach().float().contiguous() for key, a in tensors.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    main()
