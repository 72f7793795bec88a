"""Loads adapters with `peft` and the transformers of the interpreter that runs this, and saves others with it.

    python tests/in_peft.py FOLDER REPORTS

tests/test_peft_library.py starts it, with an interpreter of each version; it imports nothing of this library. A case is
a folder in FOLDER with a model in `base`, an adapter in `adapter`, tokens, and the settings of adapters to be saved.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def logprobs(model, ids_PL: torch.Tensor) -> np.ndarray:
    """Of every token of the vocabulary after each position."""
    with torch.no_grad():
        return torch.log_softmax(model(ids_PL).logits.float(), dim=-1).numpy()


def base_of(case: Path):
    """The model without an adapter."""
    return AutoModelForCausalLM.from_pretrained(case / "base", dtype=torch.float32, attn_implementation="eager").eval()


def examine(case: Path, found: Path) -> None:
    """Writes log-probs of the adapter of the case, and an adapter of its own for each of the settings."""
    ids_PL = torch.tensor(json.loads((case / "ids.json").read_text()))
    np.save(found / "base.npy", logprobs(base_of(case), ids_PL))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base_of(case), case / "adapter").eval()
    np.save(found / "adapter.npy", logprobs(model, ids_PL))
    (found / "said.json").write_text(json.dumps([str(each.message) for each in said]))
    model.save_pretrained(found / "again")
    for name, settings in json.loads((case / "settings.json").read_text()).items():
        torch.manual_seed(0)
        model = get_peft_model(base_of(case), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
        for key, value in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.2)
        np.save(found / f"{name}.npy", logprobs(model, ids_PL))
        model.save_pretrained(found / name)


if __name__ == "__main__":
    folder, reports = Path(sys.argv[1]), Path(sys.argv[2])
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        (reports / each.name).mkdir(parents=True)
        examine(each, reports / each.name)
