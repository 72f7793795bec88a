"""What surrounds a release: the address of the project, workflows, forms, the citation, versions and dates."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from grpo_jax import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
OWNER, NAME = REPOSITORY.removeprefix("https://github.com/").split("/")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir() if path.name != "config.yml")
SCRIPTS = sorted((ROOT / ".ci").iterdir())


def read(path: Path) -> dict:
    """A YAML file. `on`, a word for true in YAML 1.1, is a key of workflows."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


# The address.

PLACES = [
    r"(?:github\.com|githubusercontent\.com|research\.google\.com/github)/([\w.-]+)/(grpo[-_]jax)\b",
    r"\b([\w-]+)\.github\.io/(grpo[-_]jax)\b",
    r"github\.repository == '([\w.-]+)/([\w.-]+)'",
]
BINARY = {".npz", ".png", ".jpg", ".safetensors", ".gguf", ".gz"}
GIVEN = {".git", ".venv", "build", "dist", "runs", "node_modules"}


def texts() -> dict[str, str]:
    """The files that people have written, as far as they are text."""
    found = {}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in GIVEN and "cache" not in name]
        paths = [Path(folder, name) for name in files]
        found |= {
            str(path.relative_to(ROOT)): path.read_text("utf-8", "replace")
            for path in paths
            if path.suffix not in BINARY
        }
    return found


def test_the_address_of_the_project_is_the_same_everywhere():
    found = {
        (name, match[0]): (match[1], match[2])
        for name, text in texts().items()
        for place in PLACES
        for match in re.finditer(place, text)
    }
    assert {place: pair for place, pair in found.items() if pair != (OWNER, NAME)} == {}
    files = {name for name, _ in found}
    assert files >= {
        "pyproject.toml",
        "CITATION.cff",
        "notebooks/grpo_on_one_page.ipynb",
        ".github/workflows/release.yml",
    }


# Workflows.


def steps(path: Path) -> list[dict]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_unless_a_job_needs_more_and_ends_in_time(path):
    workflow = read(path)
    assert {"name", "on", "permissions", "jobs"} <= set(workflow)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90 and job["runs-on"] != "ubuntu-latest"
        if "permissions" in job:  # it publishes, which a fork must not try
            assert f"github.repository == '{OWNER}/{NAME}'" in job["if"] and "environment" in job
            assert set(job["permissions"]) <= {"id-token", "pages"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_pins_its_actions_and_runs_what_exists(path):
    known = {"sudo", "python", "sphinx-build"}
    for step in steps(path):
        assert ("uses" in step) is not ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+|[0-9a-f]{40})", step.get("uses", "a/b@v1"))
        for line in step.get("run", "").splitlines():
            program, *arguments = shlex.split(re.sub(r"\${{.*?}}", "VALUE", line))
            assert program in known or os.access(ROOT / program, os.X_OK), line
            assert program != "python" or arguments[:3] == ["-m", "pip", "install"]


