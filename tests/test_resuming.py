"""A resumed run is the run that was never stopped: nothing of it changes unsaid, and nobody else's run goes on."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo_jax import RunDirectory
from grpo_jax.cli import main
from grpo_jax.config import build, read, render
from grpo_jax.hosts.codes import COMPLETE, MISTAKE
from grpo_jax.redaction import HIDDEN
from grpo_jax.training import loop, opening
from grpo_jax.training.lock import LOCK, Lock
from grpo_jax.training.record import Record, Run
from grpo_jax.training.resuming import (
    FREE,
    Change,
    Fingerprint,
    changes,
    check_changes,
    check_start_over,
    fingerprint,
    read_fingerprint,
    write_fingerprint,
)
from grpo_jax.training.session import Settings, assemble

pytestmark = pytest.mark.faults
DOCS = Path(__file__).parent.parent / "docs"
MINE = """
import os

import judging

def own(example, response):
    return judging.rate(response)

def wandering(example, response):
    os.chdir("/")
    return float(len(response) % 2)

def keyed(example, response, api_key="", slope=1.0):
    return slope * len(api_key)
"""
JUDGING = """
def rate(response):
    return float(len(response) % 2)
"""
CONFIG = """
run: {name: t}
model: {name: tiny, remat: none}
task: {use: jsonl, path: data.jsonl}
rewards: [{use: "mine_of_resume:own"}]
rollout: {responses: 4, max_tokens: 6}
objective: {use: dr_grpo}
optimizer: {learning_rate: 1e-3, warmup_steps: 1}
mesh: {data: 1, fsdp: 2, tensor: 4}
train: {steps: 2, prompts: 4, evaluate_every: 0, save_every: 1, max_prompt_tokens: 96}
"""


def write_data(largest=32, first="0 + 1 ="):
    rows = [{"prompt": f"{n} + 1 =" if n else first, "answer": str(n + 1)} for n in range(largest)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def forget_modules():
    for name in ("mine_of_resume", "judging"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module that is changed twice in a second is read anew
    Path("mine_of_resume.py").write_text(MINE)
    Path("judging.py").write_text(JUDGING)
    Path("c.yaml").write_text(CONFIG)
    write_data()
    forget_modules()
    yield tmp_path
    forget_modules()


def fingerprint_of(*overrides, text=True) -> Fingerprint:
    config = read("c.yaml", list(overrides))
    parts = build(config)
    session = assemble(*(parts[name] for name in ("model", "task", "algorithm", "settings", "layout")))
    return fingerprint(session, render(config) if text else "")


def names(found) -> set[str]:
    return {change.name for change in found}


# What may change.

LEARNED = [
    ("train.seed=1", "train.seed"),
    ("optimizer.learning_rate=1.0", "optimizer.learning_rate"),
    ("optimizer.warmup_steps=2", "optimizer.warmup_steps"),
    ("train.prompts=8", "train.prompts"),
    ("rollout.responses=8", "rollout.responses"),
    ("rollout.max_tokens=7", "rollout.max_tokens"),
    ("rollout.temperature=0.9", "rollout.temperature"),
    ("objective.kl={use: KL, coefficient: 0.1, estimator: k3}", "objective.kl"),
    ("objective.use=grpo", "objective.use"),
    ("algorithm.minibatches=2", "algorithm.minibatches"),
    ("optimizer.moments=bfloat16", "optimizer.moments"),
    ("train.retire=0.5", "train.retire"),
    ("train.resample=2", "train.resample"),
    ("rewards[0].weight=2.0", "rewards[0].weight"),
    ("rewards[0].use=mine_of_resume:keyed", "rewards[0].use"),
]
ALLOWED = [
    ("train.steps=9", "train.steps"),
    ("train.save_every=7", "train.save_every"),
    ("train.keep=5", "train.keep"),
    ("train.keep_best=reward", "train.keep_best"),
    ("train.keep_every=5", "train.keep_every"),
    ("evaluation.responses=4", "evaluation.responses"),
    ("mesh.fsdp=4", "mesh.fsdp"),
    ("train.max_skipped=9", "train.max_skipped"),
    ("train.watchdog_minutes=9.0", "train.watchdog_minutes"),
    ("train.report_minutes=9.0", "train.report_minutes"),
    ("train.token_groups=3", "train.token_groups"),
    ("algorithm.reward_seconds=9.0", "algorithm.reward_seconds"),
    ("algorithm.responses_at_once=8", "algorithm.responses_at_once"),
    ("rollout.at_once=2", "rollout.at_once"),
    ("model.remat=full", "model.remat"),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Holds the fingerprint of the run without a change, which all tests of the table compare with."""
    return []


