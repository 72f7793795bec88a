"""The report of a real training with evaluations: held-out answers, pass@k, tokens with their log-probs, memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_metrics_page import unexplained

from grpo_jax.cli import main
from grpo_jax.report.answers import chapters
from grpo_jax.report.curves import curves
from grpo_jax.report.headline import headline
from grpo_jax.report.page import page_of
from grpo_jax.report.reading import read_run
from grpo_jax.saved.directory import RunDirectory

DOCS = Path(__file__).parent.parent / "docs"
pytestmark = pytest.mark.slow
CONFIG = """
run: {name: short, root: ROOT}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 20, held_out: 8, largest: 9}
rewards: [{use: Matches, pattern: "(?s).*[a-p].*"}]
rollout: {responses: 4, max_tokens: 4}
objective: {use: grpo}
optimizer: {learning_rate: 1e-2, warmup_steps: 1}
mesh: {data: 1, fsdp: 2, tensor: 4}
evaluation: {responses: 4, temperature: 0.7}
train: {steps: 4, prompts: 4, evaluate_every: 2, save_every: 9, report_minutes: 0}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "config.yaml").write_text(CONFIG.replace("ROOT", str(folder)))
    assert main(["train", str(folder / "config.yaml")]) == 0
    return folder / "short"


def test_one_group_of_a_step_has_its_tokens_and_it_is_one_whose_rewards_differ_most(run):
    rows = RunDirectory(run).answers(1)
    known = [row for row in rows if "tokens" in row]
    assert 1 <= len(known) <= 4 and len({str(row["prompt"]) for row in known}) == 1
    for row in known:
        assert "".join(row["tokens"]) == row["completion"]
        assert len(row["tokens"]) == len(row["logprobs"]) == row["length"] and max(row["logprobs"]) <= 0
    earned: dict[str, list[float]] = {}
    for row in rows:
        earned.setdefault(str(row["prompt"]), []).append(row["rewards/Matches"])
    assert np.ptp(earned[str(known[0]["prompt"])]) == max(map(np.ptp, earned.values()))


def test_a_step_says_how_much_memory_was_used_at_most(run):
    steps, peaks = RunDirectory(run).column("memory/lifetime_peak/process")
    assert steps == [1, 2, 3, 4] and 0.1 < peaks[0] <= peaks[-1] < 1000


def test_every_number_of_the_run_is_on_the_page_about_metrics(run):
    assert unexplained(RunDirectory(run).metrics()) == []


def test_the_page_shows_held_out_answers_pass_at_k_intervals_tokens_and_memory(run):
    found = read_run(run)
    assert found.problems == []
    titles = {curve.title: curve for curve in curves(found)}
    assert {"pass@1", "pass@2", "pass@4"} <= {line.label for line in titles["pass@k and maj@k"].lines}
    (memory,) = titles["Memory"].lines
    assert memory.label == "process" and titles["Memory"].unit == "GB"
    head, rows = headline(found), RunDirectory(run).metrics()
    assert head.first.value == pytest.approx(rows[0]["eval/reward"])
    assert (head.first.low, head.first.high) == (rows[0]["eval/reward/low"], rows[0]["eval/reward/high"])
    shown = {chapter.title: chapter for chapter in chapters(found)}
    held_out = shown["Held-out answers: step 0 against step 4"]
    assert len(held_out.questions) == 8
    page = page_of(found)
    assert "Tokens: the stronger the colour" in page and 'title="log-prob -' in page
    assert "Held-out answers: step 0 against step 4" in page


def test_the_change_is_that_of_each_prompt_between_two_evaluations(run):
    """An oracle from the files: the mean over prompts of the difference of their means."""
    first, last = (RunDirectory(run).held_out(step) for step in (0, 4))
    change = headline(read_run(run)).change
    means = [np.array([row["reward"] for row in rows]).reshape(8, 4).mean(axis=1) for rows in (first, last)]
    difference_P = means[1] - means[0]
    if np.ptp(difference_P) == 0:
        assert change is None
    else:
        assert change.mean == pytest.approx(difference_P.mean()) and change.prompts == 8
        assert change.low <= change.mean <= change.high


@pytest.mark.long
def test_trainings_that_fail_in_ten_ways_get_the_diagnoses_of_the_docs_and_those_that_learn_get_none(tmp_path):
    script, page = DOCS / "table_diagnoses.py", (DOCS / "report.md").read_text(encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent), "XLA_FLAGS": ""}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    documented = diagnosis_of_each(page[page.index("table_diagnoses.py") :])
    found = diagnosis_of_each(printed)
    assert found == documented and len(found) == 16
    assert {diagnosis for name, diagnosis in found.items() if name.startswith("healthy")} == {"none"}
    assert len({diagnosis for name, diagnosis in found.items() if not name.startswith("healthy")}) == 10


def diagnosis_of_each(text: str) -> dict[str, str]:
    """The first and the last column of a table of four; rewards differ a little from version to version."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in rows if len(row) == 4 and row[0] != "run"}
