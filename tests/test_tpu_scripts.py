"""The Cloud TPU scripts, against a gcloud that records what it is asked and replays every state.

Its workers are folders: what arrives there through ssh is really run, by a shell.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.config import read
from grpo_jax.hosts import ending
from grpo_jax.training.record import Run

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
FAKES = Path(__file__).parent / "fakes"
FLAGS = json.loads((Path(__file__).parent / "data" / "gcloud_tpu_flags.json").read_text())
NAMES = ["babysit", "create", "delete", "logs", "run", "setup", "status", "stop"]
WHERE = ("v5e", "--zone", "us-west4-a")
TYPE = ("--type", "v5litepod-16")
TRAINING = ("--bucket", "gs://my-runs", "configs/quickstart.yaml")
# queued-resources state, of the API's schema (revision 20261001)
STATES = "CREATING ACCEPTED PROVISIONING FAILED DELETING ACTIVE SUSPENDING SUSPENDED WAITING_FOR_RESOURCES".split()


@dataclass
class Cloud:
    """A copy of the scripts in a repository of its own, and a slice that follows a script."""

    repository: Path
    folder: Path

    def follow(self, **script) -> None:
        """What gcloud will answer."""
        default = {"workers": 2, "requests": ["ACTIVE"], "nodes": ["READY"]}
        (self.folder / "script.json").write_text(json.dumps(default | script))

    def training(self, number: int, *ends: str) -> None:
        """How the training of this launch ends: on all workers, or on each of them."""
        path = self.folder / "trainings" / str(number)
        path.with_suffix(".new").write_text("".join(f"{end}\n" for end in ends))
        path.with_suffix(".new").rename(path)

    def call(self, script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        environment = os.environ | {
            "PATH": f"{FAKES}:{os.environ['PATH']}",
            "WORKER_PATH": f"{FAKES / 'worker'}:{os.environ['PATH']}",
            "REAL_PYTHON": sys.executable,
            "SLICE": str(self.folder),
            "TPU_POLL_SECONDS": "0",
            "TPU_PATIENCE": "12",
        }
        program = self.repository / "tpu_scripts" / f"{script}.sh"
        options = {"input": "", "timeout": 120} | options
        return subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True, check=False, **options
        )

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every gcloud that was run."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def deeds(self) -> list[str]:
        """The calls that change something, in words."""
        said = [" ".join(call[3:5]) if call[4] != "ssh" else deed(call) for call in self.calls]
        return [item for item in said if "describe" not in item and item != "status"]

    def trained(self, worker: int) -> list[list[str]]:
        """The arguments of every training that a worker has started."""
        path = self.folder / f"trained-{worker}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def deed(call: list[str]) -> str:
    line = call[call.index("--command") + 1]
    return next(
        word for word in ("incoming", "devices", "launch", "undo", "bucket", "stop", "status", "log") if word in line
    )


def unnumbered(calls: Iterable[list[str]]) -> list[list[str]]:
    """Calls without the numbers that tell launches from each other."""
    return [[re.sub(r"launch \d{10,}", "launch", word) for word in call] for call in calls]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("repository")
    shutil.copytree(SCRIPTS, path / "tpu_scripts")
    shutil.copytree(ROOT / "configs", path / "configs")
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, path)
    author = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "A commit"]):
        subprocess.run(["git", *command], cwd=path, check=True)
    return path


@pytest.fixture
def cloud(repository, tmp_path):
    (tmp_path / "trainings").mkdir()
    cloud = Cloud(repository, tmp_path)
    cloud.follow()
    yield cloud
    for pid in tmp_path.glob("worker-*/grpo-jax/run.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    for call in cloud.calls:
        check_flags(call)


def check_flags(call: list[str]) -> None:
    """Every flag exists for its command."""
    known = FLAGS["commands"][" ".join(call[:5])]["flags"] + FLAGS["wide_flags"]
    given = [item.partition("=")[0] for item in call[5:] if item.startswith("--")]
    assert given and set(given) <= set(known), call


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.sh")), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_a_script_is_short_and_begins_with_what_it_is(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    if path.parent.name != "lib":
        assert lines[1].startswith("# Usage") and "set -euo pipefail" in lines and os.access(path, os.X_OK)


def test_shellcheck_finds_nothing():
    programs = [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("worker/*.sh")]
    places = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=places)
    assert shellcheck, 'pip install -e ".[dev]" brings shellcheck'
    result = subprocess.run(
        [shellcheck, "--check-sourced", *programs], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_help_is_the_usage_and_runs_nothing(cloud, name):
    result = cloud.call(name, "--help")
    assert result.returncode == 0 and result.stdout.startswith(f"Usage: tpu_scripts/{name}.sh NAME")
    assert cloud.calls == []


def test_every_program_is_in_the_table():
    assert sorted(path.stem for path in SCRIPTS.glob("*.sh")) == NAMES
    page = (SCRIPTS / "README.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)\.sh` ", page, re.MULTILINE)) == NAMES


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("create", [*WHERE, *TYPE, "--spot", "--valid-until", "6h", "--project", "my-project"]),
        ("setup", [*WHERE, *TYPE]),
        ("run", [*WHERE, *TRAINING, 'run.name=it\'s a "test"', "--resume"]),
        ("status", [*WHERE]),
        ("logs", [*WHERE, "--worker", "2"]),
        ("stop", [*WHERE]),
        ("delete", [*WHERE, "--yes", "--async"]),
    ],
)
def test_a_dry_run_prints_what_a_run_runs(cloud, script, arguments):
    result = cloud.call(script, "--dry-run", *arguments)
    printed = [shlex.split(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0 and printed and cloud.calls == []
    if script != "setup":
        cloud.call("setup", *WHERE, *TYPE)
        (cloud.folder / "calls.jsonl").unlink()
    cloud.call(script, *arguments)
    assert unnumbered(words for words in printed if words[0] == "gcloud") == unnumbered(cloud.calls)
    assert script == "setup" or all(words[0] == "gcloud" for words in printed)


def test_creating_says_what_is_paid_for_and_how_to_end_it(cloud):
    result = cloud.call("create", *WHERE, "--type", "v5e-16", "--spot")
    (call,) = cloud.calls
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(call)
    assert "16 chip(s) on 4 host(s), as spot" in result.stderr
    assert "tpu_scripts/delete.sh v5e --zone us-west4-a" in result.stderr
    on_demand = cloud.call("create", *WHERE, *TYPE)
    assert "on demand" in on_demand.stderr and "--spot" not in cloud.calls[1]


def test_a_dry_run_of_creating_does_not_say_that_it_has_asked(cloud):
    assert "v5e would ask for 16 chip(s)" in cloud.call("create", *WHERE, *TYPE, "--dry-run").stderr
    assert "v5e asks for 16 chip(s)" in cloud.call("create", *WHERE, *TYPE).stderr


def test_whatever_leaves_a_slice_that_is_paid_for_says_how_to_delete_it(cloud):
    project = ("--project", "my-project")
    delete = "tpu_scripts/delete.sh v5e --zone us-west4-a --project my-project\n"
    cloud.training(1, "0")
    for script, more in [
        ("create", TYPE),
        ("setup", TYPE),
        ("run", TRAINING),
        ("stop", ()),
        ("babysit", (*TYPE, *TRAINING)),
    ]:
        result = cloud.call(script, *WHERE, *project, *more)
        assert result.returncode == 0 and delete in result.stderr, (script, result.stderr)
        if script == "run":  # or what follows would stop a training that has not ended
            wait_for(lambda: len(list(cloud.folder.glob("worker-*/grpo-jax/run.exit"))) == 2)
    cloud.follow(failures={"queued-resources create": ["ERROR: ALREADY_EXISTS: Resource already exists"]})
    assert delete in cloud.call("create", *WHERE, *project, *TYPE).stderr


# Google Cloud's pages of each version: chips and VMs of a slice. A v5p or v4 name counts two cores a chip.
@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [
        *[("v5litepod-1", 1, 1), ("v5litepod-4", 4, 1), ("v5litepod-8", 8, 1), ("v5litepod-16", 16, 4)],
        *[("v5e-256", 256, 64), ("v6e-1", 1, 1), ("v6e-8", 8, 1), ("v6e-16", 16, 4), ("v6e-64", 64, 16)],
        *[("v5p-8", 4, 1), ("v5p-16", 8, 2), ("v5p-64", 32, 8), ("v5p-128", 64, 16), ("v4-8", 4, 1), ("v4-32", 16, 4)],
    ],
)
def test_a_type_is_so_many_chips_and_hosts(cloud, name, chips, hosts):
    result = cloud.call("create", *WHERE, "--type", name, "--dry-run")
    assert f" {chips} chip(s) on {hosts} host(s)" in result.stderr
    assert find_slice(name).chips == chips


REFUSED = [
    ("create", ["a; rm -rf ~", *WHERE[1:], *TYPE], "got 'a; rm -rf ~'. Try a-rm-rf."),
    ("create", ["$(touch x)", *WHERE[1:], *TYPE], "Try touch-x."),
    ("create", ["My_Slice", *WHERE[1:], *TYPE], "Try my-slice."),
    ("create", ["v5e\n--project=other", *WHERE[1:], *TYPE], "Try v5e-project-other."),
    ("create", [*WHERE[1:], *TYPE], "The slice's name is missing"),
    ("create", ["v5e", *TYPE], "The zone is missing: add --zone, such as --zone us-west4-a."),
    ("create", ["v5e", "--zone", "us-west4", *TYPE], "got us-west4. Try us-west4-a."),
    ("create", ["v5e", "--zone", "us-west4-a; id", *TYPE], "got 'us-west4-a; id'. Try us-west4-a."),
    ("create", [*WHERE], "add --type, such as --type v5litepod-8"),
    ("create", [*WHERE, "--type", "v5e-12"], "There is no v5litepod-12. The nearest is v5litepod-8."),
    ("create", [*WHERE, "--type", "v6e-100"], "The nearest is v6e-128."),
    ("create", [*WHERE, "--type", "v5p-4"], "The nearest is v5p-8."),
    ("create", [*WHERE, "--type", "v3-8"], "Try v4-8."),
    ("create", [*WHERE, "--type", "v6e"], "Try v6e-8."),
    ("create", [*WHERE, "--type", "v5e-a[$(id)]"], "Try v5litepod-8."),
    ("create", [*WHERE, "--type", "tpu7x-8"], "docs/tpu7x.md"),
    ("create", [*WHERE, *TYPE, "--valid-until", "tomorrow"], "such as 90m or 6h; got tomorrow"),
    ("create", [*WHERE, *TYPE, "--project", "$(id)"], "gcloud projects list"),
    ("create", [*WHERE, *TYPE, "--spott"], "create.sh has no option --spott"),
    ("create", [*WHERE, *TYPE, "more"], "does not know what to do with more"),
    ("create", [*WHERE, "--type"], "--type needs a value"),
    ("run", [*WHERE, *TRAINING[:2], "--worker=0", TRAINING[2]], "leave out --worker, it is always all"),
    ("run", [*WHERE, *TRAINING, "--worker=0"], "--worker=0 goes before the config"),
    ("run", [*WHERE, *TRAINING, "--dry-run"], "--dry-run goes before the config"),
    ("run", [*WHERE, *TRAINING[:2], "configs/quick.yaml"], "There is no config configs/quick.yaml. There are configs/"),
    ("run", [*WHERE, *TRAINING[:2]], "The config is missing: add one of configs/"),
    ("run", [*WHERE, TRAINING[2]], "add --bucket gs://NAME, or run.root=DIR"),
    ("run", [*WHERE, *TRAINING, "run.root=/nfs"], "leave out one"),
    ("run", [*WHERE, "--bucket", "my-runs", TRAINING[2]], "--bucket is gs://NAME"),
    ("run", [*WHERE, "--bucket", "gs://a/b;id", TRAINING[2]], "--bucket is gs://NAME"),
    ("logs", [*WHERE, "--worker", "all; id"], "such as 0; got 'all; id'"),
    ("babysit", [*WHERE, "--type", "v5e-9", *TRAINING], "The nearest is v5litepod-8."),
    ("babysit", [*WHERE, *TYPE, "--restarts", "many", *TRAINING], "such as 10; got many"),
    ("babysit", [*WHERE, *TYPE, "--restarts", "08", *TRAINING], "such as 10; got 08"),
    ("babysit", [*WHERE, *TYPE, TRAINING[2]], "add --bucket gs://NAME, or run.root=DIR"),
    ("babysit", [*WHERE, *TYPE, "--dry-run", TRAINING[2]], "add --bucket gs://NAME, or run.root=DIR"),
]


@pytest.mark.parametrize(("script", "arguments", "sentence"), REFUSED, ids=[item[2][:30] for item in REFUSED])
def test_what_could_not_work_is_refused_in_a_sentence_before_gcloud_is_asked(cloud, script, arguments, sentence):
    result = cloud.call(script, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert cloud.calls == [] and result.stdout == ""


QUOTA = "ERROR: (gcloud.compute.tpus.queued-resources.create) Quota limit 'TPUV5s' has been exceeded. Limit: 0 in zone"
FAILURES = [
    (QUOTA, "queued-resources list --zone us-west4-a"),
    ("ERROR: RESOURCE_EXHAUSTED", "The quota is too small"),
    (
        "ERROR: INVALID_ARGUMENT: the accelerator v5litepod-16 was not found in zone us-west4-a",
        "accelerator-types list",
    ),
    ("ERROR: PERMISSION_DENIED: Permission denied on 'locations/us-west4-z' (or it may not exist)", "locations list"),
    ("ERROR: PERMISSION_DENIED: the caller does not have permission", "TPU Admin"),
    ("ERROR: ALREADY_EXISTS: Resource already exists", "tpu_scripts/delete.sh v5e --zone us-west4-a"),
    ("ERROR: You do not currently have an active account selected.", "gcloud auth login"),
    ("ERROR: Failed to find attribute [project].", "--project ID"),
    ("ERROR: a meteorite", "gcloud failed."),
]


@pytest.mark.parametrize(("said", "sentence"), FAILURES, ids=[item[1] for item in FAILURES])
def test_a_failure_of_gcloud_is_a_sentence_with_a_way_out_and_then_its_own_words(cloud, said, sentence):
    cloud.follow(failures={"queued-resources create": [said]})
    result = cloud.call("create", *WHERE, *TYPE)
    first, second, *rest = result.stderr.splitlines()
    assert result.returncode == 1 and first.startswith("error: ") and sentence in first
    assert second == said and rest == []  # nothing is said to be paid for


def test_setting_up_copies_the_last_commit_and_asks_for_all_chips_on_all_workers(cloud):
    cloud.follow(workers=4)
    result = cloud.call("setup", *WHERE, *TYPE)
    assert result.returncode == 0, result.stderr
    assert cloud.deeds == ["tpu-vm scp", "incoming", "devices"]
    assert sorted(result.stdout.splitlines()[-4:]) == [f"worker {n}: 16 of 16 chips" for n in range(4)]
    assert len(list(cloud.folder.glob("worker-*/grpo-jax/venv/bin/grpo-jax"))) == 4
    assert cloud.call("setup", *WHERE, *TYPE).returncode == 0  # again


def test_chips_that_somebody_holds_are_named_with_the_commands_that_free_them(cloud):
    result = cloud.call("setup", *WHERE, "--type", "v5litepod-32")
    assert result.returncode == 1
    assert "--worker=all --command='sudo rm -f /tmp/libtpu_lockfile'" in result.stderr
    assert "do not see all 32 chips" in result.stderr


def test_overrides_arrive_on_every_worker_as_they_were_written(cloud):
    cloud.follow(workers=4)
    cloud.call("setup", *WHERE, *TYPE)
    cloud.training(1, "0")
    odd = ["run.name=two  words", 'task.system=it\'s "$HOME" `id` \\', "x=; rm -rf ~; #", "y=a\nb\n", "", "*", "é!&|"]
    result = cloud.call("run", *WHERE, *TRAINING, *odd)
    assert result.returncode == 0, result.stderr
    wait_for(lambda: all(cloud.trained(worker) for worker in range(4)))
    for worker in range(4):
        assert cloud.trained(worker) == [["train", "configs/quickstart.yaml", *odd, "run.root=../bucket/runs"]]
    mounted = {path.read_text() for path in cloud.folder.glob("worker-*/grpo-jax/bucket/mounted")}
    assert len(mounted) == 1 and mounted.pop().endswith(" my-runs bucket\n")


def test_a_training_outlives_the_session_that_started_it(cloud):
    cloud.follow(workers=4)
    started(cloud)
    pids = [int(path.read_text()) for path in cloud.folder.glob("worker-*/grpo-jax/run.pid")]
    assert len(pids) == 4
    assert all(os.getsid(pid) == pid for pid in pids)


def test_a_launch_that_gcloud_repeats_starts_nothing_twice_and_another_one_is_refused(cloud):
    started(cloud)
    again = cloud.call("run", *WHERE, *TRAINING)
    assert again.returncode == 0 and again.stdout.count("is running it") == 2
    assert [len(cloud.trained(worker)) for worker in range(2)] == [1] * 2
    assert "is training, and what it runs would change" in cloud.call("setup", *WHERE, *TYPE).stderr
    other = cloud.call("run", *WHERE, *TRAINING, "train.steps=3")
    assert other.returncode == 1 and "is running another training" in other.stderr
    assert cloud.call("status", *WHERE).stdout.count(" running ") == 2  # the first goes on


def test_a_launch_that_fails_on_one_worker_is_undone_on_the_others(cloud):
    cloud.follow(workers=4)
    cloud.call("setup", *WHERE, *TYPE)
    job = cloud.folder / "worker-3" / "grpo-jax" / "source" / "tpu_scripts" / "worker" / "job.sh"
    job.write_text("exit 1")
    result = cloud.call("run", *WHERE, *TRAINING)
    assert result.returncode == 1
    assert "worker 3 failed" in result.stderr and "so it is stopped where it did" in result.stderr
    assert cloud.deeds[-2:] == ["launch", "undo"]
    assert result.stdout.count("is told to stop") == 3


def test_a_second_launch_that_fails_on_one_worker_leaves_the_first_alone(cloud):
    started(cloud)
    (cloud.folder / "worker-1" / "grpo-jax" / "source" / "tpu_scripts" / "worker" / "job.sh").write_text("exit 1")
    result = cloud.call("run", *WHERE, *TRAINING)
    assert result.returncode == 1 and "is running it" in result.stdout
    assert cloud.deeds[-1] == "undo" and "is told to stop" not in result.stdout


def test_another_bucket_is_not_mounted_over_the_first(cloud):
    started(cloud)
    result = cloud.call("run", *WHERE, "--bucket", "gs://other-runs", TRAINING[2])
    assert result.returncode == 1 and "has another bucket mounted" in result.stderr


def test_status_and_logs_show_every_worker(cloud):
    cloud.follow(workers=4)
    cloud.call("setup", *WHERE, *TYPE)
    assert cloud.call("status", *WHERE).stdout.count(" ready") == 4
    cloud.training(1, "0", "1 ValueError: no", "75", "0")
    cloud.call("run", *WHERE, *TRAINING)
    wait_for(lambda: len(list(cloud.folder.glob("worker-*/grpo-jax/run.exit"))) == 4)
    shown = cloud.call("status", *WHERE).stdout
    assert shown.startswith("request: ACTIVE\nslice: READY\n")
    assert "t1v-n-fake-w-1 exited 1 ValueError: no\n" in shown and "t1v-n-fake-w-2 exited 75 " in shown
    assert cloud.call("logs", *WHERE, "--worker", "1").stdout.endswith("t1v-n-fake-w-1: ValueError: no\n")
    cloud.follow(requests=["FAILED||no more capacity"])
    assert cloud.call("status", *WHERE).stdout == "request: FAILED, no more capacity\n"
    cloud.follow(requests=["ABSENT"])
    assert cloud.call("status", *WHERE).stdout == "request: ABSENT\n"


def test_a_worker_that_lost_its_training_says_so(cloud):
    started(cloud)
    for path in cloud.folder.glob("worker-*/grpo-jax/run.pid"):
        os.killpg(int(path.read_text()), signal.SIGKILL)
    wait_for(lambda: cloud.call("status", *WHERE).stdout.count(" lost ") == 2)


def test_deleting_asks_first(cloud):
    refused = cloud.call("delete", *WHERE, input="\n")
    assert refused.returncode == 1 and "Nothing is deleted" in refused.stderr and cloud.calls == []
    assert cloud.call("delete", *WHERE, input="y\n").returncode == 0
    (call,) = cloud.calls
    assert call[3:6] == ["queued-resources", "delete", "v5e"] and "--force" in call


def test_the_whole_life_of_a_slice_that_is_taken_away_once(cloud):
    waiting = ["ABSENT", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    preempted = ["SUSPENDING|SERVICE|", "SUSPENDED|SERVICE|", "ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    cloud.follow(workers=4, requests=[*waiting, "ACTIVE", "ACTIVE", "ACTIVE", *preempted, "ACTIVE"])
    cloud.training(2, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, "--spot", *TRAINING, "train.steps=20")
    assert result.returncode == 0, result.stderr
    begin = ["queued-resources create", "tpu-vm scp", "incoming", "devices", "bucket", "launch"]
    assert cloud.deeds == [*begin, "queued-resources delete", *begin]
    arguments = ["train", "configs/quickstart.yaml", "train.steps=20"]
    for worker in range(4):
        assert cloud.trained(worker) == [
            [*arguments, "run.root=../bucket/runs"],
            [*arguments, "--resume", "run.root=../bucket/runs"],
        ]
    created = [call for call in cloud.calls if call[4] == "create"]
    assert created[0] == created[1] and "--spot" in created[0]
    assert "restart 1 of 10" in result.stderr
    assert result.stderr.endswith("v5e may still be paid for: tpu_scripts/delete.sh v5e --zone us-west4-a\n")
    assert cloud.call("delete", *WHERE, "--yes").returncode == 0


STEPS = {
    "CREATING": ([], 3),
    "ACCEPTED": ([], 3),
    "PROVISIONING": ([], 3),
    "WAITING_FOR_RESOURCES": ([], 3),
    "ACTIVE": (["tpu-vm scp", "incoming", "devices"], 3),
    "SUSPENDING": ([], 3),
    "SUSPENDED": (["queued-resources delete"], 3),
    "DELETING": ([], 3),
    "FAILED": ([], 3),
}


@pytest.mark.parametrize("terms", [(), ("--spot",)], ids=["on demand", "spot"])
@pytest.mark.parametrize("state", STATES)
def test_every_state_of_the_api_leads_somewhere(cloud, state, terms):
    """After it comes a failure that needs a person, so that what was done is what the state led to."""
    cloud.follow(requests=[state, state, "FAILED||a bad request"] if state != "ACTIVE" else [state, "FAILED||bad"])
    result = cloud.call("babysit", *WHERE, *TYPE, *terms, *TRAINING)
    deeds, code = STEPS[state]
    assert (list(dict.fromkeys(cloud.deeds)), result.returncode) == (deeds, code)
    assert f"v5e: {'run bare' if state == 'ACTIVE' else state}\n" in result.stderr


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ({"requests": ["FAILED||Quota limit exceeded"]}, "it failed: Quota limit exceeded"),
        ({"requests": ["SUSPENDED|USER|"]}, "somebody has suspended it"),
        ({"requests": ["PROVISIONING"]}, "it stays PROVISIONING"),
        ({"requests": ["DELETING"]}, "it stays DELETING"),
        ({"requests": ["MELTING"]}, 'no script here knows the state "MELTING"'),
        ({"requests": ["ABSENT", "WAITING_FOR_RESOURCES", "ABSENT"]}, "somebody has deleted it"),
        ({"requests": ["ACTIVE", "DELETING", "ABSENT"]}, "somebody has deleted it"),
        ({"requests": ["DELETING", "ABSENT"]}, "somebody has deleted it"),
        ({"nodes": ["STOPPED"]}, "somebody has stopped it"),
        ({"nodes": ["REPAIRING"]}, "the slice REPAIRING"),
        ({"nodes": ["SINGING"]}, 'no script here knows the state "slice SINGING"'),
        ({"requests": ["ABSENT"], "failures": {"queued-resources create": [QUOTA]}}, "the request was refused"),
        ({"failures": {"queued-resources describe": ["ERROR: no network"] * 20}}, "it does not answer"),
        ({"failures": {"tpu-vm ssh": ["ERROR: ssh: connection refused"] * 20}}, "it does not answer"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_a_person_has_to_decide_ends_with_3_and_a_sentence(cloud, script, sentence):
    cloud.follow(**script)
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 3, result.stderr
    assert sentence in result.stderr and "This needs a person." in result.stderr
    asked = [call for call in cloud.calls if call[4] == "create"]
    assert len(asked) == (script.get("requests", [""])[0] == "ABSENT")  # what has been deleted is not rented anew


@pytest.mark.parametrize("gone", ["SUSPENDED|SERVICE|", "FAILED||There is no more capacity in the zone", "node"])
def test_a_slice_that_is_always_taken_away_is_not_created_for_ever(cloud, gone):
    script = {"nodes": ["PREEMPTED"]} if gone == "node" else {"requests": [gone]}
    cloud.follow(**script)
    result = cloud.call("babysit", *WHERE, *TYPE, "--restarts", "3", *TRAINING)
    assert result.returncode == 3 and "all 3 restarts are used up" in result.stderr
    assert cloud.deeds == ["queued-resources delete"] * 3


def test_a_short_silence_of_the_network_is_waited_out(cloud):
    cloud.follow(failures={"queued-resources describe": ["ERROR: no network"] * 2})
    cloud.training(1, "0")
    assert cloud.call("babysit", *WHERE, *TYPE, *TRAINING).returncode == 0


@pytest.mark.parametrize(
    ("script", "deeds"),
    [
        ({"failures": {"queued-resources describe": ["ERROR: no network"]}, "requests": ["ABSENT", "MELTING"]}, []),
        ({"requests": ["SUSPENDED|SERVICE|", "DELETING", "ABSENT", "MELTING"]}, ["queued-resources delete"]),
    ],
    ids=["a silence of the network", "a deletion of its own"],
)
def test_what_nobody_else_has_deleted_is_created(cloud, script, deeds):
    cloud.follow(**script)
    cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert cloud.deeds == [*deeds, "queued-resources create"]


def test_a_slice_that_was_taken_away_before_the_babysitter_came_is_resumed(cloud):
    cloud.follow(requests=["SUSPENDED|SERVICE|", "ABSENT", "ACTIVE"])
    cloud.training(1, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 0, result.stderr
    assert [row[2:-1] for row in cloud.trained(0)] == [["--resume"]]


@pytest.mark.parametrize(("ends", "launches"), [(["0"], [True]), (["2 error: There is no run", "0"], [True, False])])
def test_a_babysitter_that_is_told_to_resume_starts_where_there_is_nothing_to_resume(cloud, ends, launches):
    for number, end in enumerate(ends, start=1):
        cloud.training(number, end)
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING, "--resume", "train.steps=3")
    assert result.returncode == 0, result.stderr
    assert [row[2:-1] for row in cloud.trained(0)] == [
        ["train.steps=3", "--resume"] if resumes else ["train.steps=3"] for resumes in launches
    ]


NO_RUN = "2 error: There is no run quickstart in ../bucket/runs to resume."


@pytest.mark.parametrize(
    ("ends", "code", "launches"),
    [
        (["0"], 0, [[]]),
        (["1 ValueError: no"], 1, [[]]),
        (["2 error: command line: train.stepz: unknown key"], 2, [[]]),
        (["75"], 0, [[], ["--resume"]]),
        (["1", "139"], 0, [[], ["--resume"]]),  # one was killed, and the others ended of it
        (["137", "76 error: the other hosts have not started within 300 seconds."], 0, [[], ["--resume"]]),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) and value and isinstance(value[0], str) else "",
)
def test_the_training_decides_how_babysitting_ends(cloud, ends, code, launches):
    cloud.training(1, *ends)
    cloud.training(2, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == code, result.stderr
    assert [row[2:-1] for row in cloud.trained(0)] == launches


@pytest.mark.parametrize(
    ("resumed", "last", "code"),
    [
        ([NO_RUN], "0", 0),
        ([NO_RUN, rf"{NO_RUN}\nW1125 a word of the coordination service\n"], "0", 0),
        ([rf"{NO_RUN}\nW1125 a word of the coordination service\nand another"], "0", 0),
        ([NO_RUN], "2 grpo-jax train: error: unrecognized arguments: --odd", 2),  # nothing was said of a run this time
    ],
    ids=["said last", "said before a word on one worker", "said before other words", "said only the time before"],
)
def test_a_training_that_was_cut_off_before_there_was_a_run_is_started_anew(cloud, resumed, last, code):
    cloud.training(1, "75")
    cloud.training(2, *resumed)
    cloud.training(3, last)
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == code, result.stderr
    assert [row[2:-1] for row in cloud.trained(0)] == [[], ["--resume"], []]


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        (["a exited 137", "b exited 76 error: the other hosts have not started"], "cut"),
        (["a lost", "b exited 76 error: the other hosts have not started"], "cut"),
        (["a ready", "b exited 76 error: the other hosts have not started"], "cut"),
        ([f"a exited {ending.RESUMABLE}", f"b exited {ending.RESUMABLE} told to stop"], "cut"),
        ([f"a exited {ending.LOST}", f"b exited {ending.LOST} error: the other hosts"], "cut"),
        (["a exited 75", "b exited 2 error: There is no run"], "fresh"),  # the first host has looked for it, for all
        (["a exited 1", "b exited 76 error: host 0 (a) has ended"], "cut"),
        (["a exited 1", "b exited 2 error: an unknown key"], "ended 2"),
        (["a exited 0", "b exited 0 There is no run of numbers"], "ended 0"),
        (["a bare", "b exited 137"], "bare"),
    ],
)
def test_what_the_workers_say_has_one_meaning(lines, verdict):
    program = ["awk", "-f", SCRIPTS / "lib" / "verdict.awk"]
    for said in (lines, lines[::-1]):
        result = subprocess.run(program, input="\n".join(said), capture_output=True, text=True, check=True)
        assert result.stdout == f"{verdict}\n"


def test_workers_that_wait_for_one_that_has_ended_are_stopped_and_resumed(cloud):
    cloud.training(1, "1", "on")
    cloud.training(2, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 0, result.stderr
    assert "stop" in cloud.deeds and "run split" in result.stderr


def test_a_babysitter_that_is_started_again_finds_the_training(cloud):
    started(cloud)
    cloud.training(1, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 0, result.stderr
    assert [len(cloud.trained(worker)) for worker in range(2)] == [1] * 2


def test_a_rehearsed_life_is_create_setup_and_run(cloud):
    result = cloud.call("babysit", *WHERE, *TYPE, "--dry-run", *TRAINING)
    parts = [
        cloud.call("create", *WHERE, *TYPE, "--dry-run"),
        cloud.call("setup", *WHERE, *TYPE, "--dry-run"),
        cloud.call("run", *WHERE, "--dry-run", *TRAINING),
    ]
    assert result.returncode == 0 and cloud.calls == []
    assert unnumbered([[result.stdout]]) == unnumbered([["".join(part.stdout for part in parts)]])


def test_every_state_of_the_api_is_in_the_babysitter_s_table():
    page = (SCRIPTS / "README.md").read_text()
    program = (SCRIPTS / "babysit.sh").read_text()
    assert all(f"`{state}`" in page for state in STATES)
    assert all(re.search(rf"\b{state}\b", program) for state in STATES if state != "ACTIVE")  # which leads to the rest


def jobset() -> dict:
    (jobset,) = yaml.safe_load_all((SCRIPTS / "gke" / "jobset.yaml").read_text())
    return jobset


def container(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_the_jobset_asks_for_all_hosts_of_its_slice_at_once():
    whole = jobset()
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = whole["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    chips = container(whole)["resources"]["limits"]["google.com/tpu"]
    slice = find_slice("v5e-16")
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == slice.grid
    assert replicated["replicas"] * job["completions"] * chips == slice.chips
    assert job["parallelism"] == job["completions"] == slice.hosts and job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy needs
    assert {rule["action"] for rule in job["podFailurePolicy"]["rules"]} == {"FailJob"}
    codes = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes == [[ending.RESUMABLE]]
    mounted = {mount["name"] for mount in container(whole)["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    text = (SCRIPTS / "gke" / "jobset.yaml").read_text()
    pool = f"--machine-type=ct5lp-hightpu-{chips}t --tpu-topology={slice.grid} --num-nodes={slice.hosts}"
    assert f"v5e slice of {slice.chips} chips, {slice.hosts} hosts" in text and pool in text


@dataclass
class Pod:
    """The jobset's command with a bucket of its own, and a grpo-jax that leaves its arguments and follows a script."""

    folder: Path

    def start(self, *script: str) -> subprocess.Popen:
        program = self.folder / "grpo-jax"
        program.write_text("\n".join(["#!/bin/bash", f'printf "%s\\n" "$@" >{self.folder}/started', *script, ""]))
        program.chmod(0o755)
        command = [word.replace("/bucket", str(self.folder / "bucket")) for word in container(jobset())["command"]]
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.Popen(command, env={"PATH": path}, start_new_session=True)

    @property
    def arguments(self) -> list[str]:
        path = self.folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def settings(self) -> list[str]:
        return [word for word in self.arguments if "=" in word]


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_pod_resumes_the_run_that_is_in_the_bucket_or_starts_one_and_ends_with_its_code(tmp_path, code):
    pod = Pod(tmp_path)
    assert pod.start(f"echo >>{tmp_path}/launches", f"exit {code}").wait(30) == code
    assert "--resume" not in pod.arguments
    written = read(ROOT / "configs" / "gsm8k_qwen2.5_1.5b.yaml", pod.settings)
    run: Run = written.run.build()
    run.create()
    assert pod.start(f"echo >>{tmp_path}/launches", f"exit {code}").wait(30) == code
    assert "--resume" in pod.arguments
    assert (tmp_path / "launches").read_text() == "\n" * 2  # one for each start, whatever it ended with