def before(kept) -> Fingerprint:
    if not kept:
        kept.append(fingerprint_of())
    return kept[0]


@pytest.mark.parametrize(("override", "name"), LEARNED, ids=[name for _, name in LEARNED])
@pytest.mark.slow
def test_a_change_of_what_is_learned_is_refused_by_its_name(folder, kept, override, name):
    found = changes(before(kept), fingerprint_of(override))
    assert name in names(found)
    with pytest.raises(ValueError, match=rf"(?s)\n  {re.escape(name)}: .* -> .*--allow-changes"):
        check_changes(folder, found, allow=False)
    check_changes(folder, found, allow=True)


@pytest.mark.parametrize(("override", "name"), ALLOWED, ids=[name for _, name in ALLOWED])
@pytest.mark.slow
def test_a_change_of_how_it_runs_is_taken_and_said(folder, kept, override, name, caplog):
    more = ["mesh.tensor=2"] if name == "mesh.fsdp" else []
    found = changes(before(kept), fingerprint_of(override, *more))
    assert name in names(found) and all(change.is_free for change in found)
    check_changes(folder, found, allow=False)
    assert f"changed: {name}: " in caplog.text


def test_nothing_has_changed_without_a_change(folder, kept):
    first = before(kept)
    forget_modules()
    assert changes(first, fingerprint_of()) == []
    write_fingerprint(folder, "t", first)
    assert changes(read_fingerprint(folder), fingerprint_of()) == []


def test_other_rows_under_the_same_path_are_refused_and_the_same_rows_under_another_are_not(folder, kept):
    first = before(kept)
    Path("data.jsonl").rename("moved.jsonl")
    found = changes(first, fingerprint_of("task.path=moved.jsonl"))
    assert names(found) == {"task.path"} and found[0].is_free
    write_data(first="1 + 1 =")
    (change,) = changes(first, fingerprint_of())
    assert change.name == "training data" and not change.is_free
    assert re.fullmatch(r"training data: 32 examples, sha256 \w{16} -> 32 examples, sha256 \w{16}", str(change))
    write_data(largest=40)
    assert "-> 40 examples" in str(changes(first, fingerprint_of())[0])


@pytest.mark.parametrize("file", ["mine_of_resume.py", "judging.py"])
def test_other_code_of_a_reward_of_the_same_name_is_refused(folder, kept, file):
    """Also in a module that it imports."""
    first = before(kept)
    Path(file).write_text(Path(file).read_text() + "\nEXTRA = 1\n")
    forget_modules()
    (change,) = changes(first, fingerprint_of())
    assert change.name == f"code of {Path(file).stem}" and not change.is_free


def test_an_override_that_is_the_default_is_no_change(folder, kept):
    assert changes(before(kept), fingerprint_of("rollout.temperature=1.0")) == []


@pytest.mark.slow
def test_a_run_from_python_is_compared_without_a_config(folder, kept):
    first = fingerprint_of(text=False)
    assert changes(first, fingerprint_of(text=False)) == []
    for override, name in [("train.seed=1", "train.seed"), ("rollout.max_tokens=7", "rollout.max_tokens")]:
        found = changes(first, fingerprint_of(override, text=False))
        assert names(found) == {name} and not found[0].is_free
    assert "objective" in " ".join(
        names(changes(first, fingerprint_of("objective.kl={use: KL, coefficient: 0.1, estimator: k3}", text=False)))
    )
    assert changes(first, fingerprint_of()) == []  # the same run, once with its config


