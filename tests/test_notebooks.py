"""The notebooks as their readers get them, and run from top to bottom, each in a kernel of its own."""

import ast
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import jax
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

import grpo_jax
from grpo_jax.hosts.telling import redraws

pytestmark = pytest.mark.slow  # runs notebooks

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
OWNER_AND_NAME = ADDRESS.removeprefix("https://github.com/")
COLAB = (
    "Open in Colab",
    "https://colab.research.google.com/assets/colab-badge.svg",
    f"https://colab.research.google.com/github/{OWNER_AND_NAME}/blob/main/notebooks/",
)
KAGGLE = (
    "Open in Kaggle",
    "https://kaggle.com/static/images/open-in-kaggle.svg",
    f"https://www.kaggle.com/kernels/welcome?src={ADDRESS}/blob/main/notebooks/",
)
THERE = {"grpo_jax", "jax", "matplotlib", "IPython"}  # on Colab and Kaggle, once the package is installed
PLACES = {"colab_gsm8k": "/content/drive", "kaggle_gsm8k": "/kaggle/"}  # that exist on their platform alone
QUICK = {"GRPO_JAX_NOTEBOOK_SMOKE": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # they mostly compile
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # there is no ipywidgets here
HELD = "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def to_run(notebook, ids=None):
    """The cells with code after the installation, or those of them that are named."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and (ids is None or cell.id in ids)]
    return [cell for cell in cells if "skip" not in cell.metadata.get("tags", [])]


def commands_checked(cells, status):
    """The cells, each that calls commands followed by one that fails unless the last of them ended with `status`."""
    for cell in cells:
        yield cell
        if re.search(r"^ *!", cell.source, re.MULTILINE):
            yield nbformat.v4.new_code_cell(f"assert _exit_code == {status}, _exit_code")


def execute(notebook, folder, extra, ids=None, status=0):
    """The notebook with its outputs. The kernel shares the tests' compilation cache, not their eight devices."""
    notebook.cells = list(commands_checked(to_run(notebook, ids), status))
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    folders = {"PATH": [Path(sys.executable).parent], "PYTHONPATH": [ROOT]}  # of grpo-jax, and of the package itself
    environment |= {
        name: os.pathsep.join([*map(str, first), environment.get(name, "")]).rstrip(os.pathsep)
        for name, first in folders.items()
    }
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return NotebookClient(notebook, timeout=600).execute(cwd=str(folder), env=environment | cache | QUIET | extra)


def printed(notebook, stream="stdout"):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.data for output in outputs if output.output_type == "display_data")


def program(notebook):
    """What runs after the installation as Python, as IPython translates commands and magics, with written modules."""
    sources = [cell.source for cell in to_run(notebook)]
    written = [re.match(r"%%writefile (?:-a )?\w+\.py\n(.*)", source, re.DOTALL) for source in sources]
    modules = [match[1] for match in written if match]
    return "\n".join([*map(TransformerManager().transform_cell, sources), *modules])


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


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def replaced(notebook, old, new):
    """The notebook, in which a text that stands in it once is another."""
    [cell] = [cell for cell in notebook.cells if old in cell.source]
    assert cell.source.count(old) == 1
    cell.source = cell.source.replace(old, new)
    return notebook


@pytest.fixture
def folder(tmp_path):
    """A folder with a copy of GSM8K, of ten problems."""
    (tmp_path / "gsm8k").mkdir()
    rows = [(f"Tom has {n} nuts, and {n} more. How many?", f"{n} + {n} = {2 * n}\n#### {2 * n}") for n in range(10)]
    for split, part in {"train": rows[:8], "test": rows[8:]}.items():
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in part]
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def check_run(notebook, folder):
    """Runs a notebook with a small setting: no command fails, nothing warns, and every picture is drawn."""
    drawn = sum(cell.source.count("plt.show()") for cell in notebook.cells)
    notebook = execute(notebook, folder, QUICK)
    assert "Warning" not in printed(notebook, "stderr")
    assert pictures(notebook) == drawn
    return printed(notebook)


