"""`grpo-jax train` from a config to a run directory, and every mistake found before anything compiles."""

import json

import numpy as np
import pytest

from grpo_jax.cli import main
from grpo_jax.config import build, read
from grpo_jax.rollout import native
from grpo_jax.training.order import pick
from grpo_jax.training.session import Session, assemble

CONFIG = """
run: {name: short, root: ROOT}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 20, held_out: 8, largest: 9}
rewards: [{use: Matches, pattern: "(?s).*[a-p].*"}]
rollout: {responses: 4, max_tokens: 6}
objective: {use: grpo}
optimizer: {learning_rate: 1e-3}
mesh: {data: 1, fsdp: 2, tensor: 4}
algorithm: {minibatches: 2, responses_at_once: 4}
train: {steps: 3, prompts: 4, evaluate_every: 2, save_every: 1, max_prompt_tokens: 96}
"""


ONE_BATCH = ("algorithm.minibatches=1", "algorithm.responses_at_once=null")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(CONFIG.replace("ROOT", str(tmp_path / "runs")))
    return path


def session_of(config) -> Session:
    parts = build(config)
    return assemble(*(parts[name] for name in ("model", "task", "algorithm", "settings", "layout")))


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(rows):
    return [{name: value for name, value in row.items() if "time" not in name} for row in rows]


@pytest.mark.slow
@pytest.mark.long
def test_resuming_gives_the_run_that_was_never_stopped(config, tmp_path, capsys):
    assert main(["train", str(config)]) == 0
    assert main(["train", str(config), "train.steps=2", "run.name=halted"]) == 0
    assert main(["train", str(config), "run.name=halted", "--resume"]) == 0
    whole, halted = tmp_path / "runs" / "short", tmp_path / "runs" / "halted"
    expected, resumed = (read_rows(path / "metrics.jsonl") for path in (whole, halted))
    assert [row["step"] for row in resumed] == [0, 1, 2, 3]
    assert without_times(expected) == without_times(resumed)
    assert all(row["grad_norm"] > 0.01 for row in expected[2:])
    assert sorted(path.name for path in (whole / "completions").iterdir())[-1] == "step_000003.jsonl"
    printed = capsys.readouterr().out
    assert "step 3/3  reward" in printed and "resuming at step 2 to 3" in printed


@pytest.mark.slow
def test_a_run_directory_holds_what_was_asked_and_what_happened(config, tmp_path):
    assert main(["train", str(config), "train.steps=1"]) == 0
    path = tmp_path / "runs" / "short"
    assert read(path / "config.yaml") == read(config, ["train.steps=1"])
    before, row = read_rows(path / "metrics.jsonl")
    assert (before["step"], row["step"]) == (0, 1)
    names = {"reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "loss", "grad_norm", "learning_rate"}
    names |= {"rewards/Matches/mean", "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean"}
    assert before.keys() >= {"eval/reward"}
    names |= {"step_time", "time/sampling", "time/scoring", "time/learning", "eval/reward"}
    assert names <= row.keys()
    answers = read_rows(path / "completions" / "step_000001.jsonl")
    assert len(answers) == 16
    assert np.mean([answer["rewards/Matches"] for answer in answers]) == pytest.approx(row["rewards/Matches/mean"])
    assert {"prompt", "answer", "completion", "advantage"} <= answers[0].keys()
    assert any(file.stat().st_size for file in (path / "events").iterdir())
    assert main(["train", str(config), "train.steps=1"]) == 0
    assert (tmp_path / "runs" / "short-2" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.name=./nowhere"], "nowhere"),
        (
            ["train.prompts=5", "rollout.responses=3", *ONE_BATCH],
            "got 5 prompts and 3 responses. Choose 4 or 6 prompts",
        ),
        (["algorithm.minibatches=3"], "4 prompts do not divide into 3 minibatches; choose 1, 2 or 4"),
        (["train.max_prompt_tokens=20"], "train.max_prompt_tokens in a config"),
        (["algorithm.responses_at_once=0"], "responses_at_once must be at least 1 and at most 2,147,483,647; got 0"),
        (["algorithm.minibatches=4", "rollout.responses=3"], "got 1 prompts and 3 responses. Choose 2 prompts"),
        (["rollout.temperature=0.0"], "use one above 0"),
        (["rollout.max_tokens=1000"], "the model has 1024"),
        (["train.steps=0"], "train.steps must be at least 1 and at most 2,147,483,647; got 0"),
        (["mesh.data=3"], "does not cover 8 device"),
        (["run.name=../elsewhere"], "A run is named by letters"),
        (["task.use=jsonl", "task.path=none.jsonl"], "none.jsonl"),
        (["optimizer.learning_rate=0.0"], "optimizer.learning_rate must be above 0 and at most 1; got 0.0"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_one_sentence_and_leaves_no_run_behind(config, tmp_path, capsys, overrides, words):
    edited = config.read_text()
    if overrides[0].startswith("task.use"):
        edited = edited.replace(
            "task: {use: arithmetic, train: 20, held_out: 8, largest: 9}", "task: {use: jsonl, path: none.jsonl}"
        )
        config.write_text(edited)
        overrides = []
    assert main(["train", str(config), *overrides]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert words in message
    assert not (tmp_path / "runs").exists()


def test_a_malformed_line_is_named(config, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "2 + 2 =", "answer": "4"}\n{"prompt": "3 + 3 =" "answer": "6"}\n')
    task = "task: {use: arithmetic, train: 20, held_out: 8, largest: 9}"
    config.write_text(config.read_text().replace(task, f"task: {{use: jsonl, path: {data}}}"))
    assert main(["train", str(config)]) == 2
    assert f"{data}:2" in capsys.readouterr().err


def test_every_pass_over_the_data_sees_every_example_once():
    seen = [index for step in range(7) for index in pick(0, step, prompts=4, examples=7)]
    assert [sorted(seen[start : start + 7]) for start in range(0, 28, 7)] == [list(range(7))] * 4
    assert seen[:7] != seen[7:14]


def test_the_order_is_a_function_of_seed_and_step():
    assert pick(1, 5, 4, 100) == pick(1, 5, 4, 100)
    assert pick(1, 5, 4, 100) != pick(2, 5, 4, 100)


def test_memory_has_to_hold_the_prompts_of_a_step_and_not_of_the_data(config, monkeypatch):
    asked = ["task.train=160", "task.largest=99"]
    session = session_of(read(config, asked))
    policy, sampler = session.model.policy, session.algorithm.sample
    L = session.questions.prompts.tokens_PL.shape[1]
    step, data = (native.needed_bytes(policy, P, L, sampler.responses, sampler.max_tokens, False) for P in (4, 160))
    monkeypatch.setattr(native, "free_bytes", lambda: (step + data) // 2)
    session_of(read(config, asked))
    with pytest.raises(ValueError, match="4 prompts with 4 responses of 6 tokens"):
        monkeypatch.setattr(native, "free_bytes", lambda: step - 1)
        session_of(read(config, asked))