def test_a_pod_that_is_told_to_end_passes_that_on_to_the_training(tmp_path):
    pod = Pod(tmp_path)
    process = pod.start("trap 'exit 75' TERM", f"touch {tmp_path}/listening", "while sleep 0.02; do :; done")
    try:
        wait_for((tmp_path / "listening").exists)
        process.terminate()  # this one process, as a kubelet does
        assert process.wait(30) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_jobset_trains_a_config_that_is_there_on_all_of_its_chips(tmp_path):
    pod = Pod(tmp_path)
    pod.start("exit 0").wait(30)
    assert pod.arguments[0] == "train"
    mesh = read(ROOT / pod.arguments[1], pod.settings).mesh.build()
    assert (mesh.data, mesh.fsdp) == (1, find_slice("v5e-16").chips)


def test_the_image_has_what_is_installed_and_trained_and_nothing_else():
    lines = (SCRIPTS / "gke" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    described = [project["project"]["readme"], *project["project"]["license-files"]]
    assert sorted(copied) == sorted(["pyproject.toml", *described, *packages, "configs"])


def started(cloud: Cloud) -> None:
    """A slice that is set up and training."""
    assert cloud.call("setup", *WHERE, *TYPE).returncode == 0
    assert cloud.call("run", *WHERE, *TRAINING).returncode == 0
    workers = json.loads((cloud.folder / "script.json").read_text())["workers"]
    wait_for(lambda: all(cloud.trained(worker) for worker in range(workers)))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
