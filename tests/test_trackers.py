"""Trackers get the metrics of each step once, and whatever they do costs the run nothing; traces name the phases."""

import functools
import gzip
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
import tensorboardX

from grpo_jax import RunDirectory
from grpo_jax.cli import main
from grpo_jax.config import ConfigError, read, render
from grpo_jax.training import Settings, opening, profiling
from grpo_jax.training.record import Record
from grpo_jax.training.resuming import Change, Fingerprint
from grpo_jax.training.trackers import feed, libraries, tensorboard, trackio, wandb
from grpo_jax.training.trackers.feed import WAITING, close_all, feeds_of
from grpo_jax.training.trackers.tracker import check_trackers

CONFIG = """
run: {name: t}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 32, held_out: 8, largest: 9}
rollout: {responses: 4, max_tokens: 6}
objective: {use: dr_grpo}
optimizer: {learning_rate: 1e-3, warmup_steps: 1}
mesh: {data: 1, fsdp: 2, tensor: 4}
train: {steps: 3, prompts: 4, evaluate_every: 2, save_every: 1, max_prompt_tokens: 96, report_minutes: 0}
"""
MINE = """
def send(step, metrics, where="here"):
    with open("sent.txt", "a") as file:
        print(step, where, *sorted(set(metrics) & {"reward", "eval/reward"}), file=file)

async def waits(step, metrics):
    pass

def of_step(step):
    pass
"""
# A library with the functions of wandb that are called. Each call is a line of calls.jsonl beside it.
WANDB = """
import json, os, pathlib, time

def note(**what):
    with (pathlib.Path(__file__).parent / "calls.jsonl").open("a") as file:
        print(json.dumps(what), file=file)

class Settings:
    def __init__(self, **settings):
        self.settings = settings

class Run:
    url = "https://there/run"

    def define_metric(self, name, step_metric=None):
        pass

    def log(self, metrics):
        print("the library prints")
        note(log=metrics, key=os.environ.get("WANDB_API_KEY"))
        if metrics["step"] == 2 and (pathlib.Path(__file__).parent / "DO").exists():
            what = (pathlib.Path(__file__).parent / "DO").read_text()
            (pathlib.Path(__file__).parent / "DO").unlink()
            if what == "die":
                os._exit(9)
            time.sleep({"hang": 600, "slow": 2}[what]) if what != "fail" else 1 / 0

    def finish(self, exit_code):
        note(finish=exit_code)

def init(settings, **options):
    note(init=options, settings=settings.settings)
    return Run()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "c.yaml").write_text(CONFIG)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def library(folder, monkeypatch):
    """A library of the name `wandb`, which may be installed, too; what it was called with."""
    (folder / "wandb.py").write_text(WANDB)
    monkeypatch.setenv("WANDB_API_KEY", "planted-key-of-wandb")

    def calls(name):
        rows = map(json.loads, (folder / "calls.jsonl").read_text().splitlines())
        return [row[name] for row in rows if name in row]

    return calls


def trackers_of(folder, text):
    return read(folder / "c.yaml", [f"train.trackers={text}"]).train.build().trackers


# What a config may name.


def test_a_config_names_trackers_with_their_settings_and_functions_beside_it(folder):
    found = trackers_of(
        folder, '[tensorboard, {use: wandb, project: p, tags: [a]}, trackio, {use: "mine:send", where: x}]'
    )
    assert found[:3] == (tensorboard(), wandb(project="p", tags=("a",)), trackio())
    assert isinstance(found[3], functools.partial) and found[3].keywords == {"where": "x"}
    assert trackers_of(folder, "[]") == ()
    assert read(folder / "c.yaml").train.build().trackers == (tensorboard(),)


def test_the_text_of_a_config_with_trackers_reads_as_the_same_config(folder):
    once = read(folder / "c.yaml", ['train.trackers=[tensorboard, {use: wandb, project: p}, "mine:send"]'])
    (folder / "again.yaml").write_text(render(once))
    assert read(folder / "again.yaml").train.build() == once.train.build()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[wandbb]", "unknown name wandbb, did you mean wandb?"),
        ("wandb", "expected a list of choices"),
        ("[{use: wandb, projekt: p}]", "projekt: unknown key, did you mean"),
        ('["mine:nothing"]', "mine has no nothing"),
        ('["nowhere:send"]', "there is no module nowhere"),
        ('["os:remove"]', "part of Python's standard library"),
    ],
)
def test_what_is_no_tracker_is_refused_with_its_place(folder, text, words):
    with pytest.raises(ConfigError, match=rf"command line: train\.trackers.*{words}"):
        trackers_of(folder, text)


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        ("mine:waits", r"train\.trackers\[1\]: mine:waits is async"),
        ("mine:of_step", r"train\.trackers\[1\]: mine:of_step is called with \(step, metrics\)"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_the_run(folder, tracker, words):
    with pytest.raises(ValueError, match=words):
        check_trackers(trackers_of(folder, f'[tensorboard, "{tracker}"]'))
    with pytest.raises(ValueError, match=r"is the class WeightsAndBiases\. Call it"):
        check_trackers((wandb,))
    with pytest.raises(ValueError, match="got an object of type int"):
        check_trackers((3,))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    folder, name, monkeypatch, capsys
):
    monkeypatch.setattr(libraries, "is_installed", lambda library: False)
    assert main(["train", "c.yaml", f"train.trackers=[{name}]"]) == 2
    assert f'train.trackers[0] is {name}, which is not installed. Install it: pip install "grpo-jax[{name}]"' in (
        capsys.readouterr().err
    )
    assert not (folder / "runs").exists()


def test_a_folder_of_the_name_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "emptyfolder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="not installed"):
        libraries.check_installed("emptyfolder", "here")


def test_trackio_uploads_only_what_the_config_names(monkeypatch):
    monkeypatch.setattr(libraries, "check_installed", lambda library, place: None)
    check_trackers((trackio(),))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    with pytest.raises(ValueError, match="TRACKIO_SPACE_ID makes trackio upload, and no `space` is named"):
        check_trackers((trackio(),))
    check_trackers((trackio(space="me/space"),))


def test_a_secret_of_a_function_reaches_it_and_no_file(folder, monkeypatch):
    (folder / "mine.py").write_text("def send(step, metrics, api_key=''):\n    pass\n")
    monkeypatch.setenv("MY_KEY", "planted-key")
    config = read(folder / "c.yaml", ['train.trackers=[{use: "mine:send", api_key: "env:MY_KEY"}]'])
    assert config.train.build().trackers[0].keywords == {"api_key": "planted-key"}
    assert "env:MY_KEY" in render(config) and "planted-key" not in render(config)
    literal = read(folder / "c.yaml", ['train.trackers=[{use: "mine:send", api_key: planted-text}]'])
    assert "planted-text" not in render(literal)


def test_trackers_and_traces_may_change_on_resume():
    for name in ("train.trackers", "train.trackers[0]", "train.trackers[1].project", "train.profile_steps"):
        assert Change(name, "a", "b").is_free
    assert not Change("train.trackersome", "a", "b").is_free


# What a tracker gets.


def given(path, trackers, rows, step=0):
    """Hands rows of (step, metrics) to trackers, and waits for them."""
    feeds = feeds_of(trackers, path, step, {"train.steps": 3})
    for row in rows:
        for each in feeds:
            each.write(*row)
    close_all(feeds)


def test_a_function_gets_each_step_in_order_and_a_copy_of_its_own(tmp_path):
    seen = []

    def first(step, metrics):
        metrics.clear()

    def second(step, metrics):
        seen.append((step, metrics))

    given(tmp_path, (first, second), [(step, {"reward": step / 2}) for step in range(5)])
    assert seen == [(step, {"reward": step / 2}) for step in range(5)]


def test_a_resumed_run_hands_over_no_step_twice_but_what_amends_one(tmp_path):
    seen = []

    def mine(step, metrics):
        seen.append(step)

    given(tmp_path, (mine,), [(1, {}), (2, {}), (3, {})])
    given(tmp_path, (mine,), [(2, {"eval/reward": 1.0}, True), (2, {}), (3, {}), (4, {})], step=2)
    assert seen == [1, 2, 3, 2, 4]
    feed.forget(tmp_path)
    given(tmp_path, (mine,), [(1, {})])
    assert seen == [1, 2, 3, 2, 4, 1]


def test_two_functions_of_one_name_count_their_steps_apart(tmp_path):
    seen = []

    def mine(step, metrics, where):
        seen.append((step, where))

    given(tmp_path, [functools.partial(mine, where=where) for where in "ab"], [(1, {}), (2, {})])
    assert sorted(seen) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_tensorboard_takes_steps_again_and_leaves_out_what_is_not_finite(tmp_path, monkeypatch):
    seen = []

    class Writer(tensorboardX.SummaryWriter):
        def __init__(self, folder, purge_step):
            seen.append(("from", purge_step))
            super().__init__(folder, purge_step=purge_step)

        def add_scalar(self, name, value, step):
            seen.append((step, name, value))

    monkeypatch.setattr(tensorboardX, "SummaryWriter", Writer)
    given(tmp_path, (tensorboard(),), [(1, {"a": 1.0, "b": float("nan")}), (2, {"a": 2.0})])
    given(tmp_path, (tensorboard(),), [(2, {"a": 2.0})], step=1)
    assert seen == [("from", 1), (1, "a", 1.0), (2, "a", 2.0), ("from", 2), (2, "a", 2.0)]
    assert not (tmp_path / "trackers").exists()


def test_only_the_first_of_several_hosts_hands_anything_over(tmp_path):
    for writes in (False, True):
        record = Record(tmp_path, writes=writes)
        opening._track(record, 0, Settings(steps=3), Fingerprint({}, {"train.steps": "3"}))
        assert len(record.feeds) == writes
        record.close()


# What a tracker does costs the run nothing.


@pytest.mark.faults
def test_a_tracker_that_hangs_loses_its_oldest_steps_and_delays_nothing(tmp_path, monkeypatch, capsys):
    goes_on = threading.Event()
    seen = []

    def mine(step, metrics):
        goes_on.wait()
        seen.append(step)

    monkeypatch.setattr(feed, "CLOSING_SECONDS", 0.2)
    begun = time.monotonic()
    (fed,) = feeds_of((mine,), tmp_path, 0, {})
    fed.write(0, {})
    while not fed.in_hand:
        time.sleep(0.01)
    for step in range(1, WAITING + 6):
        fed.write(step, {})
    close_all([fed])
    assert time.monotonic() - begun < 5
    said = capsys.readouterr().err
    assert said.count("warning: tracker") == 1 and "100 steps wait for it, so the oldest are dropped" in said
    assert f"{WAITING + 6} of {WAITING + 6} step(s) did not reach it; metrics.jsonl has them" in said
    goes_on.set()
    fed.thread.join()
    assert seen == [0, *range(6, WAITING + 6)]


@pytest.mark.faults
@pytest.mark.parametrize("error", [OSError("no route"), SystemExit(3)])
def test_a_tracker_that_fails_is_one_warning_and_is_asked_again(tmp_path, error, capsys):
    seen = []

    def mine(step, metrics):
        if step in (1, 2):
            raise error
        seen.append(step)

    given(tmp_path, (mine,), [(step, {}) for step in range(5)])
    said = capsys.readouterr().err
    assert seen == [0, 3, 4]
    assert said.count("warning: tracker") == 1 and f"{type(error).__name__}: {error}" in said
    assert "2 of 5 step(s) did not reach it" in said


@pytest.mark.faults
def test_a_tracker_that_cannot_be_opened_is_tried_again_and_gets_what_waited(tmp_path, monkeypatch, capsys):
    seen, tries = [], []

    class Mine:
        def open(self, run):
            tries.append(run.settings)
            if len(tries) < 3:
                raise ConnectionError("no network")
            return lambda step, metrics: seen.append(step)

    monkeypatch.setattr(feed, "AGAIN_SECONDS", 0.05)
    (fed,) = feeds_of((Mine(),), tmp_path, 0, {"train.steps": 3})
    for step in range(3):
        fed.write(step, {})
    while len(seen) < 3:
        time.sleep(0.01)
    close_all([fed])
    assert seen == [0, 1, 2] and tries == [{"train.steps": 3}] * 3
    assert capsys.readouterr().err.count("no network") == 1


@pytest.mark.faults
def test_a_full_disk_is_a_warning_of_the_tracker(tmp_path, monkeypatch, capsys):
    def full(mark, step):
        raise OSError("No space left on device")

    monkeypatch.setattr(feed.Mark, "write", full)
    monkeypatch.setattr(feed, "AGAIN_SECONDS", 0.01)
    given(tmp_path, (lambda step, metrics: None,), [(1, {})])
    assert "No space left on device" in capsys.readouterr().err


# Libraries, each in a process of its own.


def test_a_library_goes_on_with_the_same_run(tmp_path, library, capsys):
    mine = wandb(project="p", entity="e", mode="offline")
    given(tmp_path, (mine,), [(1, {"reward": 0.5, "kl": float("nan")}), (2, {"reward": 1.0})])
    given(tmp_path, (mine,), [(2, {"reward": 1.0}), (2, {"eval/reward": 0.25}, True), (3, {"reward": 0.0})], step=1)
    first, second = library("init")
    assert first == second and re.fullmatch(r"[0-9a-f]{8}", first["id"])
    assert first["config"] == {"train.steps": 3} and first["resume"] == "allow" and first["dir"] == str(tmp_path)
    assert (first["project"], first["entity"], first["mode"]) == ("p", "e", "offline")
    expected = [(1, {"reward": 0.5}), (2, {"reward": 1.0}), (2, {"eval/reward": 0.25}), (3, {"reward": 0.0})]
    assert library("log") == [metrics | {"step": step} for step, metrics in expected]
    assert library("finish") == [0, 0]
    assert library("settings")[0] == {"console": "off", "disable_code": True, "disable_git": True}
    assert "tracker wandb e/p: https://there/run" in capsys.readouterr().err


def test_a_key_is_the_librarys_and_what_it_prints_stays_in_its_file(tmp_path, library, capfd):
    given(tmp_path, (wandb(),), [(1, {"reward": 0.5})])
    assert library("key") == ["planted-key-of-wandb"]
    assert (tmp_path / "trackers" / "wandb_grpo-jax.log").read_text() == "the library prints\n"
    assert "the library prints" not in "".join(capfd.readouterr())
    ours = [path.read_text() for path in (tmp_path / "trackers").iterdir()]
    assert not any("planted-key" in text for text in ours)


@pytest.mark.parametrize("failed", [False, True])
def test_a_library_is_told_whether_the_run_failed(tmp_path, library, failed):
    (fed,) = feeds_of((wandb(),), tmp_path, 0, {})
    fed.write(1, {})
    close_all([fed], failed)
    assert library("finish") == [int(failed)]


@pytest.mark.faults
@pytest.mark.parametrize("failed", [False, True])
def test_a_library_that_is_busy_for_longer_than_the_run_still_learns_how_it_ended(
    tmp_path, library, failed, monkeypatch, capsys
):
    (tmp_path / "DO").write_text("slow")
    monkeypatch.setattr(feed, "CLOSING_SECONDS", 0.1)
    (fed,) = feeds_of((wandb(),), tmp_path, 0, {})
    fed.write(2, {})
    while (tmp_path / "DO").exists():
        time.sleep(0.01)
    close_all([fed], failed)
    assert "1 of 1 step(s) did not reach it" in capsys.readouterr().err
    assert not (tmp_path / "calls.jsonl").read_text().count("finish")
    fed.child.process.stdin.close()  # as the end of this process does
    fed.thread.join(20)
    assert library("finish") == [int(failed)]


@pytest.mark.faults
@pytest.mark.parametrize(("what", "reached"), [("fail", [1, 2, 3]), ("die", [1, 2, 3])])
def test_a_library_that_fails_or_dies_goes_on_with_the_next_step(tmp_path, library, what, reached, capsys):
    (tmp_path / "DO").write_text(what)
    given(tmp_path, (wandb(),), [(step, {}) for step in (1, 2, 3)])
    assert [row["step"] for row in library("log")] == reached
    assert len({row["id"] for row in library("init")}) == 1 and len(library("init")) == 1 + (what == "die")
    said = capsys.readouterr().err
    assert said.count("warning: tracker wandb grpo-jax") == 1 and "1 of 3 step(s) did not reach it" in said
    assert ("ZeroDivisionError" if what == "fail" else "its process has ended") in said


def own_processes(word):
    """The processes that this one has started and whose command has a word in it."""
    files = Path("/proc/self/task").glob("*/children")
    found = [int(process) for file in files for process in file.read_text().split()]
    return [process for process in found if word.encode() in Path(f"/proc/{process}/cmdline").read_bytes()]


@pytest.mark.faults
def test_a_library_that_hangs_delays_the_end_by_some_seconds_at_most(tmp_path, library, monkeypatch, capsys):
    (tmp_path / "DO").write_text("hang")
    monkeypatch.setattr(feed, "CLOSING_SECONDS", 0.2)
    (fed,) = feeds_of((wandb(),), tmp_path, 0, {})
    for step in (1, 2, 3):
        fed.write(step, {})
    while (tmp_path / "DO").exists() or not (tmp_path / "calls.jsonl").exists():
        time.sleep(0.05)
    begun = time.monotonic()
    close_all([fed])
    assert time.monotonic() - begun < 3
    assert "2 of 3 step(s) did not reach it" in capsys.readouterr().err
    for process in own_processes("trackers.serving"):  # nothing else ends what hangs
        assert os.getpgid(process) == process  # so that Ctrl-C in the terminal does not reach it
        os.kill(process, signal.SIGKILL)
    fed.thread.join(10)


@pytest.mark.skipif(not libraries.is_installed("wandb"), reason="wandb is an extra")
def test_wandb_itself_keeps_a_run_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(feed, "CLOSING_SECONDS", 60)
    for steps in ((1, 2), (2, 3)):
        given(
            tmp_path, (wandb(mode="offline"),), [(step, {"reward": float(step)}) for step in steps], step=steps[0] - 1
        )
    kept = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2 and len({path.name for path in kept}) == 1  # two starts of one run
    assert not any(b"a" * 40 in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.skipif(not libraries.is_installed("trackio"), reason="trackio is an extra")
def test_trackio_itself_keeps_each_step_once(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(feed, "CLOSING_SECONDS", 60)
    for steps in ((1, 2), (2, 3)):
        given(tmp_path, (trackio(project="q"),), [(step, {"reward": 1.0}) for step in steps], step=steps[0] - 1)
    with sqlite3.connect(tmp_path / "kept" / "q.db") as database:
        rows = database.execute("select run_name, step from metrics order by step").fetchall()
    database.close()
    assert [step for _, step in rows] == [1, 2, 3] and len({name for name, _ in rows}) == 1


# A training.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training with three trackers and a trace of its second step, which lost a checkpoint and was resumed."""
    folder, patch = tmp_path_factory.mktemp("trackers"), pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    for name, text in {"mine.py": MINE, "wandb.py": WANDB, "c.yaml": CONFIG}.items():
        (folder / name).write_text(text)
    trackers = 'train.trackers=[tensorboard, {use: "mine:send", where: there}, wandb]'
    assert main(["train", "c.yaml", trackers, "train.profile_steps=[2, 2]"]) == 0
    for path in sorted((folder / "runs" / "t" / "checkpoints" / "3").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "runs" / "t" / "checkpoints" / "3").rmdir()
    assert main(["train", "c.yaml", trackers, "train.steps=4", "--resume"]) == 0
    yield folder
    patch.undo()
    sys.modules.pop("mine", None)