def test_grpo_on_one_page_runs(tmp_path):
    text = check_run(read("grpo_on_one_page"), tmp_path)
    assert text.count("step   3 ") == 2


def test_your_own_reward_runs_and_finds_how_it_can_be_fooled(tmp_path):
    text = check_run(read("your_own_reward"), tmp_path)
    before, after = text.split("Appending to my_rewards.py")
    assert before.count("<- it can be fooled so") == 3 and after.count("<- it can be fooled so") == 1
    assert "1.00  Go to Dotonbori" in before and "1.00  dotonbori" in before
    assert "step 2/2" in after


def test_read_a_run_runs(tmp_path):
    text = check_run(read("read_a_run"), tmp_path)
    assert text.count("step 2/2") == 2 and "metrics.jsonl" in text
    assert (tmp_path / "comparison.html").stat().st_size > 10_000


def test_colab_gsm8k_runs_and_leaves_the_device_to_its_commands(folder):
    notebook = read("colab_gsm8k")
    notebook.cells.append(nbformat.v4.new_code_cell(HELD))
    text = check_run(notebook, folder)
    assert "1 x cpu" in text and "It fits" in text and "step 2/2" in text
    assert "\033" not in text  # plain lines
    assert "model.safetensors" in text.splitlines()[-1]
    assert (folder / "drive" / "gsm8k-model-2" / "config.json").is_file()


@pytest.mark.long
def test_colab_gsm8k_goes_on_after_a_disconnect(folder):
    beginning = {"settings", "drive", "train"}
    execute(read("colab_gsm8k"), folder, QUICK, beginning)
    later = replaced(read("colab_gsm8k"), "train.steps=2 ", "train.steps=3 ")
    text = printed(execute(later, folder, QUICK, beginning))
    assert "step 3/3" in text and "step 1/3" not in text


def test_kaggle_gsm8k_runs_on_eight_devices(folder):
    notebook = replaced(read("kaggle_gsm8k"), " mesh.fsdp=1", "")
    notebook.cells.append(nbformat.v4.new_code_cell(HELD))
    drawn = sum(cell.source.count("plt.show()") for cell in notebook.cells)
    flags = f"{QUICK['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = execute(notebook, folder, QUICK | {"XLA_FLAGS": flags})
    assert "8 x cpu" in printed(done) and "fsdp 8" in printed(done) and "step 2/2" in printed(done)
    assert pictures(done) == drawn
    assert (folder / "model" / "config.json").is_file()


@pytest.mark.long
def test_kaggle_gsm8k_stops_in_time_and_goes_on_from_its_output_in_the_next_session(folder, tmp_path_factory):
    training = {"settings", "attached", "earlier", "train"}
    first = replaced(read("kaggle_gsm8k"), "HOURS = 8 ", "HOURS = 0.01 ")  # 36 seconds
    first = replaced(first, "train.steps=2 ", "train.steps=1000000 ")
    text = printed(execute(first, folder, QUICK, training, status=75))
    done = max([0, *(int(step) for step in re.findall(r"step +(\d+)/1000000", text))])
    assert "runs/gsm8k is new" in text
    second, output = tmp_path_factory.mktemp("second"), folder
    (second / "gsm8k").symlink_to(folder / "gsm8k")
    later = replaced(read("kaggle_gsm8k"), "/kaggle/input", str(output))
    text = printed(execute(replaced(later, "train.steps=2 ", f"train.steps={done + 1} "), second, QUICK, training))
    assert "runs/gsm8k goes on" in text
    assert re.findall(r"step +(\d+)/", text) == [str(done + 1)]


