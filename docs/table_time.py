"""Makes the table of docs/time.md: at least how long each part of a step takes, for three configs on their slices.

    python docs/table_time.py               prints the table from docs/time.json
    python docs/table_time.py --compile     first compiles the programs again; with names of configs, only theirs

The second needs the TPU compiler (pip install -e ".[tpu]"), no TPU, and about ten minutes a config on two cores.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from grpo_jax import cli

ROOT = Path(__file__).parent.parent
FIGURES = Path(__file__).parent / "time.json"
BEFORE = Path(__file__).parent / "time_before.json"  # of the code before the kernels of decoding and of learning
CONFIGS = {"gsm8k_qwen3_0.6b": "v5e-1", "gemma3_1b_v5e-1": "v5e-1", "gsm8k_qwen2.5_1.5b": "v5e-8"}


def compiled(name: str) -> dict:
    """What `grpo-jax plan --time` says of a config."""
    config = str(ROOT / "configs" / f"{name}.yaml")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.main(["plan", config, "--topology", CONFIGS[name], "--time", "--json"])
    return json.loads(printed.getvalue())


def _ms(phase: dict, part: str) -> float:
    return phase["parts"].get(part, {"ms": 0.0})["ms"]


def table(known: dict[str, dict], before: dict[str, dict]) -> str:
    """A row for each part of each phase, with milliseconds of each config, before and now."""
    columns = [each for name in CONFIGS for each in (before[name], known[name])]
    heads = [head for name in CONFIGS for head in (f"`{name}`, {known[name]['slice']}: before", "now")]
    lines = [f"| ms, at least | {' | '.join(heads)} |", "|---|" + "---|" * len(columns)]
    for phase in dict.fromkeys(phase for column in columns for phase in column["phases"]):
        of_phase = [column["phases"].get(phase, {"ms": 0.0, "parts": {}}) for column in columns]
        lines.append(f"| **{phase}** | " + " | ".join(f"**{found['ms']:,.0f}**" for found in of_phase) + " |")
        parts = dict.fromkeys(part for found in of_phase for part in found["parts"])
        for part in sorted(parts, key=lambda part: -max(_ms(found, part) for found in of_phase)):
            lines.append(f"| {part} | " + " | ".join(f"{_ms(found, part):,.0f}" for found in of_phase) + " |")
    lines.append("| **a step** | " + " | ".join(f"**{column['ms']:,.0f}**" for column in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    if "--compile" in sys.argv:
        for name in [name for name in sys.argv[1:] if name in CONFIGS] or CONFIGS:
            found = compiled(name)
            known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
            FIGURES.write_text(json.dumps(known | {name: found}, indent=1) + "\n")
    print(table(json.loads(FIGURES.read_text()), json.loads(BEFORE.read_text())))


if __name__ == "__main__":
    main()