def test_a_setting_that_an_earlier_version_did_not_have_is_no_change():
    earlier = Fingerprint({}, {"train.seed": "0"})
    later = Fingerprint({}, {"train.seed": "0", "train.new": "1"}, defaults=["train.new"])
    assert changes(earlier, later) == [] == changes(later, earlier)
    written = replace(later, defaults=[])
    assert changes(earlier, written) == [Change("train.new", "not there", "1")]


def test_no_secret_is_in_a_fingerprint(folder, monkeypatch):
    monkeypatch.setenv("JUDGE", "planted-in-environment")
    for key in ("planted-in-config", "env:JUDGE"):
        known = fingerprint_of("rewards[0].use=mine_of_resume:keyed", f"rewards[0].api_key={key}")
        write_fingerprint(folder, "t", known)
        text = (folder / "run.json").read_text()
        assert "planted" not in text and HIDDEN in text


def test_what_may_change_are_settings_that_exist(folder):
    judge = ("judge.use=endpoint", "judge.url=http://127.0.0.1:9/v1", "judge.model=large")
    known = fingerprint_of(*judge, "train.trackers=[tensorboard]")
    for free in set(FREE) - {"held-out data"}:
        assert any(name == free or (free[-1] == "." and name.startswith(free)) for name in known.settings), free


def test_the_docs_list_what_may_change():
    text = (DOCS / "training.md").read_text()
    (listed,) = re.findall(r"<!-- what may change -->\n(.*?)\n\n", text, re.DOTALL)
    assert set(re.findall(r"^- `?([^`:\n]+)`?:", listed, re.MULTILINE)) == set(FREE)


# Runs from end to end.


@pytest.mark.slow
def test_a_changed_run_is_refused_then_taken_and_both_configs_are_kept(folder, capsys):
    assert main(["train", "c.yaml", "train.steps=1"]) == COMPLETE
    run, capsys_before = folder / "runs" / "t", capsys.readouterr()
    assert "changed:" not in capsys_before.err
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = ["optimizer.learning_rate=2e-3", "train.steps=2", "--resume"]
    assert main(["train", "c.yaml", *changed]) == MISTAKE
    said = capsys.readouterr().err
    assert "optimizer.learning_rate: 0.001 -> 0.002" in said and "train.steps" not in said
    assert {path: path.read_bytes() for path in files} == files
    assert main(["train", "c.yaml", *changed, "--allow-changes"]) == COMPLETE
    said = "".join(capsys.readouterr())
    assert "changed: optimizer.learning_rate: 0.001 -> 0.002" in said and "changed: train.steps: 1 -> 2" in said
    assert "learning_rate: 0.001" in (run / "config.yaml").read_text()
    assert "learning_rate: 0.002" in (run / "config.2.yaml").read_text()
    assert RunDirectory(run).config() == (run / "config.2.yaml").read_text()
    assert main(["train", "c.yaml", "--resume", "--allow-changes", "train.steps=1"]) == MISTAKE
    assert "is at step 2 already, and train.steps is 1" in capsys.readouterr().err
    resume_strictly(run, capsys)
    resume_without_checkpoints(run, capsys)


def resume_strictly(run, capsys):
    """A flipped bit of the newest checkpoint; the older one is whole."""
    file = run / "checkpoints" / "2" / "default" / "_METADATA"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    resume = ["train", "c.yaml", "optimizer.learning_rate=2e-3", "--resume"]
    assert main([*resume, "--strict"]) == MISTAKE
    said = capsys.readouterr().err
    assert said.startswith("error: step 2 failed verification (file default/_METADATA has other contents, ")
    assert said.endswith("go on from step 1, the newest that can be verified.\n")
    assert main(resume) == COMPLETE
    said = "".join(capsys.readouterr())
    assert "warning: step 2 failed verification" in said and "using step 1" in said and "resuming at step 1" in said