def test_the_pythons_that_are_tested_are_those_of_the_classifiers():
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert read(ROOT / ".github/workflows/ci.yml")["jobs"]["python"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_extras_that_workflows_install_exist():
    named = {extra for path in WORKFLOWS for extra in re.findall(r'"\.\[([\w,-]+)\]"', path.read_text())}
    extras = {extra for group in named for extra in group.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_of_the_checks_is_short_and_says_how_it_is_called(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# Usage: ") and f".ci/{path.name}" in lines[1]
    assert len(lines) <= 40 and "set -euo pipefail" in lines and os.access(path, os.X_OK)


def test_shellcheck_finds_nothing_in_the_scripts_of_the_checks():
    shellcheck = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck, 'pip install -e ".[dev]" brings shellcheck'
    result = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


# Forms.


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_is_one_that_github_shows_and_asks_for_versions_and_devices(path):
    form = read(path)
    assert set(form) == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w-]+", name) for name in ids)
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert field["type"] in ("textarea", "input") and field["attributes"]["label"]
        assert set(field["attributes"]) <= {"label", "description", "placeholder", "render", "value"}
    assert "`grpo-jax doctor`" in form["body"][ids.index("doctor")]["attributes"]["label"]


def test_the_commands_that_forms_name_exist():
    from grpo_jax.cli import COMMANDS

    text = "\n".join(path.read_text() for path in FORMS)
    assert set(re.findall(r"grpo-jax (\w+)", text)) <= set(COMMANDS)
    contact = read(ROOT / ".github/ISSUE_TEMPLATE/config.yml")
    assert set(contact) == {"blank_issues_enabled", "contact_links"}
    assert all(set(link) == {"name", "url", "about"} for link in contact["contact_links"])


def test_what_runs_before_a_commit_is_a_program_of_the_development_tools():
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    tools = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["optional-dependencies"]["dev"]}
    assert {hook["entry"].split()[0] for hook in hooks} <= tools
    assert [hook["entry"].split()[1] for hook in hooks] == ["check", "format"]


# Versions and dates.


def test_the_citation_is_that_of_this_version():
    citation = read(ROOT / "CITATION.cff")
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"] and citation["keywords"] == PROJECT["keywords"]
    assert citation["repository-code"] == REPOSITORY and citation["url"] == PROJECT["urls"]["Documentation"]
    assert citation["abstract"] == PROJECT["description"]


def test_the_changelog_has_a_date_and_a_link_for_each_version_the_newest_first():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (20\d\d-\d\d-\d\d)", heading) for heading in others]
    assert all(found)
    versions = [tuple(map(int, each.groups()[:3])) for each in found]
    assert versions == sorted(versions, reverse=True)
    links = dict(re.findall(r"^\[(\S+)\]: (\S+)$", text, re.MULTILINE))
    assert set(links) == {"Unreleased", *(".".join(map(str, version)) for version in versions)}
    assert all(link.startswith(f"{REPOSITORY}/") for link in links.values())


@pytest.fixture
def release(tmp_path):
    """Runs .ci/release on a copy of the files that it reads, which have been made ready for 1.2.3."""
    for name in (".ci/release", "CHANGELOG.md", "CITATION.cff", "grpo_jax/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def write(name: str, *changes: tuple[str, str]) -> None:
        text = (tmp_path / name).read_text(encoding="utf-8")
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / name).write_text(text, encoding="utf-8")

    def run(tag: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tmp_path / ".ci/release", tag], capture_output=True, text=True, check=False)

    version = re.search(r"^version: .*\n(date-released: .*\n)?", (tmp_path / "CITATION.cff").read_text(), re.MULTILINE)[
        0
    ]
    write("grpo_jax/__init__.py", (f'__version__ = "{__version__}"', '__version__ = "1.2.3"'))
    write("CHANGELOG.md", ("## [Unreleased]", "## [Unreleased]\n\n## [1.2.3] - 2026-12-31"))
    write("CITATION.cff", (version, "version: 1.2.3\ndate-released: 2026-12-31\n"))
    return run, write


def test_a_tag_of_the_version_with_its_dates_is_a_release(release):
    result = release[0]("v1.2.3")
    assert (result.returncode, result.stdout, result.stderr) == (0, "v1.2.3 is the version of 2026-12-31\n", "")


@pytest.mark.parametrize(
    ("tag", "file", "change", "words"),
    [
        ("v1.2.4", "CITATION.cff", ("1.2.3", "1.2.4"), "grpo_jax/__init__.py has the version 1.2.3: tag v1.2.3"),
        ("1.2.3", "CITATION.cff", ("1.2.3", "1.2.3"), "the tag is 1.2.3"),
        ("v1.2.3", "CHANGELOG.md", (" - 2026-12-31", ""), "CHANGELOG.md has no heading ## [1.2.3] - YEAR-MONTH-DAY"),
        ("v1.2.3", "CITATION.cff", ("1.2.3", "1.2.2"), "CITATION.cff has no line version: 1.2.3"),
        ("v1.2.3", "CITATION.cff", ("12-31", "12-30"), "CITATION.cff has no line date-released: 2026-12-31"),
    ],
)
def test_a_release_whose_parts_disagree_is_refused_with_the_part(release, tag, file, change, words):
    run, write = release
    write(file, change)
    result = run(tag)
    assert result.returncode == 1 and words in result.stderr
