"""Unit tests as data: calls with what they should return, and programs with what they should print.

Tests of data sets are `assert` statements. Run beside the code that they test they can be passed by changing `==`,
leaving early or reading what is expected. So each is divided: the call runs in the sandbox, and what comes back is
compared outside.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FORMS = "assert CALL == VALUE, assert CALL, assert not CALL, or assert abs(CALL - VALUE) < VALUE"
MISSING = object()


@dataclass(frozen=True)
class Call:
    """An expression, the value that it should have, and how far a number may be from that."""

    source: str
    expected: Any
    tolerance: float = 0.0

    def holds(self, text: str) -> bool:
        """Whether a literal, as the sandbox wrote it, is the value."""
        try:
            value = ast.literal_eval(text)
            if self.tolerance:
                return isinstance(value, int | float) and abs(value - self.expected) <= self.tolerance
            return bool(value == self.expected)
        except (ArithmeticError, TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
            return False  # such as {[]}, which no list can be in, or a whole number that is too large for a float


@dataclass(frozen=True)
class Program:
    """What a program reads, and what it should print; white space at the ends of lines does not count."""

    stdin: str
    stdout: str

    def holds(self, text: str) -> bool:
        """Whether a program printed that."""
        return _lines(text) == _lines(self.stdout)


@dataclass(frozen=True)
class UnitTests:
    """The tests of one example. `imports` are run before the code, and the other statements, `setup`, after it."""

    imports: str
    setup: str
    calls: tuple[Call, ...]
    programs: tuple[Program, ...]


def read_tests(value: Any, entry_point: object = None) -> UnitTests:
    """The tests in a column: Python text, or a list of such texts and of mappings with `input` and `output`.

    A function `check(candidate)`, as HumanEval has it, tests the function that `entry_point` names.
    """
    items = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(f"expected Python text or a list of tests; got {str(value)[:80]!r}")
    statements = [statement for item in items if isinstance(item, str) for statement in _statements(item, entry_point)]
    calls = tuple(_call(each.test) for each in statements if isinstance(each, ast.Assert))
    others = [each for each in statements if not isinstance(each, ast.Assert)]
    imports = [ast.unparse(each) for each in others if isinstance(each, ast.Import | ast.ImportFrom)]
    setup = [ast.unparse(each) for each in others if not isinstance(each, ast.Import | ast.ImportFrom)]
    programs = tuple(_program(item) for item in items if not isinstance(item, str))
    if not calls and not programs:
        raise ValueError(f"there is no test in {str(value)[:80]!r}; tests have the form {FORMS}")
    return UnitTests("\n".join(imports), "\n".join(setup), calls, programs)


def _program(item: Any) -> Program:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("input", "output")):
        raise ValueError(f"a test is Python text or a mapping with the texts input and output; got {str(item)[:80]!r}")
    return Program(item["input"], item["output"])


def _statements(text: str, entry_point: object) -> Iterable[ast.stmt]:
    """The top-level statements, and in place of a function `check` those in it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"not Python: {error}, in {text[:80]!r}") from error
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name="check", args=ast.arguments(args=[ast.arg(arg=candidate)]), body=body):
                if not isinstance(entry_point, str):
                    raise ValueError("tests with check(candidate) need the name of the function in entry_point")
                named = [_Renamed(candidate, entry_point).visit(inner) for inner in body]
            case ast.Expr(value=ast.Call(func=ast.Name(id="check"))):
                named = []
            case _:
                named = [statement]
        yield from map(_flat, named)


def _flat(statement: ast.stmt) -> ast.stmt:
    if not isinstance(statement, ast.Assert) and any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
        raise ValueError(f"tests stand one below the other, not inside of {ast.unparse(statement)[:80]!r}")
    return statement


class _Renamed(ast.NodeTransformer):
    """Replaces one name by another."""

    def __init__(self, old: str, new: str):
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        """The name, or the other one in its place."""
        return ast.Name(self.new, node.ctx) if node.id == self.old else node


def _call(test: ast.expr) -> Call:
    """An asserted expression as a call and its value."""
    match test:
        case ast.Compare(left=left, ops=[ast.Eq() | ast.Is()], comparators=[right]):
            for call, value in ((left, _literal(right)), (right, _literal(left))):
                if value is not MISSING:
                    return Call(ast.unparse(call), value)
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=call, op=ast.Sub(), right=right)]),
            ops=[ast.Lt() | ast.LtE()],
            comparators=[most],
        ):
            value, tolerance = _literal(right), _literal(most)
            if isinstance(value, int | float) and isinstance(tolerance, int | float):
                return Call(ast.unparse(call), value, float(tolerance))
        case ast.UnaryOp(op=ast.Not(), operand=call):
            return Call(f"bool({ast.unparse(call)})", False)
        case ast.Call():
            return Call(f"bool({ast.unparse(test)})", True)
    raise ValueError(
        f"{ast.unparse(test)[:80]!r} would be compared in the sandbox, where the code that it tests can change the"
        f" comparison. Write {FORMS}"
    )


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return MISSING


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
