"""Makes the table of docs/memory.md: what every parameter of a model needs, by setting, and what each setting learns.

    python docs/table_memory.py                prints the table from docs/memory.json
    python docs/table_memory.py --plan         first compiles Qwen3-1.7B for a v5e-1 with each setting
    python docs/table_memory.py --train        first trains configs/quickstart.yaml with each setting
    python docs/table_memory.py --train NAME   the same with the settings of these names

Planning needs the TPU compiler (pip install -e ".[tpu]"), no TPU, and about an hour on two cores; each training takes
about four minutes there. What was measured is kept in docs/memory.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from grpo_jax.cli import main as main_of_grpo_jax

ROOT = Path(__file__).parent.parent
FIGURES = Path(__file__).parent / "memory.json"
GIB, WEIGHTS = 2**30, 1_720_574_976  # of Qwen3-1.7B
SETTINGS = {
    "float32, AdamW": [],
    "float32, AdamW, moments in 8 bits": ["optimizer.moments=int8"],
    "float32, AdamW, moments in the host's memory": ["optimizer.moments_in=host"],
    "float32, Adafactor": ["optimizer.use=adafactor"],
    "bfloat16, AdamW": ["model.weights=bfloat16"],
    "bfloat16, AdamW, moments in 8 bits": ["model.weights=bfloat16", "optimizer.moments=int8"],
    "bfloat16, Adafactor": ["model.weights=bfloat16", "optimizer.use=adafactor"],
    "float32, AdamW, by layer": ["algorithm.gradients=by_layer"],
    "bfloat16, AdamW, moments in 8 bits, by layer": [
        "model.weights=bfloat16",
        "optimizer.moments=int8",
        "algorithm.gradients=by_layer",
    ],
    "bfloat16, Adafactor, by layer": [
        "model.weights=bfloat16",
        "optimizer.use=adafactor",
        "algorithm.gradients=by_layer",
    ],
}
PLANNED = """\
model: {name: Qwen/Qwen3-1.7B}
task: gsm8k
rollout: {responses: 8, max_tokens: 1024}
train: {steps: 1, prompts: 1, max_prompt_tokens: 256}
"""


def plan(overrides: list[str]) -> dict[str, float | None]:
    """Bytes a weight, and the peak of learning in GiB; None where the compiler finds no room."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "plan.yaml"
        config.write_text(PLANNED)
        command = [sys.executable, "-m", "grpo_jax", "plan", str(config), "--topology", "v5e-1", "--json", *overrides]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)  # status 1: no room
    peak = found["train"]["peak_hbm_bytes"]
    held = found["weights_bytes"] + found["optimizer_bytes"]
    return {"bytes": held / WEIGHTS, "peak": peak and peak / GIB}


def train(overrides: list[str]) -> dict[str, float]:
    """The mean reward of the first and the last three steps of the quickstart, and its last greedy reward."""
    with tempfile.TemporaryDirectory() as root:
        _run(["train", ROOT / "configs/quickstart.yaml", f"run.root={root}", *overrides])
        lines = (Path(root) / "quickstart" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rewards = [row["reward"] for row in rows if "reward" in row]
    greedy = [row["eval/reward"] for row in rows if "eval/reward" in row]
    return {"first": sum(rewards[:3]) / 3, "last": sum(rewards[-3:]) / 3, "greedy": greedy[-1]}


def _run(command: list) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # which forgets what it compiled
        status = pool.submit(main_of_grpo_jax, [*map(str, command)]).result()
    if status:
        raise SystemExit(f"grpo-jax {command[0]} ended with status {status}.")


def table(figures: dict[str, dict[str, float | None]]) -> str:
    """The table in Markdown; a dash where nothing was measured."""
    lines = [
        "| weights, optimiser | bytes a weight | learning needs | reward, first and last three steps | greedy reward |",
        "|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        found = figures.get(name, {})
        peak = "more than 15.75 GiB" if found.get("peak", 0) is None else _text(found, "peak", "{:.2f} GiB")
        rewards = f"{_text(found, 'first', '{:.3f}')}, {_text(found, 'last', '{:.3f}')}" if "first" in found else "-"
        lines.append(
            f"| {name} | {_text(found, 'bytes', '{:.1f}')} | {peak} | {rewards} | {_text(found, 'greedy', '{:.3f}')} |"
        )
    return "\n".join(lines)


def _text(found: dict[str, float | None], key: str, form: str) -> str:
    return form.format(found[key]) if key in found else "-"


def main() -> None:
    """Measures what is asked for, keeps it, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", nargs="*", choices=SETTINGS, metavar="NAME")
    parser.add_argument("--train", nargs="*", choices=SETTINGS, metavar="NAME")
    arguments = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for names, measure in ((arguments.plan, plan), (arguments.train, train)):
        for name in () if names is None else names or SETTINGS:
            figures[name] = figures.get(name, {}) | measure(SETTINGS[name])
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
