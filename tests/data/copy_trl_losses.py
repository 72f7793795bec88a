"""Copies the reference numbers of tests/test_trl_losses.py and tests/test_advantages.py out of a larger set.

    python tests/data/copy_trl_losses.py FIXTURES_DIR

FIXTURES_DIR holds `trl_losses.json` and `trl_losses.npz`: numbers that TRL 1.16.0 (Hugging Face, Apache-2.0) returned
when its own loss, advantage and model code was run on small random inputs, on a CPU with torch 2.13 and transformers
5.23. No code of TRL is copied. Losses and their gradients are those of a float64 run, the model's of a float32 run.

Of each case, what the tests read is kept: its settings, its loss, its gradients and the metrics that this package has.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
DEFAULTS = {
    "trainer": "grpo",
    "importance_sampling_level": "token",
    "beta": 0.0,
    "use_bias_correction_kl": True,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "max_completion_length": 16,
    "use_old": True,
    "gradient_accumulation_steps": 1,
    "mode": "train",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "is_ratio": None,
    "sampling": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "entropy_target": 0.2,
    "entropy_coef_delta": 0.005,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
}
KEPT = ["id", "input", "loss_type", *DEFAULTS, "loss"]
ADVANTAGE = ["id", "rewards", "scale_rewards", "reward_weights", "multi_objective_aggregation"]
RATIO = ["id", "sampling", "mode", "clip_min", "clip_max", "mask_truncated_completions", "completion_mask_rows"]
METRICS = ["kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "entropy_coef_after"]


def main(fixtures: Path) -> None:
    """Writes the record, the arrays and the model beside this file."""
    record = json.loads((fixtures / "trl_losses.json").read_text())
    arrays = np.load(fixtures / "trl_losses.npz")
    cases, ratios = record["cases"], record["D"]["cases"]
    write_record(
        {
            "defaults": [DEFAULTS],
            "losses": [shorten(case) for case in cases],
            "rloo": record["rloo"],
            "model": record["B"]["cases"],
            "advantages": [{key: case[key] for key in ADVANTAGE} for case in record["C"]["cases"]],
            "ratios": [{key: case[key] for key in RATIO} for case in ratios],
        }
    )
    kept = {name: arrays[name] for name in arrays if wanted(name)}
    gradients = {
        "gradients": arrays["A.grad_logps"],
        "entropy_gradients": arrays["A.grad_entropy"],
        "entropy_gradients_of": arrays["A.grad_entropy_index"],
    }
    np.savez_compressed(HERE / "trl_losses.npz", **kept, **gradients)
    write_model(record["B"]["model_config"], arrays)


def shorten(case: dict[str, Any]) -> dict[str, Any]:
    """What the tests read of a case, without what has its default."""
    settings = {key: case[key] for key in KEPT if key in case and case[key] != DEFAULTS.get(key, ...)}
    return settings | {"metrics": {key: case["metrics"][key] for key in METRICS if key in case["metrics"]}}


def wanted(name: str) -> bool:
    """Whether the tests read this array."""
    part, _, rest = name.partition(".")
    if part == "B":
        return not rest.startswith("w.") and "entropies" not in rest
    return part in ("in", "C", "D", "rloo")


def write_record(record: dict[str, list[dict[str, Any]]]) -> None:
    """One case a line, so that a difference can be read."""
    parts = (f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in record.items())
    (HERE / "trl_losses.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


def write_model(config: dict[str, Any], arrays: np.lib.npyio.NpzFile) -> None:
    """The tiny model as a Hugging Face directory."""
    directory = HERE / "trl_qwen3"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}, indent=2) + "\n")
    weights = {name.removeprefix("B.w."): arrays[name] for name in arrays if name.startswith("B.w.")}
    save_file(weights, directory / "model.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
