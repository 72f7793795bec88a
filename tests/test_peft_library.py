"""The library `peft` computes with our adapters what we do, and we with those that it saves.

As in test_transformers.py, the variable TRANSFORMERS lists interpreters, which have `peft`, too.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_peft import CASES, ONE, stirred, write_base

import grpo_jax as gj

SCRIPT = Path(__file__).parent / "in_peft.py"
HERE = [sys.executable] if importlib.util.find_spec("peft") else []
VERSIONS = os.environ["TRANSFORMERS"].split(":") if "TRANSFORMERS" in os.environ else HERE
IDS_PL = np.random.default_rng(0).integers(3, 256, (2, 12)).astype(np.int32)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
OF_PEFT = {  # adapters that it makes of each case
    "llama": {
        "linear": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"},
        "stabilised": {"r": 4, "lora_alpha": 5, "use_rslora": True, "target_modules": ["gate_proj", "down_proj"]},
        "several": {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": r".*\.(q|v)_proj",
            "rank_pattern": {"q_proj": 5},
            "alpha_pattern": {"layers.1.self_attn.v_proj": 9},
        },
    },
    "phi3": {"linear": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}},
    "qwen2_moe": {"attention": {"r": 2, "lora_alpha": 5, "target_modules": ATTENTION}},
    "gemma2": {"attention": {"r": 2, "lora_alpha": 5, "target_modules": ATTENTION, "init_lora_weights": "gaussian"}},
}

pytestmark = pytest.mark.slow
if not VERSIONS:
    pytest.skip("no interpreter with peft; `.ci/transformers` makes two", allow_module_level=True)


def logprobs(model, params) -> np.ndarray:
    """Of every token after the last position: what the other side computes for all positions."""
    last_PD, _ = model.policy.read(params, gj.Prompts(IDS_PL, np.ones(IDS_PL.shape, bool)))
    return np.asarray(jax.nn.log_softmax(model.policy.unembed(params, last_PD)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of cases with adapters of ours, and the log-probs of each."""
    folder, found = tmp_path_factory.mktemp("cases"), {}
    for case, (name, targets) in CASES.items():
        place = folder / case
        place.mkdir()
        base = write_base(name, tmp_path_factory.mktemp(case))
        shutil.copytree(base, place / "base")
        model = gj.load(str(place / "base"), lora={"rank": 3, "alpha": 5.0, "targets": targets})
        params = stirred(model.params(ONE))
        gj.export(model, params, place / "adapter", adapter=True)
        found[case] = logprobs(model, params)
        (place / "ids.json").write_text(json.dumps(IDS_PL.tolist()))
        (place / "settings.json").write_text(json.dumps(OF_PEFT.get(case, {})))
    return folder, found


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: Path(path).parent.parent.name)
def reports(request, cases, tmp_path_factory) -> Path:
    """What one version finds in the cases."""
    out = tmp_path_factory.mktemp("reports")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or request.param == sys.executable}
    done = subprocess.run([request.param, SCRIPT, cases[0], out], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_with_our_adapter_what_we_do(case, reports, cases):
    theirs_PV, base_PV = (np.load(reports / case / name)[:, -1] for name in ("adapter.npy", "base.npy"))
    np.testing.assert_allclose(theirs_PV, cases[1][case], atol=1e-4)
    assert np.abs(theirs_PV - base_PV).max() > 0.01
    said = json.loads((reports / case / "said.json").read_text())
    assert not [line for line in said if "missing" in line or "unexpected" in line.lower()]


@pytest.mark.parametrize("case", CASES)
def test_our_adapter_that_peft_has_saved_is_the_same_here(case, reports, cases):
    model = gj.load(str(reports / case / "again"))
    np.testing.assert_allclose(logprobs(model, model.params(ONE)), cases[1][case], atol=1e-4)


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, each in OF_PEFT.items() for name in each])
def test_we_compute_with_an_adapter_of_peft_what_it_does(case, name, reports):
    theirs_PV, base_PV = (np.load(reports / case / f"{file}.npy")[:, -1] for file in (name, "base"))
    model = gj.load(str(reports / case / name))
    np.testing.assert_allclose(logprobs(model, model.params(ONE)), theirs_PV, atol=1e-4)
    assert np.abs(theirs_PV - base_PV).max() > 0.01