@pytest.mark.slow
def test_a_resumed_training_has_every_step_once_in_each_tracker(trained):
    assert (trained / "sent.txt").read_text().splitlines() == [
        "0 there eval/reward",
        "1 there reward",
        "2 there eval/reward reward",
        "3 there eval/reward reward",
        "4 there eval/reward reward",
    ]
    rows = [json.loads(line) for line in (trained / "calls.jsonl").read_text().splitlines()]
    logged = [row["log"] for row in rows if "log" in row]
    assert [row["step"] for row in logged] == [0, 1, 2, 3, 4]
    first, second = (row["init"] for row in rows if "init" in row)
    assert first["id"] == second["id"] and first["name"] == "t" and first["config"]["train.steps"] == 3
    run = RunDirectory(trained / "runs" / "t")
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3, 4] and len(list((run.path / "events").iterdir())) == 2


@pytest.mark.slow
def test_a_trace_of_a_step_names_its_phases(trained):
    (file,) = (trained / "runs" / "t" / "profile").glob("plugins/profile/*/perfetto_trace.json.gz")
    assert list(file.parent.glob("*.xplane.pb"))  # for XProf
    with gzip.open(file) as opened:
        events = json.load(opened)["traceEvents"]
    named = [
        event for event in events if event.get("name") in ("step", "sampling", "scoring", "learning", "evaluating")
    ]
    assert {event["name"] for event in named} == {"step", "sampling", "scoring", "learning", "evaluating"}
    (step,) = (event for event in named if event["name"] == "step")
    assert step["args"]["step_num"] == "2"
    assert all(step["ts"] <= event["ts"] and event["ts"] + event["dur"] <= step["ts"] + step["dur"] for event in named)


