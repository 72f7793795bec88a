"""The Cloud TPU scripts with a fake gcloud, which records its arguments and replays states.

The fake workers are folders. A shell really runs there what the scripts send through ssh.
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
from grpo_jax.hosts import codes, ending
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
    """A git repository with a copy of the scripts, and the folder of the fake slice."""

    repository: Path
    folder: Path

    def answer_with(self, **script) -> None:
        """Sets what gcloud answers (fakes/gcloud.py)."""
        default = {"workers": 2, "requests": ["ACTIVE"], "nodes": ["READY"]}
        (self.folder / "script.json").write_text(json.dumps(default | script))

    def end_training(self, number: int, *ends: str) -> None:
        """Sets how the training job of launch `number` ends: one line for all workers, or one for each."""
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
            "TPU_MAX_POLLS": "12",
        }
        program = self.repository / "tpu_scripts" / f"{script}.sh"
        options = {"input": "", "timeout": 120} | options
        return subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True, check=False, **options
        )

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every gcloud call."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def actions(self) -> list[str]:
        """A short name for every gcloud call that changes something."""
        names = [" ".join(call[3:5]) if call[4] != "ssh" else worker_action(call) for call in self.calls]
        return [name for name in names if "describe" not in name and name != "status"]

    def trained(self, worker: int) -> list[list[str]]:
        """The arguments of every training job that this worker has started."""
        path = self.folder / f"trained-{worker}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def worker_action(call: list[str]) -> str:
    line = call[call.index("--command") + 1]
    return next(
        word for word in ("incoming", "devices", "launch", "undo", "bucket", "stop", "status", "log") if word in line
    )


def without_numbers(calls: Iterable[list[str]]) -> list[list[str]]:
    """Calls without their launch numbers, which differ between launches."""
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
    cloud.answer_with()
    yield cloud
    for pid in tmp_path.glob("worker-*/grpo-jax/run.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    for call in cloud.calls:
        check_flags(call)


def check_flags(call: list[str]) -> None:
    """Checks that every flag exists for its command."""
    known = FLAGS["commands"][" ".join(call[:5])]["flags"] + FLAGS["wide_flags"]
    given = [item.partition("=")[0] for item in call[5:] if item.startswith("--")]
    assert given and set(given) <= set(known), call


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.sh")), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_every_script_is_short_and_starts_with_its_purpose(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= (110 if path.parent.name == "lib" else 40) and max(map(len, lines)) <= 120
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
def test_help_prints_the_usage_and_calls_no_gcloud(cloud, name):
    result = cloud.call(name, "--help")
    assert result.returncode == 0 and result.stdout.startswith(f"Usage: tpu_scripts/{name}.sh NAME")
    assert cloud.calls == []


def test_the_readme_lists_every_script():
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
@pytest.mark.slow
def test_a_dry_run_prints_the_commands_that_a_real_run_calls(cloud, script, arguments):
    result = cloud.call(script, "--dry-run", *arguments)
    printed = [shlex.split(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0 and printed and cloud.calls == []
    if script != "setup":
        cloud.call("setup", *WHERE, *TYPE)
        (cloud.folder / "calls.jsonl").unlink()
    cloud.call(script, *arguments)
    assert without_numbers(words for words in printed if words[0] == "gcloud") == without_numbers(cloud.calls)
    assert script == "setup" or all(words[0] == "gcloud" for words in printed)


def test_create_says_what_it_requests_and_how_to_delete_it(cloud):
    result = cloud.call("create", *WHERE, "--type", "v5e-16", "--spot")
    (call,) = cloud.calls
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(call)
    assert "16 chip(s) on 4 host(s), spot." in result.stderr
    assert "tpu_scripts/delete.sh v5e --zone us-west4-a" in result.stderr
    on_demand = cloud.call("create", *WHERE, *TYPE)
    assert "on demand" in on_demand.stderr and "--spot" not in cloud.calls[1]


def test_a_dry_run_of_create_does_not_claim_a_request(cloud):
    assert "create.sh would request v5e: 16 chip(s)" in cloud.call("create", *WHERE, *TYPE, "--dry-run").stderr
    assert "create.sh requested v5e: 16 chip(s)" in cloud.call("create", *WHERE, *TYPE).stderr


def test_every_script_that_leaves_a_billed_slice_says_how_to_delete_it(cloud):
    project = ("--project", "my-project")
    delete = "tpu_scripts/delete.sh v5e --zone us-west4-a --project my-project\n"
    cloud.end_training(1, "0")
    for script, more in [
        ("create", TYPE),
        ("setup", TYPE),
        ("run", TRAINING),
        ("stop", ()),
        ("babysit", (*TYPE, *TRAINING)),
    ]:
        result = cloud.call(script, *WHERE, *project, *more)
        assert result.returncode == 0 and delete in result.stderr, (script, result.stderr)
        if script == "run":  # otherwise stop.sh would stop the job before it ends
            wait_for(lambda: len(list(cloud.folder.glob("worker-*/grpo-jax/run.exit"))) == 2)
    cloud.answer_with(failures={"queued-resources create": ["ERROR: ALREADY_EXISTS: Resource already exists"]})
    assert delete in cloud.call("create", *WHERE, *project, *TYPE).stderr


# From Google Cloud's page for each TPU version. The size in a v5p or v4 type counts cores, two on each chip.
@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [
        *[("v5litepod-1", 1, 1), ("v5litepod-4", 4, 1), ("v5litepod-8", 8, 1), ("v5litepod-16", 16, 4)],
        *[("v5e-256", 256, 64), ("v6e-1", 1, 1), ("v6e-8", 8, 1), ("v6e-16", 16, 4), ("v6e-64", 64, 16)],
        *[("v5p-8", 4, 1), ("v5p-16", 8, 2), ("v5p-64", 32, 8), ("v5p-128", 64, 16), ("v4-8", 4, 1), ("v4-32", 16, 4)],
    ],
)
def test_an_accelerator_type_has_the_chips_and_hosts_that_google_documents(cloud, name, chips, hosts):
    result = cloud.call("create", *WHERE, "--type", name, "--dry-run")
    assert f" {chips} chip(s) on {hosts} host(s)" in result.stderr
    assert find_slice(name).chips == chips


NO_PLACE = "add --bucket gs://NAME before the config, or run.root=DIR after it"
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
    ("create", [*WHERE, *TYPE, "more"], "create.sh takes one name and options; got also more"),
    ("create", [*WHERE, "--type"], "--type needs a value"),
    ("run", [*WHERE, *TRAINING[:2], "--worker=0", TRAINING[2]], "uses all workers of the slice: leave out --worker"),
    ("run", [*WHERE, *TRAINING, "--worker=0"], "--worker=0 must come before the config"),
    ("run", [*WHERE, *TRAINING, "--dry-run"], "--dry-run must come before the config"),
    ("run", [*WHERE, *TRAINING[:2], "configs/quick.yaml"], "There is no config configs/quick.yaml. Use one of configs"),
    ("run", [*WHERE, *TRAINING[:2]], "The config is missing: add one of configs/"),
    ("run", [*WHERE, TRAINING[2]], NO_PLACE),
    ("run", [*WHERE, *TRAINING, "run.root=/nfs"], "leave out one"),
    ("run", [*WHERE, "--bucket", "my-runs", TRAINING[2]], "--bucket must be gs://NAME, without a folder (to list"),
    ("run", [*WHERE, "--bucket", "gs://a/b;id", TRAINING[2]], "--bucket must be gs://NAME, without a folder (to list"),
    ("logs", [*WHERE, "--worker", "all; id"], "such as 0; got 'all; id'"),
    ("babysit", [*WHERE, "--type", "v5e-9", *TRAINING], "The nearest is v5litepod-8."),
    ("babysit", [*WHERE, *TYPE, "--restarts", "many", *TRAINING], "such as 10; got many"),
    ("babysit", [*WHERE, *TYPE, "--restarts", "08", *TRAINING], "such as 10; got 08"),
    ("babysit", [*WHERE, *TYPE, TRAINING[2]], NO_PLACE),
    ("babysit", [*WHERE, *TYPE, "--dry-run", TRAINING[2]], NO_PLACE),
]


@pytest.mark.faults
@pytest.mark.parametrize(("script", "arguments", "sentence"), REFUSED, ids=[item[2][:30] for item in REFUSED])
def test_bad_arguments_are_refused_on_one_line_before_gcloud_is_called(cloud, script, arguments, sentence):
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
    ("ERROR: a meteorite", "gcloud failed. It said:"),
]


@pytest.mark.faults
@pytest.mark.parametrize(("said", "sentence"), FAILURES, ids=[item[1] for item in FAILURES])
def test_a_gcloud_failure_is_explained_and_then_quoted(cloud, said, sentence):
    cloud.answer_with(failures={"queued-resources create": [said]})
    result = cloud.call("create", *WHERE, *TYPE)
    first, second, *rest = result.stderr.splitlines()
    assert result.returncode == 1 and first.startswith("error: ") and sentence in first
    assert second == said and rest == []  # and no sentence says that a slice is billed


def test_setup_copies_the_last_commit_and_checks_the_chips_on_all_workers(cloud):
    cloud.answer_with(workers=4)
    result = cloud.call("setup", *WHERE, *TYPE)
    assert result.returncode == 0, result.stderr
    assert cloud.actions == ["tpu-vm scp", "incoming", "devices"]
    assert sorted(result.stdout.splitlines()[-4:]) == [f"worker {n}: 16 of 16 chips" for n in range(4)]
    assert len(list(cloud.folder.glob("worker-*/grpo-jax/venv/bin/grpo-jax"))) == 4
    assert cloud.call("setup", *WHERE, *TYPE).returncode == 0  # it can be repeated


def test_setup_fails_with_the_commands_that_free_chips_when_chips_are_missing(cloud):
    result = cloud.call("setup", *WHERE, "--type", "v5litepod-32")
    assert result.returncode == 1
    assert "--worker=all --command='sudo rm -f /tmp/libtpu_lockfile'" in result.stderr
    assert "do not see all 32 chips" in result.stderr


@pytest.mark.faults
def test_train_options_reach_every_worker_unchanged(cloud):
    cloud.answer_with(workers=4)
    cloud.call("setup", *WHERE, *TYPE)
    cloud.end_training(1, "0")
    odd = ["run.name=two  words", 'task.system=it\'s "$HOME" `id` \\', "x=; rm -rf ~; #", "y=a\nb\n", "", "*", "é!&|"]
    result = cloud.call("run", *WHERE, *TRAINING, *odd)
    assert result.returncode == 0, result.stderr
    wait_for(lambda: all(cloud.trained(worker) for worker in range(4)))
    for worker in range(4):
        assert cloud.trained(worker) == [["train", "configs/quickstart.yaml", *odd, "run.root=../bucket/runs"]]
    mounted = {path.read_text() for path in cloud.folder.glob("worker-*/grpo-jax/bucket/mounted")}
    assert len(mounted) == 1 and mounted.pop().endswith(" my-runs bucket\n")


def test_a_training_job_runs_in_its_own_session(cloud):
    cloud.answer_with(workers=4)
    start_training(cloud)
    pids = [int(path.read_text()) for path in cloud.folder.glob("worker-*/grpo-jax/run.pid")]
    assert len(pids) == 4
    assert all(os.getsid(pid) == pid for pid in pids)


@pytest.mark.faults
def test_the_kept_command_line_which_may_hold_a_secret_is_its_owners_alone(cloud):
    start_training(cloud)
    kept = list(cloud.folder.glob("worker-*/grpo-jax/run.command"))
    assert kept and all(path.stat().st_mode & 0o777 == 0o600 for path in kept)


def test_a_repeated_launch_starts_nothing_and_a_different_launch_is_refused(cloud):
    start_training(cloud)
    again = cloud.call("run", *WHERE, *TRAINING)
    assert again.returncode == 0 and again.stdout.count("is already running this job") == 2
    assert [len(cloud.trained(worker)) for worker in range(2)] == [1] * 2
    assert "runs a training job, whose files would change" in cloud.call("setup", *WHERE, *TYPE).stderr
    other = cloud.call("run", *WHERE, *TRAINING, "train.steps=3")
    assert other.returncode == 1 and "is running another training job" in other.stderr
    assert cloud.call("status", *WHERE).stdout.count(" running ") == 2  # the first job still runs


@pytest.mark.faults
def test_a_job_that_fails_to_start_on_one_worker_is_stopped_on_the_others(cloud):
    cloud.answer_with(workers=4)
    cloud.call("setup", *WHERE, *TYPE)
    job = cloud.folder / "worker-3" / "grpo-jax" / "source" / "tpu_scripts" / "worker" / "job.sh"
    job.write_text("exit 1")
    result = cloud.call("run", *WHERE, *TRAINING)
    assert result.returncode == 1
    assert "worker 3 failed" in result.stderr and "those that did start were told to stop" in result.stderr
    assert cloud.actions[-2:] == ["launch", "undo"]
    assert result.stdout.count("is told to stop") == 3


def test_a_repeated_launch_that_fails_on_one_worker_does_not_stop_the_running_job(cloud):
    start_training(cloud)
    (cloud.folder / "worker-1" / "grpo-jax" / "source" / "tpu_scripts" / "worker" / "job.sh").write_text("exit 1")
    result = cloud.call("run", *WHERE, *TRAINING)
    assert result.returncode == 1 and "is already running this job" in result.stdout
    assert cloud.actions[-1] == "undo" and "is told to stop" not in result.stdout


def test_a_second_bucket_is_refused(cloud):
    start_training(cloud)
    result = cloud.call("run", *WHERE, "--bucket", "gs://other-runs", TRAINING[2])
    assert result.returncode == 1 and "has another bucket mounted" in result.stderr


def test_status_and_logs_show_every_worker(cloud):
    cloud.answer_with(workers=4)
    cloud.call("setup", *WHERE, *TYPE)
    assert cloud.call("status", *WHERE).stdout.count(" ready") == 4
    cloud.end_training(1, "0", "1 ValueError: no", "75", "0")
    cloud.call("run", *WHERE, *TRAINING)
    wait_for(lambda: len(list(cloud.folder.glob("worker-*/grpo-jax/run.exit"))) == 4)
    shown = cloud.call("status", *WHERE).stdout
    assert shown.startswith("request: ACTIVE\nslice: READY\n")
    assert "t1v-n-fake-w-1 exited 1 ValueError: no\n" in shown and "t1v-n-fake-w-2 exited 75 " in shown
    assert cloud.call("logs", *WHERE, "--worker", "1").stdout.endswith("t1v-n-fake-w-1: ValueError: no\n")
    cloud.answer_with(requests=["FAILED||no more capacity"])
    assert cloud.call("status", *WHERE).stdout == "request: FAILED, no more capacity\n"
    cloud.answer_with(requests=["ABSENT"])
    assert cloud.call("status", *WHERE).stdout == "request: ABSENT\n"


def test_status_shows_that_a_training_job_was_killed(cloud):
    start_training(cloud)
    for path in cloud.folder.glob("worker-*/grpo-jax/run.pid"):
        os.killpg(int(path.read_text()), signal.SIGKILL)
    wait_for(lambda: cloud.call("status", *WHERE).stdout.count(" killed ") == 2)


def test_delete_asks_first(cloud):
    refused = cloud.call("delete", *WHERE, input="\n")
    assert refused.returncode == 1 and "Nothing was deleted" in refused.stderr and cloud.calls == []
    assert cloud.call("delete", *WHERE, input="y\n").returncode == 0
    (call,) = cloud.calls
    assert call[3:6] == ["queued-resources", "delete", "v5e"] and "--force" in call


@pytest.mark.slow
def test_babysit_creates_trains_and_resumes_after_a_preemption(cloud):
    waiting = ["ABSENT", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    preempted = ["SUSPENDING|SERVICE|", "SUSPENDED|SERVICE|", "ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    cloud.answer_with(workers=4, requests=[*waiting, "ACTIVE", "ACTIVE", "ACTIVE", *preempted, "ACTIVE"])
    cloud.end_training(2, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, "--spot", *TRAINING, "train.steps=20")
    assert result.returncode == 0, result.stderr
    begin = ["queued-resources create", "tpu-vm scp", "incoming", "devices", "bucket", "launch"]
    assert cloud.actions == [*begin, "queued-resources delete", *begin]
    arguments = ["train", "configs/quickstart.yaml", "train.steps=20"]
    for worker in range(4):
        assert cloud.trained(worker) == [
            [*arguments, "run.root=../bucket/runs"],
            [*arguments, "--resume", "run.root=../bucket/runs"],
        ]
    created = [call for call in cloud.calls if call[4] == "create"]
    assert created[0] == created[1] and "--spot" in created[0]
    assert "restart 1 of 10" in result.stderr
    assert result.stderr.endswith(
        "v5e may still be billed. To delete it: tpu_scripts/delete.sh v5e --zone us-west4-a\n"
    )
    assert cloud.call("delete", *WHERE, "--yes").returncode == 0


ACTIONS = {
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


@pytest.mark.faults
@pytest.mark.parametrize("terms", [(), ("--spot",)], ids=["on demand", "spot"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.slow
def test_every_request_state_leads_to_its_listed_actions(cloud, state, terms):
    """The state is followed by a failure that ends babysit.sh, so all actions are due to the state."""
    cloud.answer_with(requests=[state, state, "FAILED||a bad request"] if state != "ACTIVE" else [state, "FAILED||bad"])
    result = cloud.call("babysit", *WHERE, *TYPE, *terms, *TRAINING)
    actions, code = ACTIONS[state]
    assert (list(dict.fromkeys(cloud.actions)), result.returncode) == (actions, code)
    assert f"v5e: {'workers not-ready' if state == 'ACTIVE' else state}\n" in result.stderr


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ({"requests": ["FAILED||Quota limit exceeded"]}, "the request failed: Quota limit exceeded"),
        ({"requests": ["SUSPENDED|USER|"]}, "somebody suspended the slice"),
        ({"requests": ["PROVISIONING"]}, "the request stays PROVISIONING"),
        ({"requests": ["DELETING"]}, "the request stays DELETING"),
        ({"requests": ["MELTING"]}, 'babysit.sh does not know the state "MELTING"'),
        ({"requests": ["ABSENT", "WAITING_FOR_RESOURCES", "ABSENT"]}, "somebody deleted the request"),
        ({"requests": ["ACTIVE", "DELETING", "ABSENT"]}, "somebody deleted the request"),
        ({"requests": ["DELETING", "ABSENT"]}, "somebody deleted the request"),
        ({"nodes": ["STOPPED"]}, "somebody stopped the slice"),
        ({"nodes": ["REPAIRING"]}, "the slice stays REPAIRING"),
        ({"nodes": ["SINGING"]}, 'babysit.sh does not know the state "slice SINGING"'),
        ({"requests": ["ABSENT"], "failures": {"queued-resources create": [QUOTA]}}, "the request was refused"),
        ({"failures": {"queued-resources describe": ["ERROR: no network"] * 20}}, "the workers do not answer"),
        ({"failures": {"tpu-vm ssh": ["ERROR: ssh: connection refused"] * 20}}, "gcloud or the workers do not answer"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
@pytest.mark.slow
def test_babysit_exits_with_3_and_the_reason_when_a_person_must_decide(cloud, script, sentence):
    cloud.answer_with(**script)
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 3, result.stderr
    assert sentence in result.stderr and "A person must decide what to do." in result.stderr
    created = [call for call in cloud.calls if call[4] == "create"]
    assert len(created) == (script.get("requests", [""])[0] == "ABSENT")  # a deleted slice is not created again


@pytest.mark.parametrize("gone", ["SUSPENDED|SERVICE|", "FAILED||There is no more capacity in the zone", "node"])
def test_babysit_gives_up_when_all_restarts_are_used(cloud, gone):
    script = {"nodes": ["PREEMPTED"]} if gone == "node" else {"requests": [gone]}
    cloud.answer_with(**script)
    result = cloud.call("babysit", *WHERE, *TYPE, "--restarts", "3", *TRAINING)
    assert result.returncode == 3 and "all 3 restarts are used up" in result.stderr
    assert cloud.actions == ["queued-resources delete"] * 3


def test_babysit_survives_a_short_network_failure(cloud):
    cloud.answer_with(failures={"queued-resources describe": ["ERROR: no network"] * 2})
    cloud.end_training(1, "0")
    assert cloud.call("babysit", *WHERE, *TYPE, *TRAINING).returncode == 0


@pytest.mark.parametrize(
    ("script", "actions"),
    [
        ({"failures": {"queued-resources describe": ["ERROR: no network"]}, "requests": ["ABSENT", "MELTING"]}, []),
        ({"requests": ["SUSPENDED|SERVICE|", "DELETING", "ABSENT", "MELTING"]}, ["queued-resources delete"]),
    ],
    ids=["network failure", "deleted by babysit.sh"],
)
def test_babysit_creates_a_slice_unless_somebody_else_deleted_it(cloud, script, actions):
    cloud.answer_with(**script)
    cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert cloud.actions == [*actions, "queued-resources create"]


def test_babysit_resumes_on_a_slice_that_was_preempted_before_it_started(cloud):
    cloud.answer_with(requests=["SUSPENDED|SERVICE|", "ABSENT", "ACTIVE"])
    cloud.end_training(1, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 0, result.stderr
    assert [row[2:-1] for row in cloud.trained(0)] == [["--resume"]]


@pytest.mark.parametrize(("ends", "launches"), [(["0"], [True]), (["2 error: There is no run", "0"], [True, False])])
@pytest.mark.slow
def test_babysit_with_resume_starts_a_new_run_if_there_is_none(cloud, ends, launches):
    for number, end in enumerate(ends, start=1):
        cloud.end_training(number, end)
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
        (["1", "139"], 0, [[], ["--resume"]]),  # one was killed, so the others failed
        (["137", "76 error: the other hosts have not started within 300 seconds."], 0, [[], ["--resume"]]),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) and value and isinstance(value[0], str) else "",
)
@pytest.mark.slow
def test_babysit_resumes_interrupted_jobs_and_exits_with_the_code_of_others(cloud, ends, code, launches):
    cloud.end_training(1, *ends)
    cloud.end_training(2, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == code, result.stderr
    assert [row[2:-1] for row in cloud.trained(0)] == launches


@pytest.mark.parametrize(
    ("resumed", "last", "code"),
    [
        ([NO_RUN], "0", 0),
        ([NO_RUN, rf"{NO_RUN}\nW1125 a message of the coordination service\n"], "0", 0),
        ([rf"{NO_RUN}\nW1125 a message of the coordination service\nand another"], "0", 0),
        ([NO_RUN], "2 grpo-jax train: error: unrecognized arguments: --odd", 2),  # this time without NO_RUN
    ],
    ids=["last line", "other lines follow on one worker", "other lines follow on all", "only in the launch before"],
)
@pytest.mark.slow
def test_a_job_interrupted_before_its_run_was_created_starts_a_new_run(cloud, resumed, last, code):
    cloud.end_training(1, "75")
    cloud.end_training(2, *resumed)
    cloud.end_training(3, last)
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == code, result.stderr
    assert [row[2:-1] for row in cloud.trained(0)] == [[], ["--resume"], []]


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (["a exited 137", "b exited 76 error: the other hosts have not started"], "interrupted"),
        (["a killed", "b exited 76 error: the other hosts have not started"], "interrupted"),
        (["a ready", "b exited 76 error: the other hosts have not started"], "interrupted"),
        ([f"a exited {ending.RESUMABLE}", f"b exited {ending.RESUMABLE} told to stop"], "interrupted"),
        ([f"a exited {ending.LOST}", f"b exited {ending.LOST} error: the other hosts"], "interrupted"),
        ([f"a exited {codes.STUCK}", "b exited 1 error: host 0 (a) has ended"], "interrupted"),
        (["a exited 75", "b exited 2 error: There is no run"], "without-a-run"),  # host 0 looks for the run
        (["a exited 1", "b exited 76 error: host 0 (a) has ended"], "interrupted"),
        (["a exited 1", "b exited 2 error: an unknown key"], "ended 2"),
        (["a exited 0", "b exited 0 There is no run of numbers"], "ended 0"),
        (["a exited 65 error: The run ends", "b exited 65"], "ended 65"),  # a person has to look
        (["a exited 70 error: Reward", "b exited 70"], "ended 70"),
        (["a exited 74 error: The answers", "b exited 74"], "ended 74"),
        (["a not-ready", "b exited 137"], "not-ready"),
    ],
)
def test_the_states_of_all_workers_combine_into_one_in_any_order(lines, state):
    program = ["awk", "-f", SCRIPTS / "lib" / "workers_state.awk"]
    for ordered in (lines, lines[::-1]):
        result = subprocess.run(program, input="\n".join(ordered), capture_output=True, text=True, check=True)
        assert result.stdout == f"{state}\n"


@pytest.mark.slow
def test_babysit_stops_workers_that_outlive_the_others_and_resumes(cloud):
    cloud.end_training(1, "1", "on")
    cloud.end_training(2, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 0, result.stderr
    assert "stop" in cloud.actions and "workers partly-ended" in result.stderr


def test_a_restarted_babysit_continues_with_the_running_job(cloud):
    start_training(cloud)
    cloud.end_training(1, "0")
    result = cloud.call("babysit", *WHERE, *TYPE, *TRAINING)
    assert result.returncode == 0, result.stderr
    assert [len(cloud.trained(worker)) for worker in range(2)] == [1] * 2


def test_a_dry_run_of_babysit_prints_create_setup_and_run(cloud):
    result = cloud.call("babysit", *WHERE, *TYPE, "--dry-run", *TRAINING)
    parts = [
        cloud.call("create", *WHERE, *TYPE, "--dry-run"),
        cloud.call("setup", *WHERE, *TYPE, "--dry-run"),
        cloud.call("run", *WHERE, "--dry-run", *TRAINING),
    ]
    assert result.returncode == 0 and cloud.calls == []
    assert without_numbers([[result.stdout]]) == without_numbers([["".join(part.stdout for part in parts)]])


def test_the_readme_and_babysit_name_every_request_state():
    page = (SCRIPTS / "README.md").read_text()
    program = (SCRIPTS / "babysit.sh").read_text()
    assert all(f"`{state}`" in page for state in STATES)
    assert all(re.search(rf"\b{state}\b", program) for state in STATES if state != "ACTIVE")  # for ACTIVE see "slice"


def jobset() -> dict:
    (jobset,) = yaml.safe_load_all((SCRIPTS / "gke" / "jobset.yaml").read_text())
    return jobset


def container(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_the_jobset_starts_all_hosts_of_its_slice_at_once():
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
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy requires it
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
    """Runs the JobSet's command with a folder as its bucket and a fake grpo-jax, which records its arguments."""

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
def test_a_pod_resumes_an_existing_run_and_exits_with_the_code_of_training(tmp_path, code):
    pod = Pod(tmp_path)
    assert pod.start(f"echo >>{tmp_path}/launches", f"exit {code}").wait(30) == code
    assert "--resume" not in pod.arguments
    written = read(ROOT / "configs" / "gsm8k_qwen2.5_1.5b.yaml", pod.settings)
    run: Run = written.run.build()
    run.create()
    assert pod.start(f"echo >>{tmp_path}/launches", f"exit {code}").wait(30) == code
    assert "--resume" in pod.arguments
    assert (tmp_path / "launches").read_text() == "\n" * 2  # each start launches once, whatever its exit code