@pytest.mark.long
def test_grpo_on_one_page_teaches_the_model_its_letters(tmp_path):
    notebook = read("grpo_on_one_page")
    notebook.cells.append(nbformat.v4.new_code_cell("print(rewards[0], sum(rewards[-10:]) / 10)"))
    done = execute(notebook, tmp_path, {"GRPO_JAX_NOTEBOOK_SMOKE": "0"})
    first, last = map(float, done.cells[-1].outputs[0].text.split())
    assert first < 0.1
    assert last > 0.8
    assert "after 'ffff'" in printed(done)


def test_a_notebook_is_small_and_has_no_outputs(path, notebook):
    assert path.stat().st_size < 100_000
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


def test_the_badge_opens_this_file_of_the_repository_that_is_installed(path, notebook):
    [(label, image, link)] = re.findall(r"\[!\[(.+?)\]\((.+?)\)\]\((.+?)\)", notebook.cells[0].source)
    platform = KAGGLE if path.stem.startswith("kaggle") else COLAB
    assert (label, image, link) == (*platform[:2], platform[2] + path.name)
    [install] = [cell.source for cell in notebook.cells if "skip" in cell.metadata.get("tags", [])]
    assert install == f'%pip install -q "grpo-jax @ git+{ADDRESS}"'


def test_the_page_about_notebooks_opens_each_on_its_platform(path):
    platform = KAGGLE if path.stem.startswith("kaggle") else COLAB
    link = f"]({platform[2]}{path.name})"
    [row] = [line for line in (ROOT / "docs" / "notebooks.md").read_text().splitlines() if link in line]
    assert row.startswith(f"| [{path.stem}](../notebooks/{path.name}) |")


def test_links_into_the_repository_lead_to_files(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    linked = re.findall(r"https://github\.com/[\w./-]+", text)
    assert linked, "a notebook says where to read on"
    assert [link for link in linked if not link.startswith(f"{ADDRESS}/blob/main/")] == []
    assert [link for link in linked if not (ROOT / link.removeprefix(f"{ADDRESS}/blob/main/")).is_file()] == []


def test_a_notebook_asks_for_its_device(path, notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    if path.stem == "kaggle_gsm8k":
        assert notebook.metadata.kaggle.accelerator == "tpuV5e8"
        assert notebook.metadata.kaggle.isInternetEnabled is True
    elif path.stem in ("colab_gsm8k", "grpo_on_one_page"):
        assert (notebook.metadata.accelerator, notebook.metadata.colab.gpuType) == ("TPU", "V5E1")
    else:
        assert "accelerator" not in notebook.metadata  # a CPU does


def test_a_notebook_needs_only_the_public_api_and_what_its_platform_has(path, notebook):
    code = program(notebook)
    written = set(re.findall(r"%%writefile (\w+)\.py", "\n".join(cell.source for cell in notebook.cells)))
    others = {name.partition(".")[0] for name in modules(code)} - sys.stdlib_module_names - written
    assert others <= THERE | ({"google"} if path.stem == "colab_gsm8k" else set())
    assert attributes(code, of="gj") <= set(grpo_jax.__all__)
    names = attributes(code) | {part for name in modules(code) for part in name.split(".")}
    assert [name for name in names if name.startswith("_") and not name.startswith("__")] == []


def test_a_notebook_names_no_place_on_a_machine_but_those_of_its_platform(path, notebook):
    for cell in notebook.cells:
        found = re.findall(r"(?:^|[\s\"'(=`])((?:/|~/|[A-Za-z]:\\)\w[\w/]*)", cell.source, re.MULTILINE)
        place = PLACES.get(path.stem)
        assert [each for each in found if place is None or not each.startswith(place)] == [], cell.source


@pytest.mark.parametrize(
    ("term", "terminal", "expected"),
    [("xterm-256color", True, True), ("dumb", True, False), ("xterm-256color", False, False)],
)
def test_lines_are_drawn_anew_on_terminals_that_can_do_so(monkeypatch, term, terminal, expected):
    monkeypatch.setenv("TERM", term)
    assert redraws(terminal) is expected