def resume_without_checkpoints(run, capsys):
    """The metrics are what is left of the run, so they are not deleted for a new beginning."""
    (run / "checkpoints" / "1").rename(run / "was_1")
    (run / "checkpoints" / "2" / "manifest.json").unlink()  # as if its save had been interrupted
    metrics = (run / "metrics.jsonl").read_bytes()
    resume = ["train", "c.yaml", "optimizer.learning_rate=2e-3", "--resume"]
    for _ in range(2):
        assert main(resume) == MISTAKE
        assert "has the metrics of 2 steps, but no checkpoint" in capsys.readouterr().err
        assert (run / "metrics.jsonl").read_bytes() == metrics
    (run / "saved").unlink()  # as if its first save had been interrupted, and Orbax had cleaned up
    assert main(resume) == COMPLETE
    assert "".join(capsys.readouterr()).count("it begins again, and its 2 steps are replaced") == 1
    assert [row["step"] for row in RunDirectory(run).metrics()] == [1, 2] and (run / "saved").exists()


def test_options_of_a_resume_are_refused_without_one_from_python(folder):
    with pytest.raises(ValueError, match="add resume=True"):
        loop.train(**build(read("c.yaml")), strict=True)


@pytest.mark.parametrize("option", ["--strict", "--allow-changes"])
def test_options_of_a_resume_are_refused_without_one(folder, capsys, option):
    assert main(["train", "c.yaml", option]) == MISTAKE
    assert "say how a run is resumed: add --resume" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_disk_without_room_for_the_checkpoints_is_an_error_before_the_first_step(folder, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["train", "c.yaml", "train.keep_every=1"]) == MISTAKE
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: 3 checkpoints of 0\.\d+ GB may be on disk at once, but .* has 1e-06 GB free\..*\n", said
    )
    assert not (folder / "runs").exists()


def test_the_best_step_is_the_first_with_the_largest_value_so_far(tmp_path):
    record = Record(tmp_path)
    assert record.best("eval/reward") is None
    for step, value in enumerate([9.0, 0.1, 0.5, None, 0.5, float("nan"), 0.2]):
        record.metrics(step, {} if value is None else {"eval/reward": value})
    record.close()
    assert record.best("eval/reward") == 2  # step 0 is before the first step, so it is not saved
    assert record.best(None) is None is record.best("unknown")


def test_a_best_step_by_a_metric_that_is_never_measured_is_refused():
    with pytest.raises(ValueError, match=r"train\.keep_best is eval/reward, .* train\.evaluate_every is 0"):
        Settings(steps=1, evaluate_every=0, keep_best="eval/reward")


def test_a_best_step_by_a_metric_that_no_held_out_prompt_has_is_refused():
    for known in (None, "eval/reward", "eval/rewards/close/mean"):
        opening._check_best(known, ("close",))
    with pytest.raises(ValueError, match=r"eval/rewrd, which .*: measured are eval/reward, eval/rewards/close/mean"):
        opening._check_best("eval/rewrd", ("close",))
    with pytest.raises(ValueError, match="this run has no held-out prompts"):
        opening._check_best("eval/reward", ())


def test_a_best_step_by_a_name_that_no_step_measures_is_refused_after_the_first(tmp_path):
    record = Record(tmp_path)
    record.metrics(1, {"reward": float("nan")})
    loop._check_best("reward", record)
    loop._check_best("eval/reward", record)  # held-out prompts are answered later
    with pytest.raises(ValueError, match=r"train\.keep_best is rewrd, which no step measures.*metrics\.jsonl"):
        loop._check_best("rewrd", record)
    record.close()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"nam": "t"}', '{"name": "t", "facts": {}}'])
def test_a_broken_run_json_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}/run\.json .*put a copy of it there"):
        read_fingerprint(tmp_path)


def test_a_run_without_a_checkpoint_begins_again_only_if_it_can_have_lost_none(tmp_path):
    check_start_over(tmp_path, last=0, lost=True, allow=False)
    check_start_over(tmp_path, last=60, lost=False, allow=False)
    check_start_over(tmp_path, last=80, lost=True, allow=True)
    with pytest.raises(ValueError, match=r"metrics of 80 steps, but no checkpoint: .*--allow-changes"):
        check_start_over(tmp_path, last=80, lost=True, allow=False)


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("", False), ("n", False)])
def test_a_person_at_the_terminal_is_asked_before_metrics_are_deleted(tmp_path, monkeypatch, answer, goes_on):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    try:
        check_start_over(tmp_path, last=80, lost=True, allow=False)
    except ValueError:
        assert not goes_on
    else:
        assert goes_on


