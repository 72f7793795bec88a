"""Makes the table of model families in docs/models.md: what the tests say, and what the TPU compiler says.

    python docs/table_families.py             runs the tests of families and prints the table
    python docs/table_families.py --compile   first compiles a public model of each family for a TPU slice

The models are the smallest public ones. The second needs the TPU compiler (pip install -e ".[tpu]"), no TPU, and about
half an hour; its figures are kept in docs/families.json. The table says yes where every test of a family passed.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIGURES = Path(__file__).parent / "families.json"
TESTS = {  # of tests/test_families.py, by what each of them shows
    "log-probs, decoding": "test_log_probs_of_the_whole_vocabulary_are_those_of_transformers_also_through_the_cache",
    "training": "test_a_step_moves_every_weight_and_sampler_and_trainer_agree",
    "load and export": "test_an_export_has_the_tensors_that_were_read_and_is_read_again",
}
FAMILIES = {  # the models of tests/golden/families that stand for each, and the smallest public one
    "Gemma": (["gemma"], "gemma-2b"),
    "Gemma 2": (["gemma2"], "gemma-2-2b"),
    "Gemma 3": (["gemma3_text"], "gemma-3-270m"),
    "Llama, SmolLM2": (["llama_biases"], "smollm2-135m"),
    "Qwen2, Qwen2.5": (["qwen2_sliding"], "qwen2.5-1.5b"),
    "Qwen3": (["qwen3_sliding", "qwen3_dynamic"], "qwen3-0.6b"),
    "SmolLM3": (["smollm3"], "smollm3-3b"),
    "OLMo-2": (["olmo2"], "olmo-2-0425-1b"),
    "OLMo-3": (["olmo3"], "olmo-3-7b"),
    "Phi-3, Phi-4-mini": (["phi3"], "phi-3-mini-4k"),
    "Granite": (["granite"], "granite-3.3-2b"),
    "GLM-4": (["glm4"], "glm-4-9b-0414"),
    "EXAONE-4": (["exaone4"], "exaone-4.0-1.2b"),
    "Qwen2-MoE": (["qwen2_moe"], "qwen1.5-moe-a2.7b"),
    "Qwen3-MoE": (["qwen3_moe"], "qwen3-30b-a3b"),
}
EIGHT = (  # slices, meshes and how many responses a device learns from at once, tried in this order
    ("v5e-8", "fsdp: 4, tensor: 2", 8),
    ("v5e-8", "fsdp: 4, tensor: 2", 2),
    ("v5e-8", "fsdp: 2, tensor: 4", 2),
)
LARGER = {
    "qwen1.5-moe-a2.7b": (("v6e-8", "fsdp: 2, expert: 4, tensor: 1", 8),),
    "qwen3-30b-a3b": (("v5p-16", "fsdp: 2, expert: 4, tensor: 1", 8),),
}
CONFIG = """
model: {{name: {name}}}
task: {{use: arithmetic}}
rollout: {{responses: 8, max_tokens: 512}}
objective: {{use: dapo}}
optimizer: {{use: adafactor}}
algorithm: {{responses_at_once: {at_once}}}
mesh: {{data: 1, {mesh}}}
train: {{steps: 1, prompts: 8, max_prompt_tokens: 256}}
"""


def main() -> None:
    """Compiles if asked to, runs the tests, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", nargs="*", metavar="MODEL", help="compile these public models; default: all")
    models = parser.parse_args().compile
    if models is not None:
        compile_all(models or [model for _, model in FAMILIES.values()])
    print(table(passed(), json.loads(FIGURES.read_text(encoding="utf-8"))))


def compile_all(models: list[str]) -> None:
    """Compiles each model in a process of its own, and keeps the figures."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as alone:
        for model in models:
            figures[model] = alone.submit(compiled, model).result()
            print(model, figures[model], file=sys.stderr, flush=True)
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def compiled(model: str) -> dict[str, float | str]:
    """The peak memory of a chip in GiB, sampling and learning, of 8 prompts of 256 with 8 responses of 512."""
    import jax

    from grpo_jax.commands.plan.case import assemble
    from grpo_jax.commands.plan.programs import plan_learning, plan_sampling
    from grpo_jax.commands.plan.topology import GIB, find_slice
    from grpo_jax.config import read

    jax.config.update("jax_enable_compilation_cache", False)
    for name, mesh, at_once in LARGER.get(model, EIGHT):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(CONFIG.format(name=f"random:{model}", mesh=mesh, at_once=at_once), encoding="utf-8")
            case = assemble(read(path), find_slice(name))
        sampling, learning = plan_sampling(case), plan_learning(case, case.responses_at_once)
        if sampling.peak is not None and learning.peak is not None:
            peaks = {"sampling": round(sampling.peak / GIB, 2), "learning": round(learning.peak / GIB, 2)}
            return {"slice": name, "mesh": mesh.replace(": ", " ").replace(", ", " x "), **peaks}
    raise SystemExit(f"{model} does not fit: {sampling.message} {learning.message}")


class Results:
    """A plugin of pytest that keeps which tests passed: for each test, by what it was given."""

    def __init__(self) -> None:
        self.passed: dict[str, dict[str, bool]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of a test."""
        if report.when == "call":
            test, _, golden = report.nodeid.rpartition("::")[2].partition("[")
            self.passed[test][golden.rstrip("]")] = report.passed


def passed() -> dict[str, dict[str, bool]]:
    """Whether each golden model passed each test."""
    os.chdir(ROOT)
    results = Results()
    pytest.main(["tests/test_families.py", "-m", "slow or not slow", "-q"], plugins=[results])
    return results.passed


def table(results: dict[str, dict[str, bool]], figures: dict[str, dict[str, float | str]]) -> str:
    """The table in Markdown."""
    lines = [
        f"| family | {' | '.join(TESTS)} | smallest public model | slice | mesh | sampling | learning |",
        f"|{'---|' * (len(TESTS) + 6)}",
    ]
    for family, (golden, model) in FAMILIES.items():
        ticks = ["yes" if all(results[test].get(name, False) for name in golden) else "no" for test in TESTS.values()]
        known = figures.get(model, {})
        place = [str(known.get(what, "")) for what in ("slice", "mesh")]
        peaks = [f"{known[phase]:.2f} GiB" if phase in known else "" for phase in ("sampling", "learning")]
        lines.append(f"| {' | '.join([family, *ticks, model, *place, *peaks])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
