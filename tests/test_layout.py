import ast
import graphlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import grpo_jax

PACKAGE = Path(grpo_jax.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
EXAMPLES = sorted((PACKAGE.parent / "examples").glob("*.py"))  # which read like the package
LAYERS = [
    {"distribution", "network", "ranges", "redaction", "rounding"},
    {"structs"},
    {"devices", "health", "hosts", "saved"},
    {"models", "objectives", "rewards"},
    {"environments"},
    {"judges", "metrics", "optimizers", "rollout", "tasks"},
    {"algorithm"},
    {"learner", "scoring"},
    {"grpo"},
    {"evaluation"},
    {"training"},
    {"config"},
    {"report"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
HUGGING_FACE = {"transformers", "datasets", "tokenizers", "huggingface_hub", "safetensors"}


def unit(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def layer(unit_name: str) -> int:
    return next(index for index, units in enumerate(LAYERS) if unit_name in units)


def named(module: Path) -> str:
    """A file of the package by its path in it, another one by its path beside it."""
    return str(module.relative_to(PACKAGE.parent) if module.is_absolute() else module)


def imports(module: Path) -> set[str]:
    """The full names of what a file imports, anywhere in it."""
    package = ".".join(["grpo_jax", *module.parts[:-1]])
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def external(module: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)} - {"grpo_jax"}


def internal(module: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("grpo_jax.")} - {"__version__"}


def child(program: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", [module for module in MODULES if module.name != "__init__.py"], ids=str)
def test_imports_point_down(module):
    for other in internal(module):
        assert layer(other) <= layer(unit(module)), f"{module} imports grpo_jax.{other}"


def test_no_circle_of_imports_between_folders():
    graph = {}
    for module in MODULES:
        graph.setdefault(unit(module), set()).update(internal(module) - {unit(module)})
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("structs") < order.index("grpo")


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [
        ({"flax"}, ("models/",)),
        ({"orbax"}, ("saved/arrays.py", "training/checkpoint.py")),
        (HUGGING_FACE, ("tasks/", "models/")),
        ({"tensorflow_datasets"}, ("tasks/",)),
        ({"gguf"}, ("models/",)),
        ({"yaml"}, ("config/", "rewards/rubrics/")),
        ({"matplotlib", "rich"}, ("report/",)),
        ({"argparse"}, ("cli.py", "commands/")),
        (
            {"jax", "flax", "optax"},
            (
                "__init__",
                "structs",
                "distribution",
                "algorithm",
                "grpo",
                "scoring",
                "metrics",
                "optimizers",
                "rounding",
                "commands/",
                "devices/",
                "evaluation/",
                "hosts/",
                "judges/",
                "learner/",
                "models/",
                "objectives/",
                "rollout/",
                "saved/",
                "training/",
            ),
        ),
    ],
    ids=lambda value: ",".join(sorted(value)) if isinstance(value, set) else "",
)
@pytest.mark.slow
def test_a_package_is_imported_only_where_it_belongs(packages, allowed):
    strays = [str(module) for module in MODULES if external(module) & packages and not str(module).startswith(allowed)]
    assert strays == []
    assert any(external(module) & packages for module in MODULES)


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in project["dependencies"]}
    distributions = packages_distributions()
    for package in sorted({name for module in MODULES for name in external(module)} - sys.stdlib_module_names):
        assert declared & {name.lower().replace("_", "-") for name in distributions[package]}, package


def test_plain_modules_import_no_jax():
    plain = "grpo_jax, grpo_jax.cli, grpo_jax.config, grpo_jax.tasks, grpo_jax.rewards, grpo_jax.environments"
    loaded = child(f"import sys, {plain}; print(*sys.modules)").split()
    assert {"jax", "flax", "transformers", "datasets", "tensorflow_datasets"}.isdisjoint(loaded)


def test_importing_every_module_starts_no_backend():
    """The number of CPU devices can be set only until a backend has started."""
    names = [
        ".".join(["grpo_jax", *module.with_suffix("").parts]) for module in MODULES if module.name != "__main__.py"
    ]
    lines = [f"import {name.removesuffix('.__init__')}" for name in names]
    lines += ["import jax", "jax.config.update('jax_num_cpu_devices', 3)", "print(jax.device_count())"]
    assert child("\n".join(lines)).strip() == "3"


def test_no_linter_is_silenced_in_the_package():
    silencers = [f"# {word}" for word in ("noqa", "type: ignore", "fmt: off", "nosec")]
    assert [
        str(module)
        for module in [*MODULES, *EXAMPLES]
        if any(word in (PACKAGE / module).read_text() for word in silencers)
    ] == []


# How the code reads.

LEGEND = (PACKAGE / "structs.py").read_text().split('"""')[1]
LETTERS = set(re.findall(r"(?:^|  )([A-Z12]) (?=[a-z])", LEGEND, re.MULTILINE))


def functions(module: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_an_example_is_read_in_one_sitting():
    assert EXAMPLES
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 300
        assert max(node.end_lineno - node.lineno + 1 for node in functions(path)) <= 45


def nearly_all(sizes: list[int]) -> int:
    """The size that nine of ten do not exceed."""
    return sorted(sizes)[int(0.9 * len(sizes))]


def test_a_file_fits_in_a_sitting():
    sizes = {str(module): len((PACKAGE / module).read_text().splitlines()) for module in MODULES}
    assert {module: size for module, size in sizes.items() if size > 400} == {}
    assert nearly_all(list(sizes.values())) <= 300


def test_a_function_fits_on_a_screen():
    found = [
        (f"{module}:{node.name}", node.end_lineno - node.lineno + 1) for module in MODULES for node in functions(module)
    ]
    assert [(name, size) for name, size in found if size > 45] == []
    assert nearly_all([size for _, size in found]) <= 25


def test_the_page_of_the_algorithm_names_no_device():
    text = (PACKAGE / "grpo.py").read_text().lower()
    assert [word for word in ("mesh", "host", "sharding", "layout", "shares") if word in text] == []
    assert len(text.splitlines()) <= 140


def test_the_step_is_its_four_functions_in_order():
    step = next(node for node in functions(Path("grpo.py")) if node.name == "step")
    calls = [node for node in ast.walk(step) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    names = [call.func.id for call in sorted(calls, key=lambda call: call.lineno)]
    assert [name for name in names if name.islower() and name != "int"] == ["sample", "score", "prepare", "update"]


def axes(name: str) -> str | None:
    """The axes that the name of an array ends in; None where it is the name of something else."""
    found = re.fullmatch(r"_?[a-z][a-z0-9_]*_([A-Za-z0-9]+)", name)
    known = found is not None and any(letter.isupper() for letter in found[1])
    return found[1] if known else None


@pytest.mark.parametrize("module", [*MODULES, *EXAMPLES], ids=named)
def test_every_axis_has_its_letter_in_the_legend(module):
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for name in names:
        for letter in axes(name) or "":
            assert letter.upper() in LETTERS, f"{name}: {letter} is not in the legend of structs.py"


@pytest.mark.parametrize("module", [*MODULES, *EXAMPLES], ids=named)
def test_every_public_name_has_a_docstring(module):
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) is not None or not tree.body
    missing = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        overloaded = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
        missing += [node.name] if ast.get_docstring(node) is None and not overloaded else []
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                missing += [f"{node.name}.{inner.name}"] if ast.get_docstring(inner) is None else []
    assert missing == []


def test_only_the_rollout_folder_asks_what_kind_of_engine_it_has():
    strays = [
        str(module)
        for module in MODULES
        if module.parts[0] != "rollout" and re.search(r"isinstance\([^)]*Sampler", (PACKAGE / module).read_text())
    ]
    assert strays == []


def test_the_public_names_are_all_there():
    verbs = {"load", "init", "sample", "score", "prepare", "update", "step", "train", "evaluate"}
    nouns = {"Algorithm", "Sampler", "Example", "Task", "objectives", "rewards", "tasks"}
    assert verbs | nouns <= set(dir(grpo_jax))
    assert not {"keep_pages", "chosen_tokens", "Watch"} & set(dir(grpo_jax))
    for name in grpo_jax.__all__:
        assert getattr(grpo_jax, name) is not None