@pytest.mark.parametrize("steps", [[0, 2], [3, 2], [2, 9]])
def test_a_trace_of_steps_that_there_are_not_is_refused(steps):
    with pytest.raises(ValueError, match=r"train\.profile_steps names the first and the last step to trace"):
        Settings(steps=4, profile_steps=tuple(steps))


def test_no_step_is_traced_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda *_, **__: pytest.fail("traced"))
    for steps in (None, (3, 4)):
        profile = profiling.Profile(tmp_path, steps, print)
        with profile.step(2):
            jnp.ones(2).sum()
        profile.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_a_trace_that_cannot_be_made_is_one_warning(tmp_path, monkeypatch):
    def busy(*_, **__):
        raise RuntimeError("Profile has already been started.")

    said = []
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", busy)
    profile = profiling.Profile(tmp_path, (1, 3), said.append)
    for step in (1, 2, 3):
        with profile.step(step):
            pass
    profile.close()
    assert len(said) == 1 and "already been started" in said[0]


def test_each_of_several_hosts_has_a_trace_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling.store, "host_count", lambda: 2)
    monkeypatch.setattr(profiling.store, "host_index", lambda: 1)
    assert profiling.Profile(tmp_path, (1, 1), print).folder == tmp_path / "profile" / "host_1"
