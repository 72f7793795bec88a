"""`grpo-jax plan --memory`: an estimate for a device of any kind, which compiles nothing."""

import json
import re
from pathlib import Path

import pytest

from grpo_jax.cli import main
from grpo_jax.commands.plan.case import assemble
from grpo_jax.commands.plan.estimate import estimated
from grpo_jax.commands.plan.topology import GIB, device_with
from grpo_jax.config import read

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * GIB), ("24 gb", 24e9), ("1.5GiB", 1.5 * GIB), ("512MB", 512e6)]
)
def test_memory_is_a_size_with_its_unit(text, size):
    assert device_with(text).chip.memory == size


@pytest.mark.faults
@pytest.mark.parametrize("text", ["24", "GiB", "0GiB", "-1GiB", "24TiBs", "nan GiB", ""])
def test_another_memory_is_refused(text, capsys):
    assert main(["plan", str(CONFIGS / "quickstart.yaml"), f"--memory={text}"]) == 2
    assert f"such as 24GiB or 24GB; got {text!r}" in capsys.readouterr().err


@pytest.mark.faults
@pytest.mark.parametrize("options", [[], ["--memory", "1GiB", "--topology", "v5e-1"]])
def test_a_plan_is_for_a_slice_or_for_a_memory(options):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "quickstart", *options])
    assert ended.value.code == 2


@pytest.mark.slow
def test_a_plan_by_memory_says_that_it_is_an_estimate(capsys):
    path = CONFIGS / "qwen3_0.6b_gpu.yaml"
    assert main(["plan", str(path), "--memory", "22GiB", "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert "It fits by this estimate, which compiled nothing" in printed.err and "compiling" not in printed.err
    assert figures["compiled"] is False and "estimated_train_s" not in figures
    head = re.findall(r"[\d.]+ GiB", path.read_text().partition("Estimated memory")[2])[:3]
    peaks = [figures[phase]["peak_hbm_bytes"] / GIB for phase in ("sample", "train")]
    assert head == [f"{number:.2f} GiB" for number in (*peaks, 22)]
    assert main(["plan", str(path), "--memory", "6GiB"]) == 1
    said = capsys.readouterr().out
    assert "It does not fit by this estimate" in said and "optimizer.use=adafactor" in said


@pytest.mark.parametrize("name", ["gsm8k_qwen3_0.6b", "qwen3_1.7b_v5e-1"])
@pytest.mark.slow
def test_an_estimate_is_near_what_the_compiler_says(name):
    """The figures of v5e-1 in the head of the config are the compiler's. It may need a tenth more than the estimate."""
    path = CONFIGS / f"{name}.yaml"
    compiled = [float(number) for number in re.findall(r"(?:sampling|learning) ([\d.]+) GiB", path.read_text())]
    case = assemble(read(str(path), []), device_with("15.75GiB"))
    sample, learned = estimated(case)
    for needed, phase in zip(compiled, (sample, learned[case.responses_at_once]), strict=True):
        assert needed / 1.1 < phase.peak / GIB < 1.15 * needed


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_1.7b_v5e-1", "qwen3_1.7b_float32_v5e-1"])
def test_every_parameter_of_a_model_of_1_7_billion_fits_one_v5e_chip(name, capsys):
    pytest.importorskip("libtpu", reason="libtpu is large, and only tests of TPUs need it")
    path = CONFIGS / f"{name}.yaml"
    assert main(["plan", str(path), "--topology", "v5e-1"]) == 0
    said = capsys.readouterr().out
    assert "It fits." in said
    for phase in ("sampling", "learning"):
        needs = re.search(rf"{phase} ([\d.]+ GiB)", path.read_text())[1]
        assert re.search(rf"{phase} needs +([\d.]+ GiB)", said)[1] == needs


@pytest.mark.slow
def test_more_responses_at_once_need_more():
    case = assemble(read(str(CONFIGS / "gsm8k_qwen3_0.6b.yaml"), []), device_with("24GiB"))
    temporaries = [phase.temporary for n, phase in sorted(estimated(case)[1].items()) if n < case.choices[0]]
    assert temporaries == sorted(temporaries) and len(set(temporaries)) > 1
