"""The page on what happens when something goes wrong names tests that there are, and that `pytest -m faults` runs."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)))


def has_mark(nodes: list[ast.expr]) -> bool:
    """Whether decorators, or what a module calls pytestmark, have the mark `faults`."""
    return any(ast.unparse(inner) == "pytest.mark.faults" for node in nodes for inner in ast.walk(node))


@pytest.mark.faults
@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_the_page_names_exists_and_has_the_mark(file, name):
    body = ast.parse((TESTS / file).read_text()).body
    marks = [
        node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    tests = {node.name: node.decorator_list for node in body if isinstance(node, ast.FunctionDef)}
    assert name in tests
    assert has_mark(marks) or has_mark(tests[name])


@pytest.mark.faults
def test_every_row_of_the_tables_names_a_test():
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) > 30
    assert all("`test_" in row for row in rows)
