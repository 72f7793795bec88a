"""A run with rewards of several criteria, from the first answer to metrics, recorded answers and an evaluation."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_metrics_page import unexplained

from grpo_jax import scoring
from grpo_jax.cli import main
from grpo_jax.rewards import Mix
from grpo_jax.training.record import RunDirectory

MINE = """
def judged(example, response):
    if not response:
        return 0.0  # of the empty response that is tried before the run
    if "1" in response:
        raise KeyError("one")
    return {"even": len(response) % 2, "none": None, "gate": "2" not in response}

judged.gates = frozenset({"gate"})
judged.weights = {"even": 0.5}

def longest(example, responses):
    return [float(len(text) == max(map(len, responses))) for text in responses]

def logged(completion_ids, log_metric, log_extra, **kwargs):
    log_metric("tokens", sum(map(len, completion_ids)))
    log_extra("seven", [7 for _ in completion_ids])
    return [0.0 for _ in completion_ids]
"""
CONFIG = """
run: {name: t}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 32, held_out: 8, largest: 9}
rewards:
  - {use: "mine:judged", weight: 2.0, on_error: mask}
  - {use: "mine:longest", workers: 1, deadline: 60}
  - {use: "mine:logged", weight: 0.0}
rollout: {responses: 4, max_tokens: 6}
objective: {use: rubric}
optimizer: {learning_rate: 1e-3, warmup_steps: 1}
mesh: {data: 1, fsdp: 2, tensor: 4}
train: {steps: 2, prompts: 4, evaluate_every: 2, save_every: 50, max_prompt_tokens: 96}
"""


@pytest.mark.slow
def test_a_run_records_each_criterion_and_what_rewards_log(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "c.yaml").write_text(CONFIG)
    try:
        assert main(["train", "c.yaml"]) == 0, capsys.readouterr().err
    finally:
        sys.modules.pop("mine", None)
    rows = list(RunDirectory(Path("runs/t")).metrics())
    last = rows[-1]
    assert unexplained(rows) == []
    for name in ("judged/even", "judged/none", "judged/gate", "longest", "logged"):
        assert f"rewards/{name}/mean" in last and f"eval/rewards/{name}/mean" in last
    assert last["rewards/judged/none/mean"] is None
    assert last["rewards/late_frac"] == 0 and 0 <= last["rewards/failed_frac"] < 1 and last["tokens"] > 0
    answers = [json.loads(line) for line in Path("runs/t/completions/step_000002.jsonl").read_text().splitlines()]
    assert len(answers) == 16 and all(row["seven"] == 7 for row in answers)
    totals = [row["reward"] for row in answers if row["reward"] is not None]  # with gates, and weights of criteria
    assert np.mean(totals) == pytest.approx(last["reward"], abs=1e-6)
    assert any(row["reward"] != sum(v or 0 for k, v in row.items() if k.startswith("rewards/")) for row in answers)
    for row in answers:
        failed = "1" in row["completion"]
        expected = None if failed or not row["completion"] else len(row["completion"]) % 2
        assert row["rewards/judged/even"] == expected or not row["completion"]


def test_hosts_must_find_the_same_criteria(monkeypatch):
    mix = Mix(((lambda example, response: None, 1.0),))
    others = {"agree": '{"0": ["a", "b"]}', "differ": '{"0": ["b", "a"]}', "number": '{"0": []}', "nothing": "{}"}
    for name in ("agree", "nothing"):
        monkeypatch.setattr(scoring, "_texts_of_hosts", lambda text, name=name: [text, others[name]])
        assert scoring._agreed(mix, {0: ("a", "b")}) == {0: ("a", "b")}
    assert scoring._agreed(mix, {}) == {}
    for name in ("differ", "number"):
        monkeypatch.setattr(scoring, "_texts_of_hosts", lambda text, name=name: [text, others[name]])
        with pytest.raises(ValueError, match=r"the criteria a, b on one host and .* on another\. Declare its criteria"):
            scoring._agreed(mix, {0: ("a", "b")})


def test_columns_that_came_later_are_unknown_before():
    before = scoring.Rewards(np.array([[[1.0, np.nan]]], np.float32), columns=("exact", "judged"))
    after = scoring.aligned(before, ("exact", "judged/a", "judged/b"))
    np.testing.assert_array_equal(after.parts_PGR, [[[1, np.nan, np.nan]]])
    assert scoring.aligned(after, after.columns) is after


def test_numbers_of_several_hosts_are_their_means():
    assert scoring.means_of([{"a": 1.0, "b": 2.0}, {"a": 3.0}, {}]) == {"a": 2.0, "b": 2.0}