# Names of runs.


def test_a_run_called_num_2_is_not_the_second_run_of_num(tmp_path):
    num, other = Run("num", str(tmp_path)), Run("num-2", str(tmp_path))
    first, foreign = num.create(), other.create()
    assert (first.name, foreign.name) == ("num", "num-2")
    assert num.latest() == first and other.latest() == foreign
    second = num.create()
    assert second.name == "num-3" and num.latest() == second
    assert other.create().name == "num-2-2"


def test_the_only_run_of_a_name_that_is_gone_is_not_another_run(tmp_path):
    for name in ("exp-1", "exp-2", "exp-10"):
        Run(name, str(tmp_path)).create()
    with pytest.raises(FileNotFoundError, match=r"There is no run exp in .* Leave out --resume"):
        Run("exp", str(tmp_path)).latest()


def test_a_directory_of_an_earlier_version_is_known_by_its_config(tmp_path):
    for directory, name in {"num": "num", "num-2": "num", "num-3": "num-3"}.items():
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "config.yaml").write_text(f'run:\n  name: {name}  # default\n  root: "runs"\n')
    (tmp_path / "num-4").mkdir()  # says nothing
    assert Run("num", str(tmp_path)).latest().name == "num-2"
    assert Run("num-3", str(tmp_path)).latest().name == "num-3"
    assert Run("num", str(tmp_path)).create().name == "num-5"


