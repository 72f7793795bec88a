"""The card of an exported model: its README.md, with what it was made from, how, and what was measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax import __version__
from grpo_jax.models.hub import REPOSITORY, hub_name
from grpo_jax.models.load import Model
from grpo_jax.models.runs import system_of
from grpo_jax.saved.directory import CONFIG, RunDirectory

LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModelForCausalLM.from_pretrained("DIRECTORY")
messages = [{"role": "user", "content": "..."}]
chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(chat["input_ids"], attention_mask=chat["attention_mask"], max_new_tokens=32)[0]))
```"""


def card(model: Model, run: Path | None, adapter: bool = False) -> str:
    """The text of the card of a whole model, or of its adapter. A path of this machine is told by its last part."""
    origin = model.origin
    base = None if origin is None else hub_name(origin.base)
    loaded = None if origin is None or run is not None else origin.run
    run = loaded.path if loaded is not None else run
    on_hub = base is not None and REPOSITORY.fullmatch(base) is not None
    library = "peft" if adapter else "transformers"
    head = ["---", f"library_name: {library}", "pipeline_tag: text-generation", "tags: [grpo, grpo_jax]"]
    head += [f"base_model: {base}"] if on_hub else []
    name = "a model made in Python" if base is None else Path(base).name if Path(base).is_absolute() else base
    title = f"# {name}" + ("" if run is None else f", trained by GRPO: {run.resolve().name}")
    parts = ["\n".join([*head, "---"]), title, f"Base model: {name}. Written by grpo_jax {__version__}."]
    if run is not None:
        parts += _trained(run, None if loaded is None else loaded.step)
    chat = model.tokenizer.has_chat_template
    lines = _loading(model.tokenizer.template, "" if run is None else system_of(run)) if chat else _without_template()
    parts += ["## Loading it", _with_adapter(lines, base if on_hub else "BASE") if adapter else lines]
    return "\n\n".join(parts) + "\n"


def _trained(run: Path, step: int | None) -> list[str]:
    """What the run directory says: what was measured until this step, the command, data and settings."""
    found = RunDirectory(run)
    rows = [row for row in found.metrics() if step is None or row["step"] <= step]
    last = step if step is not None else max((row["step"] for row in rows), default=0)
    parts = ["## Training", f"Weights of step {last}."]
    measured = [line for name in ("reward", "eval/reward") if (line := _first_and_last(rows, name))]
    parts += ["## Measured\n\n" + "\n".join(measured)] if measured else []
    if (run / CONFIG).is_file():
        parts += [
            "## Command and settings\n\nData (`task`), rewards, objective and optimiser are in this config:\n\n"
            f"```bash\ngrpo-jax train config.yaml\n```\n\n```yaml\n{found.config().strip()}\n```"
        ]
    return parts


def _first_and_last(rows: list[dict], name: str) -> str:
    """How a metric changed, as an item of a list; nothing if it was not measured."""
    known = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not known:
        return ""
    what = {"reward": "mean reward of the training prompts", "eval/reward": "greedy reward of held-out prompts"}[name]
    (first, before), (last, after) = known[0], known[-1]
    return f"- {what}: {before:.3f} at step {first}, {after:.3f} at step {last}"


def _loading(arguments: Mapping[str, Any], system: str) -> str:
    """How to load a model whose chat template is given these arguments, and whose task had this system prompt."""
    given = "".join(f"{name}={value!r}, " for name, value in arguments.items())
    asked = LOADING.replace("return_tensors", f"{given}return_tensors")
    first = json.dumps({"role": "system", "content": system}, ensure_ascii=False)
    return asked.replace("messages = [", f"messages = [{first}, ") if system else asked


def _without_template() -> str:
    """How to load a model that has no chat template."""
    lines = [line for line in LOADING.splitlines() if not line.startswith(("chat", "messages"))]
    lines.insert(5, 'chat = tokenizer("...", return_tensors="pt")')
    return "\n".join(lines)


def _with_adapter(lines: str, base: str) -> str:
    """How to load a base with an adapter, from how a whole model is loaded."""
    lines = lines.replace("DIRECTORY", base).replace("from", "from peft import PeftModel\nfrom", 1)
    model = next(line for line in lines.splitlines() if line.startswith("model = "))
    return lines.replace(model, f'{model}\nmodel = PeftModel.from_pretrained(model, "DIRECTORY")')
