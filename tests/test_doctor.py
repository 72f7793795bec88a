"""`grpo-jax doctor` on machines that are well, ill, or have no JAX at all."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from grpo_jax.commands.doctor import checks, facts, installed, known
from grpo_jax.commands.doctor.checks import check
from grpo_jax.commands.doctor.child import MARK
from grpo_jax.commands.doctor.facts import Facts, Folder
from grpo_jax.commands.doctor.probe import Answer, ask_jax, read_answer

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {"jax", "flax", "transformers", "datasets"}

JAX = {
    "jaxlib": "jaxlib<=0.10.1,>=0.10.0",
    "libtpu": 'libtpu==0.0.41.*; extra == "tpu"',
    "cuda": 'jax-cuda12-plugin[with-cuda]<=0.10.1,>=0.10.1; extra == "cuda12"',
}
VERSIONS = {"grpo-jax": "0.1.0", "jax": "0.10.1", "jaxlib": "0.10.1", "flax": "0.12.0", "packaging": "26.4"}
ON_CPU = Answer(found={"platform": "cpu", "kinds": ["cpu"], "devices": 1, "hosts": 1, "memory": None})
WELL = Facts(
    versions=VERSIONS,
    asked={"grpo-jax": ["jax>=0.7.2", "flax>=0.11.2"], "jax": list(JAX.values()), "flax": ["jax>=0.8"]},
    folders={"runs": Folder("/work", 10**12, True)},
    jax=ON_CPU,
)
CHIPS = ("/dev/accel0", "/dev/accel1")
NO_LIBTPU = "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so"
TAKEN = "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 77."


def with_(versions=None, **changes) -> Facts:
    return dataclasses.replace(WELL, versions={**VERSIONS, **(versions or {})}, **changes)


def without(name: str) -> Facts:
    return dataclasses.replace(WELL, versions={key: value for key, value in VERSIONS.items() if key != name})


def test_nothing_is_wrong_with_a_machine_that_is_well():
    assert check(WELL) == []


ILL = {
    "an old Python": (with_(python=(3, 10, 13)), "error", "Python 3.10.13 is too old", "python3.13 -m venv"),
    "32 bits": (with_(bits=32), "error", "32 bits", "64 bits"),
    "Windows": (with_(system="Windows"), "error", "Windows", "wsl --install"),
    "an Intel Mac": (with_(system="Darwin", machine="x86_64"), "error", "no jaxlib for Macs", "arm64"),
    "no flax": (without("flax"), "error", "flax is missing, and grpo-jax needs flax>=0.11.2", '"flax>=0.11.2"'),
    "an old flax": (with_({"flax": "0.10.7"}), "error", "flax 0.10.7 is installed, and grpo-jax needs", "pip install"),
    "jaxlib ahead of jax": (
        with_({"jaxlib": "0.11.0"}),
        "error",
        "jaxlib 0.11.0 is installed, and jax needs jaxlib<=0.10.1,>=0.10.0",
        'pip install "jaxlib<=0.10.1,>=0.10.0"',
    ),
    "jaxlib behind jax": (with_({"jaxlib": "0.9.2"}), "error", "jaxlib 0.9.2 is installed", "jaxlib"),
    "a caution of another package": (
        with_({"flax": "0.12.0", "jax": "0.7.2", "jaxlib": "0.10.0"}),
        "warning",
        *2 * [""],
    ),
    "a CUDA library of another version": (
        with_({"jax-cuda12-plugin": "0.9.2"}),
        "error",
        "jax-cuda12-plugin 0.9.2 is installed, and jax 0.10.1 goes with jax-cuda12-plugin<=0.10.1,>=0.10.1",
        'pip install "jax[cuda12]==0.10.1"',
    ),
    "tensorflow's libtpu, to plan with": (with_({"libtpu": "2.18.0"}), "warning", "libtpu 2.18.0", "jax[tpu]==0.10.1"),
    "tensorflow's libtpu, on a TPU": (
        with_({"libtpu": "2.18.0"}, chips=CHIPS, jax=Answer(found={"platform": "tpu"})),
        "error",
        "libtpu 2.18.0 is installed, and jax 0.10.1 goes with libtpu==0.0.41.*",
        'pip install "jax[tpu]==0.10.1"',
    ),
    "a TPU without libtpu": (
        with_(chips=CHIPS, jax=dataclasses.replace(ON_CPU, reasons=(NO_LIBTPU,))),
        "error",
        "2 TPU chip(s), and JAX uses the cpu: libtpu is missing",
        'pip install "jax[tpu]==0.10.1"',
    ),
    "a TPU that another program has": (
        with_({"libtpu": "0.0.41"}, chips=CHIPS, holders=("77 (python3)",), jax=ON_CPU),
        "error",
        "other processes use the chips",
        "77 (python3)",
    ),
    "a TPU that JAX cannot start": (
        with_({"libtpu": "0.0.41"}, chips=CHIPS, jax=dataclasses.replace(ON_CPU, reasons=(NO_LIBTPU, TAKEN))),
        "error",
        "already in use by process with pid 77",
        "tensorflow or torch_xla",
    ),
    "a TPU that is not wanted": (
        with_({"libtpu": "0.0.41"}, chips=CHIPS, variables={"JAX_PLATFORMS": "cpu"}),
        "warning",
        "as JAX_PLATFORMS says",
        "unset JAX_PLATFORMS",
    ),
    "a GPU without its library": (
        with_(gpus=("/dev/nvidia0",), driver="550.54.14"),
        "error",
        "1 NVIDIA GPU(s), and JAX uses the cpu: it has no library",
        'pip install "jax[cuda12]==0.10.1"',
    ),
    "a GPU whose libraries are hidden": (
        with_(
            {"jax-cuda12-plugin": "0.10.1"},
            gpus=("/dev/nvidia0",),
            variables={"LD_LIBRARY_PATH": "/usr/local/cuda/lib"},
        ),
        "error",
        "JAX uses the cpu",
        "unset LD_LIBRARY_PATH",
    ),
    "an old driver": (
        with_(
            {"jax-cuda13-plugin": "0.10.1"},
            gpus=("/dev/nvidia0",),
            driver="550.54.14",
            jax=Answer(found={"platform": "gpu"}),
        ),
        "error",
        "driver 550.54.14 is too old for JAX with cuda13, which needs 580",
        "install a newer driver",
    ),
    "jax-metal": (with_({"jax-metal": "0.1.1"}), "error", "jax-metal", "pip uninstall jax-metal"),
    "a flax that the newer jax breaks": (
        with_({"jax": "0.11.2", "jaxlib": "0.11.2", "flax": "0.12.9"}, asked={}),
        "error",
        "google/flax#5596",
        "pip install -U flax",
    ),
    "sums that are wrong": (
        with_({"jax": "0.10.2", "jaxlib": "0.10.2"}, asked={}),
        "warning",
        "jax-ml/jax#39103",
        'pip install "jaxlib==0.10.1"',
    ),
    "gradients that are wrong": (
        with_({"libtpu": "0.0.42.1"}, asked={}, chips=CHIPS, jax=Answer(found={"platform": "tpu"})),
        "warning",
        "jax-ml/jax#39025",
        "jax[tpu]",
    ),
    "a full disk": (
        with_(folders={"downloads": Folder("/home/a/.cache", 2**28, True)}),
        "warning",
        "/home/a/.cache has 0.2 GiB left",
        "HF_HOME",
    ),
    "a folder of somebody else": (
        with_(folders={"runs": Folder("/root", 10**12, False)}),
        "warning",
        "/root cannot be written to",
        "run.root",
    ),
    "a slice, asked on one host": (
        with_({"libtpu": "0.0.41"}, chips=CHIPS, seconds=5.0, jax=Answer(hung="find devices")),
        "error",
        "JAX looked for its devices, and was not done after 5 seconds",
        "on all hosts at once",
    ),
    "an end by itself": (
        with_(jax=Answer(died="find devices", complaint="by SIGSEGV")),
        "error",
        "the process that looked for its devices was ended by SIGSEGV",
        'anew in one command: pip install "jax==0.10.1"',
    ),
    "a platform that is not there": (
        with_(
            variables={"JAX_PLATFORMS": "tup"},
            jax=Answer(errors={"find devices": "RuntimeError: Unknown\nbackend tup"}),
        ),
        "error",
        "cannot find devices: RuntimeError: Unknown backend tup",
        "JAX_PLATFORMS is tup: unset it",
    ),
    "numbers that are wrong": (
        with_(jax=Answer(found={"platform": "gpu", "computed": 7.0})),
        "error",
        "the gpu computes 7.0 where 2097152.0 is right",
        "another machine",
    ),
}


@pytest.mark.parametrize(("ill", "level", "what", "do"), ILL.values(), ids=list(ILL))
def test_each_illness_is_one_finding_with_what_to_do(ill, level, what, do):
    [finding] = check(ill)
    assert finding.level == level
    assert what in finding.what and do in finding.do
    assert "\n" not in finding.what + finding.do


def test_errors_come_before_warnings():
    levels = [
        found.level for found in check(with_({"flax": "0.1", "jax-metal": "1"}, folders={"runs": Folder("/", 0, True)}))
    ]
    assert levels == ["error", "error", "warning"]


def test_every_known_fault_has_its_report_and_its_row_on_the_page():
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    for entry in known.KNOWN:
        assert re.search(r"[\w-]+/[\w-]+#\d+", entry.what)
        versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        assert f"| {versions} | {entry.what} | {entry.do} |" in page


# JAX, in a process of its own.

DEVICES = """
__version__ = "0.99.0"
class Device:
    platform, device_kind = "tpu", "TPU v99"
    def memory_stats(self):
        return {"bytes_limit": 2**34}
