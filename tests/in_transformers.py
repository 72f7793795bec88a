"""Loads exported models with the transformers of the interpreter that runs this, and writes down what it finds.

    python tests/in_transformers.py FOLDER REPORTS

tests/test_transformers.py starts it, with an interpreter of each version; it imports nothing of this library. A case is
a folder in FOLDER with a model in `float32` and perhaps the same in `bfloat16`. What is found about it is in REPORTS: a
file of JSON, arrays, and the model as this version saves it.
"""

import contextlib
import io
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

warnings.simplefilter("always")
MESSAGES = [{"role": "user", "content": "What is 16 + 6?"}]


class Said(logging.Handler):
    """Keeps the warnings of transformers, and those of Python."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


SAID = Said()
logging.captureWarnings(True)
for name in ("transformers", "py.warnings"):
    logging.getLogger(name).addHandler(SAID)
transformers.utils.logging.disable_progress_bar()


def examine(case: Path, found: Path) -> dict:
    """What this version makes of one case."""
    ids_PL = torch.tensor(json.loads((case / "ids.json").read_text()))
    SAID.lines.clear()
    model, info = AutoModelForCausalLM.from_pretrained(
        case / "float32", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    with torch.no_grad():
        np.save(found / "logits.npy", model(ids_PL).logits.numpy())
        out_PT = model.generate(
            ids_PL[:1], attention_mask=torch.ones_like(ids_PL[:1]), do_sample=False, max_new_tokens=6
        )
    report = {
        "warnings": [*SAID.lines],
        "info": {key: sorted(map(str, value)) for key, value in info.items() if value},
        "dtype": str(model.dtype),
        "class": type(model).__name__,
        "architectures": json.loads((case / "float32" / "config.json").read_text())["architectures"],
        "generated": out_PT[0, ids_PL.shape[1] :].tolist(),
        "ends": model.generation_config.eos_token_id,
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    }
    model.save_pretrained(found / "saved")
    if (case / "bfloat16").is_dir():
        report |= bits_of(case / "bfloat16", found)
    if (case / "float32" / "tokenizer_config.json").is_file():
        report |= tokenized(case / "float32", found)
    return report


def bits_of(directory: Path, found: Path) -> dict:
    """Every weight of a model in bfloat16, as whole numbers of 16 bits."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    np.savez(found / "bits.npz", **{key: a.view(torch.int16).numpy() for key, a in model.state_dict().items()})
    return {"rounded": str(model.dtype)}


def tokenized(directory: Path, found: Path) -> dict:
    """What the tokenizer makes of a conversation and of a text."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(found / "saved")
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    text_ids = tokenizer(" 16 + 6 = 22\n")["input_ids"]
    card = (directory / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("DIRECTORY", str(directory))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(lines, {})
    return {
        "card": printed.getvalue(),
        "inputs": sorted(inputs.keys()),
        "conversation": inputs["input_ids"][0].tolist(),
        "text": text_ids,
        "decoded": tokenizer.decode(text_ids),
        "template": tokenizer.chat_template,
    }


if __name__ == "__main__":
    folder, reports = Path(sys.argv[1]), Path(sys.argv[2])
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        (reports / each.name).mkdir(parents=True)
        (reports / each.name / "report.json").write_text(json.dumps(examine(each, reports / each.name)))
    (reports / "version").write_text(transformers.__version__)
