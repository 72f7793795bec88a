"""What is published: the wheel, the source distribution, and the page on a package index that they carry."""

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

import pytest
from hatchling.build import build_editable
from markdown_it import MarkdownIt

from grpo_jax import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONFIGS = sorted(path.name for path in (ROOT / "configs").iterdir())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder with the source distribution and the wheel, built and checked as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    built = subprocess.run(
        [ROOT / ".ci" / "build", folder],
        env=os.environ | {"PATH": scripts},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(published):
    (path,) = published.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_the_wheel_has_the_package_with_its_types_and_configs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {PurePosixPath(name) for name in archive.namelist()}
    assert {name.parts[0] for name in names} == {"grpo_jax", f"grpo_jax-{__version__}.dist-info"}
    assert sorted(name.name for name in names if name.parts[:2] == ("grpo_jax", "configs")) == CONFIGS
    sources = {path.relative_to(ROOT) for path in (ROOT / "grpo_jax").rglob("*") if path.is_file()}
    sources = {PurePosixPath(path) for path in sources if "__pycache__" not in path.parts}
    assert {name for name in names if name.parts[0] == "grpo_jax" and name.parts[1] != "configs"} == sources
    assert PurePosixPath("grpo_jax/py.typed") in names


def test_the_source_distribution_has_every_file_of_the_repository_and_no_other(published):
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("this is no clone of the repository")
    (path,) = published.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)
    files = {str(PurePosixPath(*PurePosixPath(member.name).parts[1:])) for member in members}
    expected = {name for name in tracked.stdout.split("\0") if name and (ROOT / name).exists()}
    assert files - {"PKG-INFO"} == expected


def test_an_editable_install_has_the_path_of_the_clone_and_no_copies_of_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_editable(str(tmp_path))) as archive:
        (path,) = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert path.endswith(".pth") and archive.read(path).decode().strip() == str(ROOT)


class Targets(HTMLParser):
    """Collects what the links and the pictures of a page lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = {name: value for name, value in attrs if value}
        self.links += [value for name, value in found.items() if name == "href"]
        self.pictures += [value for name, value in found.items() if name in ("src", "srcset")]


def targets(text: str) -> Targets:
    page = Targets()
    page.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    return page


def code(text: str) -> list[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or [] if child.type == "code_inline"]
    return [token.content for token in [*tokens, *inline] if token.type in ("fence", "code_inline")]


def test_links_and_pictures_of_the_page_on_an_index_lead_to_the_same_files_of_this_version(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme, description = (ROOT / "README.md").read_text(encoding="utf-8"), metadata.get_payload()
    here, there = targets(readme), targets(description)
    owner = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    prefixes = {
        "links": f"{PROJECT['urls']['Repository']}/blob/v{__version__}/",
        "pictures": f"https://raw.githubusercontent.com/{owner}/v{__version__}/",
    }
    assert here.links and here.pictures
    for kind, prefix in prefixes.items():
        for before, after in zip(getattr(here, kind), getattr(there, kind), strict=True):
            whole = before.startswith(("https://", "http://", "mailto:"))
            page = f"README.md{before}" if before.startswith("#") else before
            assert after == (before if whole else prefix + page)
            assert whole or (ROOT / page.partition("#")[0]).exists(), before
    assert code(description) == code(readme)


def test_the_metadata_name_the_authors_the_addresses_and_that_there_are_types(metadata):
    assert metadata["Author"] == PROJECT["authors"][0]["name"]
    addresses = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert addresses == PROJECT["urls"]
    assert {"Repository", "Documentation", "Changelog", "Issues"} == set(addresses)
    assert "Typing :: Typed" in metadata.get_all("Classifier")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The scripts of an environment with the wheel, and the packages of this one but for its editable installs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text("\n".join(paths))  # whose own .pth files are not read
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--force-reinstall", wheel], check=True)
    return python.parent


def elsewhere(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command in a folder that has no part of the repository."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [installed / "grpo-jax", *arguments]
    return subprocess.run(
        command, cwd=folder, env=variables | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_an_installed_wheel_knows_its_configs_in_any_folder(installed, tmp_path):
    shown = elsewhere(installed, tmp_path, "config", "travel_judged")
    assert shown.returncode == 0, shown.stderr
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    assert f"# {site}/grpo_jax/configs/travel_judged.yaml:" in shown.stdout
    assert f"# {site}/grpo_jax/configs/travel.yaml:" in shown.stdout  # its base
    missing = elsewhere(installed, tmp_path, "config", "nowhere")
    names = sorted(name.removesuffix(".yaml") for name in CONFIGS if name.endswith(".yaml"))
    assert missing.returncode == 2 and missing.stderr.endswith(f"comes with the package: {', '.join(names)}\n")


@pytest.mark.slow
@pytest.mark.long
def test_an_installed_wheel_trains_a_config_of_its_own_into_the_current_folder(installed, tmp_path):
    small = ["model.name=tiny", "model.remat=none", "train.steps=1", "train.prompts=2", "train.evaluate_every=0"]
    trained = elsewhere(
        installed, tmp_path, "train", "quickstart", *small, "rollout.responses=2", "rollout.max_tokens=4"
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert {"metrics.jsonl", "report.html"} <= {path.name for path in (tmp_path / "runs" / "quickstart").iterdir()}