def local_devices():
    print("libraries print, too")
    return [Device(), Device()]
def process_count():
    return 4
"""


@pytest.fixture
def fake_jax(tmp_path, monkeypatch):
    """Puts a package named jax with this text before the real one, for children."""

    def write(text: str) -> None:
        (tmp_path / "jax").mkdir()
        (tmp_path / "jax" / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    return write


def test_a_jax_that_cannot_be_imported_is_told_with_its_error(fake_jax):
    fake_jax("raise ImportError('libcuda.so.1: no such file')")
    answer = ask_jax(60.0)
    assert answer.errors == {"import jax": "ImportError: libcuda.so.1: no such file"}
    assert answer.hung is None and answer.died is None and answer.platform is None


def test_a_jax_that_hangs_is_ended_in_time(fake_jax, tmp_path):
    fake_jax(f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    begun = time.monotonic()
    answer = ask_jax(8.0)
    assert answer.hung == "import jax" and time.monotonic() - begun < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_jax_that_ends_the_process_is_told_with_the_signal(fake_jax):
    fake_jax("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    answer = ask_jax(60.0)
    assert (answer.died, answer.complaint) == ("import jax", "by SIGSEGV")


def test_a_jax_that_exits_is_told_with_its_last_words(fake_jax):
    logged = "F1129 20:12:37.464162   21983 parse_flags_from_env.cc:234] Unknown flag in XLA_FLAGS: --xla_no=1"
    fake_jax(f"import os, sys; print({logged!r}, file=sys.stderr, flush=True); os._exit(7)")
    answer = ask_jax(60.0)
    assert (answer.died, answer.complaint) == ("import jax", "with status 7: Unknown flag in XLA_FLAGS: --xla_no=1")
    [finding] = check(with_(jax=answer, variables={"XLA_FLAGS": "--xla_no=1"}))
    assert finding.do == "take that flag out of XLA_FLAGS, which is --xla_no=1"


def test_devices_that_do_not_answer_are_told_apart_from_an_import_that_does_not():
    told = [{"stage": "import jax"}, {"result": {"jax": "0.99.0"}}, {"seconds": 0.5}, {"stage": "find devices"}]
    answer = read_answer("\n".join(["libraries print, too", *(f"{MARK}{json.dumps(line)}" for line in told)]), "", None)
    assert answer.hung == "find devices" and answer.found == {"jax": "0.99.0"}
    assert answer.seconds == {"import jax": 0.5}


def test_devices_are_counted_and_their_memory_is_known(fake_jax):
    fake_jax(DEVICES)
    found = ask_jax(60.0).found
    expected = {"platform": "tpu", "kinds": ["TPU v99"], "devices": 2, "hosts": 4, "memory": 2**34}
    assert {name: found[name] for name in expected} == expected


def test_secrets_are_not_among_the_errors(fake_jax, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    fake_jax("import os; raise RuntimeError('no access with ' + os.environ['HF_TOKEN'])")
    assert ask_jax(60.0).errors == {"import jax": "RuntimeError: no access with ***"}


# What is seen without JAX.


def test_variables_are_shown_without_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:word@proxy.example:3128")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    seen = facts.shown_variables()
    assert seen["HF_TOKEN"] == "***" and seen["HTTPS_PROXY"] == "http://***@proxy.example:3128"
    assert seen["XLA_FLAGS"] == "--xla_dump_to=/tmp/x" and "WANDB_API_KEY" not in seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux shows who has a file open")
def test_processes_that_have_a_chip_open_are_found(tmp_path):
    chip = tmp_path / "accel0"
    chip.touch()
    program = f"file = open({str(chip)!r}); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        [found] = facts.holders((str(chip),))
        holder.stdin.write(b"\n")
        holder.stdin.flush()
    assert found.startswith(f"{holder.pid} (") and facts.holders((str(chip),)) == ()


def test_the_driver_is_read_from_the_text_of_linux(tmp_path, monkeypatch):
    text = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12.2.0\n"
    )
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(facts, "DRIVER", tmp_path / "version")
    assert facts.driver_version() == "550.54.14"
    monkeypatch.setattr(facts, "DRIVER", tmp_path / "none")
    assert facts.driver_version() is None


def test_a_checkout_that_is_not_installed_still_says_what_it_needs():
    assert installed._of_checkout(ROOT) == PROJECT["dependencies"]


# The command.


def doctor(*arguments: str, variables: dict[str, str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], env=variables, cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_python_without_any_package_is_told_what_is_missing(tmp_path):
    """-S leaves out the folder of installed packages."""
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    bare = ("-S", "-m", "grpo_jax", "doctor")
    as_json = doctor(*bare, "--json", variables=variables, folder=tmp_path)
    assert as_json.returncode == 1 and as_json.stderr == ""
    [finding] = json.loads(as_json.stdout)["findings"]
    wanted = {Requirement(line).name.lower() for line in PROJECT["dependencies"]}
    assert finding["level"] == "error" and set(re.findall(r'"([\w-]+)"', finding["do"])) == wanted
    as_text = doctor(*bare, variables=variables, folder=tmp_path)
    assert f"{finding['level']}: {finding['what']}. To do: {finding['do']}." in as_text.stdout


def test_the_command_finds_the_devices_of_this_machine_and_imports_no_jax_itself(tmp_path):
    program = "import sys; from grpo_jax.cli import main; main(); print(*sys.modules, file=sys.stderr)"
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    result = doctor("-c", program, "doctor", "--json", "--seconds", "300", variables=variables, folder=ROOT)
    seen = json.loads(result.stdout)
    assert [finding for finding in seen["findings"] if finding["level"] == "error"] == []
    assert seen["jax"]["found"]["devices"] == 3 and seen["jax"]["found"]["computed"] == 128**3
    assert set(seen["jax"]["seconds"]) == {"import jax", "import grpo_jax", "find devices", "compute"}
    assert HEAVY.isdisjoint(result.stderr.splitlines()[-1].split())


# The sets of versions that are supported.


def test_the_oldest_python_is_that_of_the_project():
    assert PROJECT["requires-python"] == f">={'.'.join(map(str, checks.OLDEST_PYTHON))}"


def test_the_oldest_set_of_versions_keeps_the_bounds_of_the_project():
    lines = (ROOT / "tests" / "versions" / "oldest.txt").read_text().splitlines()
    oldest = dict(line.replace(".*", ".0").split("==") for line in lines if not line.startswith("#"))
    bounds = {Requirement(line).name.lower(): Requirement(line).specifier for line in PROJECT["dependencies"]}
    assert oldest["jax"] == oldest["jaxlib"]
    for name in oldest.keys() - {"jaxlib"}:
        assert bounds[name].contains(oldest[name]), name


def test_the_essential_tests_are_there():
    lines = (ROOT / "tests" / "versions" / "essential.txt").read_text().splitlines()
    named = [line for line in lines if not line.startswith("#")]
    assert named and all((ROOT / line.partition("::")[0]).is_file() for line in named)