def test_sigterm_to_a_pod_reaches_training(tmp_path):
    pod = Pod(tmp_path)
    process = pod.start("trap 'exit 75' TERM", f"touch {tmp_path}/listening", "while sleep 0.02; do :; done")
    try:
        wait_for((tmp_path / "listening").exists)
        process.terminate()  # this process only, as a kubelet does
        assert process.wait(30) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_jobset_trains_an_existing_config_on_all_chips(tmp_path):
    pod = Pod(tmp_path)
    pod.start("exit 0").wait(30)
    assert pod.arguments[0] == "train"
    mesh = read(ROOT / pod.arguments[1], pod.settings).mesh.build()
    assert (mesh.data, mesh.fsdp) == (1, find_slice("v5e-16").chips)


def test_the_image_has_the_package_and_the_configs_only():
    lines = (SCRIPTS / "gke" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hatch = project["tool"]["hatch"]
    readme = [fragment["path"] for fragment in hatch["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]]
    installed = hatch["build"]["targets"]["wheel"]["only-include"]
    assert sorted(copied) == sorted(["pyproject.toml", *readme, *project["project"]["license-files"], *installed])


def start_training(cloud: Cloud) -> None:
    """Sets up the slice and starts a training job that does not end."""
    assert cloud.call("setup", *WHERE, *TYPE).returncode == 0
    assert cloud.call("run", *WHERE, *TRAINING).returncode == 0
    workers = json.loads((cloud.folder / "script.json").read_text())["workers"]
    wait_for(lambda: all(cloud.trained(worker) for worker in range(workers)))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
