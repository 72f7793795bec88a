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
LAYERS = [
    {"distribution", "network"},
    {"structs"},
    {"devices", "hosts"},
    {"models", "objectives", "rewards"},
    {"learner", "metrics", "optimizers", "rollout", "tasks"},
    {"algorithm"},
    {"grpo"},
    {"training"},
    {"config"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
HUGGING_FACE = {"transformers", "datasets", "tokenizers", "huggingface_hub", "safetensors"}


def unit(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def layer(unit_name: str) -> int:
    return next(index for index, units in enumerate(LAYERS) if unit_name in units)


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
        ({"orbax"}, ("training/checkpoint.py",)),
        (HUGGING_FACE, ("tasks/", "models/")),
        ({"tensorflow_datasets"}, ("tasks/",)),
        ({"gguf"}, ("models/",)),
        ({"yaml"}, ("config/",)),
        ({"argparse"}, ("cli.py", "commands/")),
        (
            {"jax", "flax", "optax"},
            (
                "__init__",
                "structs",
                "distribution",
                "algorithm",
                "grpo",
                "metrics",
                "optimizers",
                "commands/",
                "devices/",
                "hosts/",
                "learner/",
                "models/",
                "objectives/",
                "rollout/",
                "training/",
            ),
        ),
    ],
    ids=lambda value: ",".join(sorted(value)) if isinstance(value, set) else "",
)
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
    plain = "grpo_jax, grpo_jax.cli, grpo_jax.config, grpo_jax.tasks, grpo_jax.rewards"
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
        str(module) for module in MODULES if any(word in (PACKAGE / module).read_text() for word in silencers)
    ] == []
