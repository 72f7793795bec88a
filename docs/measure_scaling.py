"""Measures the memory and the traffic of a chip as a slice grows, with the same work for each chip.

    python docs/measure_scaling.py

Compiles one config for slices of 8 to 256 chips with `grpo-jax plan`, with one prompt for each chip. This needs no TPU
and takes 15 to 30 minutes. Figures that scaling.jsonl has already are not measured again. Prints a table and draws
scaling.svg.
"""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "gsm8k_qwen3_0.6b.yaml"
SLICES = {"v5e-8": 8, "v5e-16": 16, "v5e-64": 64, "v5e-256": 256, "v6e-64": 64, "v5p-128": 64}
GIB = 2**30


def plan(name: str, chips: int) -> dict:
    """The figures of one slice."""
    work = [f"train.prompts={chips}", "algorithm.responses_at_once=8"]
    command = [sys.executable, "-m", "grpo_jax", "plan", str(CONFIG), "--topology", name, "--json", *work]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) | {
        "slice": name,
        "chips": chips,
    }


def main() -> None:
    """Measures what is missing, and draws everything."""
    store = HERE / "scaling.jsonl"
    rows = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    known = {row["slice"]: row for row in rows}
    for name, chips in SLICES.items():
        if name not in known:
            known[name] = plan(name, chips)
            with store.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
    print("| slice | chips | sampling, GiB | learning, GiB | sampling receives, GiB | learning receives, GiB |")
    print("|---|---|---|---|---|---|")
    for name, row in known.items():
        sizes = [
            row[phase][figure] / GIB
            for figure in ("peak_hbm_bytes", "collective_bytes")
            for phase in ("sample", "train")
        ]
        print(f"| {name} | {row['chips']} | " + " | ".join(f"{size:.2f}" for size in sizes) + " |")
    draw(known)


def draw(known: dict[str, dict]) -> None:
    """Memory and traffic of each device by the number of chips."""
    figure, (memory, traffic) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    chips = [row["chips"] for name, row in known.items() if name.startswith("v5e")]
    for axes, name, title in (
        (memory, "peak_hbm_bytes", "memory at its peak"),
        (traffic, "collective_bytes", "received in a step"),
    ):
        for phase, label in (("sample", "sampling"), ("train", "learning")):
            values = [row[phase][name] / GIB for slice, row in known.items() if slice.startswith("v5e")]
            axes.plot(chips, values, "o-", label=label)
        axes.set(xscale="log", xlabel="v5e chips", ylabel="GiB a device", title=title, ylim=(0, None))
        axes.set_xticks(chips, chips)
        axes.minorticks_off()
        axes.legend()
    figure.savefig(HERE / "scaling.svg")


if __name__ == "__main__":
    main()
