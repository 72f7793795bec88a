"""The notebook as its readers get it, and run from top to bottom in a kernel of its own."""

import ast
import os
import re
import sys
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import grpo_jax

pytestmark = pytest.mark.slow  # runs notebooks

ROOT = Path(__file__).parents[1]
PATH = ROOT / "notebooks" / "grpo_on_one_page.ipynb"
QUICK = {"GRPO_JAX_NOTEBOOK_SMOKE": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # it mostly compiles


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture
def code(notebook):
    """What runs after the installation, as one program."""
    return "\n".join(cell.source for cell in to_run(notebook))


def to_run(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and "skip" not in cell.metadata.get("tags", [])]


def execute(notebook, folder, extra):
    """The notebook with its outputs. The kernel shares the tests' compilation cache, not their eight devices."""
    notebook.cells = to_run(notebook)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return NotebookClient(notebook, timeout=600).execute(cwd=str(folder), env=environment | cache | extra)


def printed(notebook, stream="stdout"):
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


def modules(code):
    """The full names of all that is imported."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def attributes(code, of=None):
    """The names that follow a dot, anywhere or after the name `of`."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if of is None or ast.unparse(node.value) == of}


def test_the_notebook_runs_in_a_few_steps_without_a_warning(notebook, tmp_path):
    done = execute(notebook, tmp_path, QUICK | {"PYTHONWARNINGS": "ignore:IProgress not found"})  # no ipywidgets
    assert "Warning" not in printed(done, "stderr")
    assert printed(done).count("step   3 ") == 2
    assert sum(output.output_type == "display_data" for cell in done.cells for output in cell.outputs) == 2


@pytest.mark.long
@pytest.mark.slow
def test_the_notebook_teaches_the_model_its_letters(notebook, tmp_path):
    notebook.cells.append(nbformat.v4.new_code_cell("print(rewards[0], sum(rewards[-10:]) / 10)"))
    done = execute(notebook, tmp_path, {"GRPO_JAX_NOTEBOOK_SMOKE": "0"})
    first, last = map(float, done.cells[-1].outputs[0].text.split())
    assert first < 0.1
    assert last > 0.8
    assert "after 'ffff'" in printed(done)


def test_the_notebook_is_small_and_has_no_outputs(notebook):
    assert PATH.stat().st_size < 100_000
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


def test_the_badge_opens_this_file_of_the_repository_that_is_installed(notebook):
    [[image, link]] = re.findall(r"\[!\[Open in Colab\]\((.+?)\)\]\((.+?)\)", notebook.cells[0].source)
    [install] = [cell.source for cell in notebook.cells if "skip" in cell.metadata.get("tags", [])]
    repository = re.fullmatch(r'%pip install -q "grpo-jax @ git\+https://github\.com/([\w-]+/[\w-]+)"', install)[1]
    assert image == "https://colab.research.google.com/assets/colab-badge.svg"
    assert link == f"https://colab.research.google.com/github/{repository}/blob/main/{PATH.relative_to(ROOT)}"


def test_the_notebook_asks_for_a_tpu(notebook):
    assert notebook.metadata.accelerator == "TPU"
    assert notebook.metadata.colab.gpuType == "V5E1"
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_notebook_needs_only_the_public_api_and_what_colab_has(code):
    others = {name.partition(".")[0] for name in modules(code)} - sys.stdlib_module_names
    assert others == {"grpo_jax", "jax", "matplotlib"}
    assert attributes(code, of="gj") <= set(grpo_jax.__all__)
    names = attributes(code) | {part for name in modules(code) for part in name.split(".")}
    assert [name for name in names if name.startswith("_")] == []


def test_the_notebook_names_no_place_on_a_machine(notebook):
    for cell in notebook.cells:
        assert not re.search(r"(?:^|[\s\"'(=])(?:/|~/|[A-Za-z]:\\)\w", cell.source, re.MULTILINE), cell.source