def test_the_folder_of_runs_does_not_move_with_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Run("t", "runs").create()
    monkeypatch.chdir("/")
    assert path == tmp_path / "runs" / "t" and path.is_dir()
    record = Record(path)
    record.metrics(1, {"reward": 1.0})
    record.close()
    assert (tmp_path / "runs" / "t" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_reward_that_changes_the_current_folder_does_not_move_the_run(folder):
    assert main(["train", "c.yaml", "rewards[0].use=mine_of_resume:wandering", "train.steps=1"]) == COMPLETE
    assert Path.cwd() == Path("/")
    assert {path.name for path in folder.iterdir()} >= {"runs", "c.yaml"} and not Path("/runs").exists()
    assert (folder / "runs" / "t" / "checkpoints" / "1" / "manifest.json").exists()
    assert len(RunDirectory(folder / "runs" / "t").answers(1)) == 16


@pytest.mark.parametrize("name", ["../x", "..", ".", "/x", "", "a/b", "a b", "a\nb", "-x", "a\\b"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(name):
    with pytest.raises(ValueError, match="A run is named by letters"):
        Run(name)


@pytest.mark.parametrize("inner", ["", "checkpoints", "metrics.jsonl", "config.yaml"])
def test_a_run_that_is_a_link_to_another_place_is_not_resumed(tmp_path, inner):
    run = Run("t", str(tmp_path / "runs"))
    path, elsewhere = run.create(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if not inner:
        (path / "run.json").unlink()
        path.rmdir()
    (path / inner if inner else path).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"is a symbolic link to .*elsewhere"):
        run.latest()


# One process at a time.


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path):
    code = "import sys, time; from pathlib import Path; from grpo_jax.training.lock import Lock\n"
    code += "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        words = rf"is in use by process {other.pid} on {re.escape(socket.gethostname())}\. Wait until it has ended"
        with pytest.raises(ValueError, match=words):
            Lock(tmp_path)
        other.kill()
        other.wait()
    Lock(tmp_path).close()  # a process that was killed holds nothing


def test_the_same_process_cannot_open_a_run_twice(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(ValueError, match=rf"process {os.getpid()} on"):
        Lock(tmp_path)
    lock.close()
    Lock(tmp_path).close()


def test_a_forked_child_does_not_hold_the_run_after_its_parent(tmp_path):
    code = """if True:
        import os, sys, time
        from pathlib import Path
        from grpo_jax.training.lock import Lock
        lock = Lock(Path(sys.argv[1]))
        child = os.fork()
        if child == 0:
            os.close(1)
            time.sleep(60)
        print(child)
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True)
    child = int(done.stdout)
    try:
        Lock(tmp_path).close()
    finally:
        os.kill(child, 9)


def test_a_run_that_is_in_use_is_not_resumed(folder, capsys):
    path = Run("t").create()
    lock = Lock(path)
    assert main(["train", "c.yaml", "--resume"]) == MISTAKE
    assert f"{path} is in use by process {os.getpid()} on" in capsys.readouterr().err
    lock.close()
    assert (path / LOCK).exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    Lock(tmp_path).close()
    assert "has no locks: take care that no other process writes there" in caplog.text


# Files of a run directory that were torn.

WHOLE = '{"step": 1, "reward": 0.5}\n'


@pytest.mark.parametrize(
    "end", ['{"step": 2, "rew', "\0" * 64, "\n", '{"reward": 1.0}\n', "{", "[]", "7", "\x1b\n", '{"step": 2, "rew\n']
)
def test_a_last_line_that_was_cut_off_is_left_out_with_a_warning(tmp_path, end, caplog):
    (tmp_path / "metrics.jsonl").write_text(WHOLE + end)
    record = Record(tmp_path, 1)
    record.close()
    assert record.history == [{"step": 1, "reward": 0.5}]
    assert f"{tmp_path}/metrics.jsonl:2 is left out" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text() == WHOLE


@pytest.mark.parametrize(
    "line", ['{"step": 2, "rew', '{"reward": 1.0}', '{"step": "2"}', '{"step": null}', "[]", "\x01"]
)
def test_any_other_bad_line_is_an_error_with_its_place(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(WHOLE + line + "\n" + WHOLE)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}/metrics\.jsonl:2 is not a row of this file"):
        Record(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_blank_lines_between_rows_are_left_out(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text(WHOLE + "\n" + "\0" * 9 + "\n" + '{"step": 2}\n')
    assert [row["step"] for row in RunDirectory(tmp_path).metrics()] == [1, 2]
    assert "metrics.jsonl:2 is left out" in caplog.text and "metrics.jsonl:3 is left out" in caplog.text


def test_a_torn_row_of_retired_prompts_is_left_out_too(tmp_path, caplog):
    (tmp_path / "retired.jsonl").write_text('{"step": 1, "examples": [3]}\n{"step": 2, "exa')
    assert RunDirectory(tmp_path).retired() == [{"step": 1, "examples": [3]}]
    assert "retired.jsonl:2 is left out" in caplog.text


def test_the_evaluation_of_a_step_whose_row_was_torn_is_not_put_into_another_row(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 3, "rew')
    record = Record(tmp_path, 3)
    assert record.lacks(2, "eval/reward") and not record.lacks(3, "eval/reward")
    record.metrics(3, {"eval/reward": 1.0})
    record.close()
    assert not record.lacks(3, "eval/reward") and record.lacks(3, "eval/other")


def strictly(text):
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_answers_are_strict_json_whatever_is_in_them(tmp_path):
    record = Record(tmp_path)
    rows = [
        {"completion": "a", "rewards/x": float("nan"), "more": [float("inf"), {"deep": -float("inf")}]},
        {"completion": "\ud800 half", "advantage": 1.0},
        {"completion": "é 日本\u2028\0", "advantage": [0.5, float("nan")]},
    ]
    record.completions(1, rows)
    record.close()
    text = (tmp_path / "completions" / "step_000001.jsonl").read_text(encoding="utf-8")
    found = [strictly(line) for line in text.split("\n")[:-1]]
    assert found[0] == {"completion": "a", "rewards/x": None, "more": [None, {"deep": None}]}
    assert found[1]["completion"] == "\ud800 half"
    assert found[2]["completion"] == rows[2]["completion"] and "é 日本" in text
    assert RunDirectory(tmp_path).answers(1) == found


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_comes_to_the_run_that_was_not_killed(tmp_path):
    """`python tests/kill_runs.py` does the same with 20 kills of 30 steps."""
    command = [sys.executable, str(Path(__file__).parent / "kill_runs.py"), "--kills=3", "--steps=8"]
    cache = Path(__file__).parent.parent / ".pytest_cache" / "xla" / "killed"
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same weights, metrics and answers" in done.stdout
