"""`grpo-jax eval` and `gj.evaluate`, and evaluations during a run, with the tiny model."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.cli import main
from grpo_jax.commands.eval import command
from grpo_jax.commands.eval.subjects import targeted
from grpo_jax.commands.eval.table import heading
from grpo_jax.hosts import codes
from grpo_jax.rollout.engine import FunctionEngine
from grpo_jax.saved.manifest import steps_in, write_manifest

OLD = Path(__file__).parent / "data" / "run_of_0d0afb5" / "old"
MODEL = gj.tiny(remat="none")
EXAMPLES = [gj.Example(f"Say {letter}", letter) for letter in "abcde"]
SMALL = ["train.evaluate_prompts=5", "rollout.max_tokens=4"]


@pytest.fixture
def run(tmp_path):
    """A run of `tiny` with a checkpoint of step 3, as an early version wrote it."""
    path = shutil.copytree(OLD, tmp_path / "runs" / "old")
    write_manifest(path / "checkpoints" / "3", 3)
    return path


def odd(example, response):
    """Nothing for an even number of letters, 1 for an odd one; no score for an empty response."""
    return float(len(response) % 2) if response else None


def algorithm_of(reward, **settings) -> gj.Algorithm:
    sampler = gj.Sampler(MODEL.tokenizer.end_ids, **({"responses": 4, "max_tokens": 5} | settings))
    parts = {"objective": gj.objectives.dapo(), "optimizer": gj.adamw(1e-2)}
    return gj.Algorithm(MODEL.policy, sampler, MODEL.tokenizer.decode, reward, **parts)


def params_on(devices: int):
    return MODEL.params(gj.Layout().mesh(jax.devices()[:devices]))


def completions(folder: Path, step: int) -> list[str]:
    text = (folder / f"held_out_{step:06d}.jsonl").read_text()
    return [json.loads(line)["completion"] for line in text.splitlines()]


def test_an_evaluation_is_a_mapping_of_metrics_with_the_answers_that_they_are_made_of():
    algorithm = algorithm_of(odd)
    found = gj.evaluate(algorithm, MODEL, EXAMPLES, params_on(1), evaluation=gj.Evaluation(responses=4, seed=1))
    rows = found.answers
    assert len(rows) == 20 and [row["sample"] for row in rows[:5]] == [0, 1, 2, 3, 0]
    assert [row["answer"] for row in rows[::4]] == list("abcde")
    known = [row["reward"] for row in rows if not np.isnan(row["reward"])]
    assert found["unscored"] == 20 - len(known)
    by_prompt = np.array([row["reward"] for row in rows]).reshape(5, 4)
    assert found["reward"] == pytest.approx(np.nanmean([np.nanmean(each) for each in by_prompt]))
    assert found["pass@1"] == pytest.approx(found["reward"]) and found["rewards/odd/mean"] == found["reward"]
    assert found["pass@4"] == pytest.approx(np.mean([max(e) for e in by_prompt if not np.isnan(e).any()]))
    assert found["length"] == np.mean([row["length"] for row in rows])
    assert found["truncated"] == pytest.approx(np.mean([row["truncated"] for row in rows]))
    assert {"reward/low", "reward/high"} <= found.keys() and "maj@k" in found.left_out
    assert all(row["truncated"] for row in rows if len(row["completion"]) == 5)


def test_greedy_answers_are_the_same_however_the_prompts_are_divided_over_devices_and_calls():
    algorithm = algorithm_of(odd)
    alone = gj.evaluate(algorithm, MODEL, EXAMPLES, params_on(1))
    divided = gj.evaluate(algorithm, MODEL, EXAMPLES, params_on(4), evaluation=gj.Evaluation(responses_at_once=2))
    assert dict(alone) == dict(divided) and alone["unscored"] == divided["unscored"]
    assert [row["completion"] for row in alone.answers] == [row["completion"] for row in divided.answers]
    assert {"reward", "rewards/odd/mean", "pass@1"} <= alone.keys() and not any("maj" in name for name in alone)


def test_the_reward_that_says_what_is_right_can_be_named():
    def first(example, response):
        return 0.25

    mix = gj.Mix(((odd, 1.0), (first, 1.0)))
    algorithm = algorithm_of(mix)
    named = gj.Evaluation(right="first", right_from=0.25)
    assert gj.evaluate(algorithm, MODEL, EXAMPLES, params_on(1), evaluation=named)["pass@1"] == 1
    misspelt = gj.Evaluation(right="frist")
    with pytest.raises(ValueError, match=r"evaluation\.right is frist, and the rewards are odd, first"):
        gj.evaluate(algorithm, MODEL, EXAMPLES, {}, evaluation=misspelt)  # before anything is asked
    with pytest.raises(ValueError, match=r"at least one example; got none\."):
        gj.evaluate(algorithm, MODEL, [], {})
    with pytest.raises(ValueError, match=r"evaluation\.right is frist, and the rewards are odd, first"):
        misspelt.check(algorithm.engine, mix, MODEL.policy, MODEL.tokenizer.encode_all(["a"], 64))


def test_an_engine_of_ones_own_answers_as_it_does_and_takes_no_settings_of_the_sampler():
    algorithm = algorithm_of(odd)
    own = replace(algorithm, sample=lambda policy, params, prompts, key: algorithm.sample(policy, params, prompts, key))
    found = gj.evaluate(own, MODEL, EXAMPLES, params_on(1))
    assert len(found.answers) == 20 and "pass@4" in found and found.responses == 4
    assert "5 held-out prompts, 4 answers to each, as the engine gives them" in heading(
        "t", gj.Evaluation(), own.engine, found
    )
    with pytest.raises(ValueError, match=r"evaluation\.responses is a setting of the native sampler.*FunctionEngine"):
        gj.evaluate(own, MODEL, EXAMPLES, params_on(1), evaluation=gj.Evaluation(responses=2))


def test_one_call_has_as_many_answers_as_the_engine_gives():
    sampler = algorithm_of(odd).sample
    told = FunctionEngine(lambda *given: None, responses=4)
    untold = FunctionEngine(lambda *given: None)
    evaluation = gj.Evaluation()
    assert [evaluation.answers(engine) for engine in (sampler, told, untold)] == [1, 4, 1]
    assert gj.Evaluation(responses=3).answers(sampler) == 3
    calls, algorithm = [], algorithm_of(odd)

    def own(policy, params, prompts, key):
        calls.append(len(prompts.tokens_PL))
        return algorithm.sample(policy, params, prompts, key)

    own.responses = 4
    gj.evaluate(
        replace(algorithm, sample=own), MODEL, EXAMPLES, params_on(1), evaluation=gj.Evaluation(responses_at_once=12)
    )
    assert calls == [3, 3]  # of twelve answers


@pytest.mark.slow
def test_a_run_is_measured_beside_its_base_and_its_export_gives_the_same_answers(run, tmp_path, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    printed = capsys.readouterr()
    assert f"{run}@3  " in printed.err and "tiny" in printed.err and "difference" in printed.err
    assert "arithmetic: 8 held-out prompts, one greedy answer to each; 95 % intervals" in printed.err
    assert f"{run}@3, arithmetic: 8 of 8 prompts" in printed.err and "left 0:00" in printed.err
    assert gj.RunDirectory(run).held_out_steps() == [0, 3] and len(gj.RunDirectory(run).held_out(3)) == 8
    (figures,) = json.loads(printed.out)
    assert [each["model"] for each in figures["models"]] == ["tiny", f"{run}@3"]
    reward = [each["metrics"]["reward"] for each in figures["models"]]
    assert figures["changes"]["reward"]["mean"] == pytest.approx(reward[1] - reward[0])

    exported = gj.export(
        gj.load(str(run)), gj.load(str(run)).params(gj.Layout().mesh(jax.devices()[:1])), tmp_path / "m"
    )
    several = ["evaluation.responses=4", "evaluation.seed=7"]
    assert main(["eval", str(run), *several, "--json"]) == 0
    first = capsys.readouterr()
    assert "4 sampled answers to each, seed 7" in first.err
    as_task = ["--task", str(run / "config.yaml"), "--out", str(tmp_path / "out")]
    assert main(["eval", str(exported), *as_task, *several, "--json", "--quiet"]) == 0
    second = capsys.readouterr()
    assert second.err == ""
    of_run, of_export = (json.loads(text)[0]["models"][-1] for text in (first.out, second.out))
    assert of_run["metrics"] == of_export["metrics"] and of_run["intervals"] == of_export["intervals"]
    assert {"pass@1", "pass@4", "reward/low"} <= of_run["metrics"].keys()
    answers = completions(run / "evaluations", 3)
    assert len(answers) == 32 and answers == completions(tmp_path / "out", 0)
    assert answers != completions(run / "evaluations", 0)
    assert len(gj.RunDirectory(run).held_out(3)) == 8  # those with the run's own settings stay


@pytest.mark.slow
def test_a_run_of_other_devices_is_measured_and_a_full_disk_costs_no_table(run, monkeypatch, capsys):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("tensor: 4", "tensor: 3"))
    assert main(["eval", str(run), "mesh.tensor=3"]) == 2
    assert "does not cover 8 device(s)" in capsys.readouterr().err

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command, "write_answers", full)
    assert main(["eval", str(run), "evaluation.responses=1"]) == codes.NOT_WRITTEN
    printed = capsys.readouterr()
    assert f"{run} was trained on a mesh that the devices here cannot make" in printed.err
    assert "difference" in printed.out and "The answers could not be written to" in printed.err
    assert printed.err.endswith("(No space left on device). Make room or name another folder with --out.\n")


@pytest.mark.slow
def test_several_tasks_are_asked_one_after_the_other(tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text(
        "task: {use: arithmetic, largest: 9, train: 20, held_out: 6}\nrewards: [last_number]\n"
        "rollout: {responses: 2, max_tokens: 3}\ntrain: {steps: 1, prompts: 4, evaluate_prompts: 3}\n"
    )
    assert main(["eval", "tiny", "--task", "arithmetic", "--task", str(config), *SMALL, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "arithmetic: 5 held-out prompts" in printed and "mine: 5 held-out prompts" in printed
    assert len(completions(tmp_path / "arithmetic", 0)) == 5 == len(completions(tmp_path / "mine", 0))
    assert main(["eval", str(config), "evaluation.responses=4", "train.evaluate_prompts=2", "model.name=tiny"]) == 0
    printed = capsys.readouterr().out
    assert "maj@4" in printed and "pass@4" in printed and "--out DIR keeps them" in printed


def test_what_overrides_say_of_a_task_is_kept_and_tasks_of_one_name_are_told_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    config, twin = (str(tmp_path / folder / "x.yaml") for folder in "ab")

    def found(tasks, *overrides):
        return targeted(config, tasks, overrides).subjects

    (own,) = found(["arithmetic"], "task.held_out=3")
    assert own.config.rewards == () and own.config.task.arguments["held_out"] == 3
    (given,) = found(["arithmetic"], "rewards=[exact, last_number]")
    assert [reward.call.target.rpartition(":")[2] for reward in given.config.rewards] == ["exact", "last_number"]
    (changed,) = found(["arithmetic"], "rewards[0].weight=0.5")
    assert [reward.weight for reward in changed.config.rewards] == [0.5]
    (of_other,) = found([twin], "mesh={data: 2}")
    assert of_other.config.mesh.arguments["data"] == 2
    names = [subject.name for subject in found([config, twin, "arithmetic", "arithmetic"])]
    assert names == ["x", "x-2", "arithmetic", "arithmetic-2"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tiny"], "tiny is no run and no config, so a model, which says no task to measure it with. Add --task"),
        (["tiny", "--task", "arithmetik"], "unknown name arithmetik, did you mean arithmetic?"),
        (["tiny", "--task", "nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["tiny", "--task", "arithmetic", "task.held_out=0"], "The task arithmetic has no held-out examples"),
        (["tiny", "--task", "arithmetic", "evaluation.respones=2"], "did you mean evaluation.responses?"),
        (["tiny", "--task", "arithmetic", "evaluation.right=right"], "the rewards are exact, last_number"),
        (["tiny", "--task", "arithmetic", "evaluation.max_tokens=2000"], "the model has 1024"),
        (["RUN@4"], "has no step 4: its steps are 3"),
        (["RUN", "task.held_out=0"], "The task arithmetic has no held-out examples, which are what is asked. Give it"),
        (["RUN", "--out", "RUN/config.yaml"], "cannot be one (File exists). Name another one."),
        (["RUN", "--before", "smollm2-135m-instruct"], "with a model of the same shape"),
        (["tinny", "--task", "arithmetic"], "'tinny' is none of them"),
        (["tiny", "--task", "arithmetic", "task={use: gsm8k}"], "names the task, so task={use: gsm8k} cannot name one"),
        (["tiny", "--task", "arithmetic", "rewards=[exakt]"], "rewards[0].use: unknown name exakt, did you mean"),
        (["RUN", "model.name=tiny"], "is what is measured, so model.name cannot name another model."),
        (["RUN", "--task", "arithmetic", "evaluation.right=last_number", "rewards=[exact]"], "the rewards are exact."),
    ],
)
def test_a_mistake_is_one_sentence(run, argv, words, capsys):
    assert main(["eval", *(text.replace("RUN", str(run)) for text in argv)]) == 2
    message = capsys.readouterr().err
    assert words in message and message.startswith("error: ") and message.count("\n") == 1


@pytest.mark.parametrize(
    ("identity", "target", "words"),
    [
        ('{"name": "old"}', "RUN", "does not say which model it was trained from, as its model was made in Python"),
        ('{"name": "o', "RUN", "run.json cannot be read; put a copy of it there, or move the folder away."),
        ('{"name": "old"}', "FOLDER@3", "Only a run has steps, and"),
    ],
)
def test_a_run_directory_that_does_not_tell_its_model_is_one_sentence(run, identity, target, words, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (run / "config.yaml").unlink()
    (run / "run.json").write_text(identity)
    target = target.replace("RUN", str(run)).replace("FOLDER", str(tmp_path / "folder"))
    assert main(["eval", target, "--task", "arithmetic"]) == 2
    message = capsys.readouterr().err
    assert words in message and message.startswith("error: ") and message.count("\n") == 1


def test_a_run_that_has_saved_nothing_or_names_a_task_that_is_not_known_is_one_sentence(run, capsys):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("use: arithmetic", "use: arithmetik"))
    assert main(["eval", str(run)]) == 2
    assert "unknown name arithmetik, did you mean arithmetic?" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main(["eval", str(run)]) == 2
    message = capsys.readouterr().err
    assert "has no checkpoint, so it has no weights. Train it until it has saved one" in message
    assert message.startswith("error: ") and message.count("\n") == 1


@pytest.mark.parametrize("target", ["RUN", "org/not-here"])
def test_without_a_network_the_sentence_names_what_is_there(run, target, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("name: tiny", "name: org/not-here"))
    task = ["--task", "arithmetic"] if target != "RUN" else []
    assert main(["eval", target.replace("RUN", str(run)), *task]) == 2
    message = capsys.readouterr().err
    assert "The model org/not-here is not a directory here" in message and "Name a directory that holds" in message
    assert message.startswith("error: ") and message.count("\n") == 1


CONFIG = """
run: {name: short, root: ROOT}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 20, held_out: 8, largest: 9}
rewards: [last_number]
rollout: {responses: 4, max_tokens: 4}
objective: {use: grpo}
optimizer: {learning_rate: 1e-30}
mesh: {data: 1, fsdp: 2, tensor: 4}
evaluation: {responses: 4, temperature: 0.7}
train: {steps: 9, prompts: 4, evaluate_every: 1, save_every: 9, keep: 1, keep_best: eval/pass@4, patience: 2}
"""


def without_evaluation(row: dict) -> dict:
    """The row of metrics of step 2 as it is written when the run is told to stop in its evaluation."""
    return {name: value for name, value in row.items() if row["step"] != 2 or not name.startswith("eval/")}


def measured(row: dict) -> dict:
    return {name: value for name, value in row.items() if name == "step" or name.startswith("eval/")}


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_and_keeps_its_held_out_answers(tmp_path, capsys):
    config = tmp_path / "short.yaml"
    config.write_text(CONFIG.replace("ROOT", str(tmp_path)))
    assert main(["train", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "2 evaluations in a row were not better than eval/pass@4" in printed and "as train.patience says" in printed
    assert "pass@4" in printed
    found = gj.RunDirectory(tmp_path / "short")
    rows = found.metrics()
    assert [row["step"] for row in rows] == [0, 1, 2] and found.held_out_steps() == [0, 1, 2]
    assert {"eval/pass@1", "eval/pass@4", "eval/maj@4", "eval/length", "eval/truncated", "eval/unscored"} <= rows[
        2
    ].keys()
    answers = found.held_out(2)
    assert len(answers) == 32 and {"step", "rewards/last_number", "reward", "length", "truncated"} <= answers[0].keys()
    assert {"length", "truncated", "advantage"} <= found.answers(1)[0].keys()
    checkpoints = tmp_path / "short" / "checkpoints"
    assert steps_in(checkpoints) == [1, 2]  # the first of the best, and the newest

    (found.path / "metrics.jsonl").write_text("".join(json.dumps(without_evaluation(row)) + "\n" for row in rows))
    assert main(["train", str(config), "--resume"]) == 0  # it was told to stop in the evaluation that ends it
    assert "as train.patience says" in capsys.readouterr().out
    assert [measured(row) for row in found.metrics()] == [measured(row) for row in rows]
    assert found.held_out(2) == answers

    again = [str(config), "--resume", "evaluation.seed=3"]
    assert main(["train", *again]) == 0  # it stays ended
    assert len(found.metrics()) == 3
    assert main(["train", *again, "train.patience=3"]) == 0
    assert [row["step"] for row in found.metrics()] == [0, 1, 2, 3] and len(found.held_out(3)) == 32
    assert steps_in(checkpoints) == [1, 3]
    assert main(["eval", str(tmp_path / "short")]) == 0
    assert answers != found.held_out(2) or len(found.held_out(2)) == 32
