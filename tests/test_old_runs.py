"""A run directory that an earlier version wrote goes on, to the end that that version came to.

tests/data/run_of_0d0afb5 was written by commit 0d0afb5: three of five steps with a KL term, on eight devices. The
expected metrics and answers are those of the same run without a stop.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from grpo_jax import RunDirectory
from grpo_jax.cli import main

DATA = Path(__file__).parent / "data" / "run_of_0d0afb5"
MEASURED = ("reward", "kl", "loss", "grad_norm", "entropy", "completions/mean_length", "learning_rate")


@pytest.mark.parametrize(
    "config", ["old.yaml", "old/config.yaml"], ids=["its own config", "the config of its directory"]
)
@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_resumed(config, tmp_path):
    shutil.copytree(DATA / "old", tmp_path / "old")
    overrides = [f"run.root={tmp_path}", "train.steps=5"]
    assert main(["train", str(DATA / config), *overrides, "--resume"]) == 0
    found = RunDirectory(tmp_path / "old")
    expected = [json.loads(line) for line in (DATA / "expected_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found.metrics()] == [row["step"] for row in expected]
    for row, other in zip(found.metrics()[4:], expected[4:], strict=True):
        for name in MEASURED:
            np.testing.assert_allclose(row[name], other[name], rtol=1e-3, atol=1e-5, err_msg=name)
    answers = [json.loads(line) for line in (DATA / "expected_step_000005.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in found.answers(5)] == [row["completion"] for row in answers]
