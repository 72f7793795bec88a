"""A reward for code that passes unit tests. The code of a response is untrusted, so it runs in a sandbox.

The sandbox is bubblewrap: `apt-get install bubblewrap` on Debian and Ubuntu. A run is refused on a machine where a
program in it gets out of it. `sandbox: unsafe` runs the code as what it is, with limits and without walls.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.isolation import require_isolation
from grpo_jax.rewards.sandbox import MOST_TEXT, Calls, Kind, Limits, run_code, written_calls
from grpo_jax.rewards.unit_tests import UnitTests, read_tests

_BLOCK = re.compile(r"```(?:[pP]ython3?|py)?[ \t]*\r?\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class PassesTests:
    """1 if the code in the response passes all unit tests of a column, and 0 otherwise.

    The code is the last fenced block of the response, or else the whole response; it has Python's standard library. The
    column holds assert statements, or a list of those and of mappings with `input` and `output`. A test is a call and
    its value: the code sees the call, and what it returns is compared outside of the sandbox.
    """

    tests: str = "tests"  # column
    entry_point: str = "entry_point"  # column with the name that check(candidate) tests; may be missing
    sandbox: Kind = "bubblewrap"  # unsafe: none, so code can do whatever you can
    partial: bool = False  # the share of tests that are passed, instead of 1 or 0
    seconds: float = 5.0  # for all calls together, or for one program
    memory: int = 512  # MiB
    output: int = 65536  # bytes

    def __post_init__(self) -> None:
        if self.sandbox not in get_args(Kind):
            raise ValueError(f"sandbox must be {' or '.join(get_args(Kind))}; got {self.sandbox!r}.")
        check_range("seconds", self.seconds, above=0, most=3600)
        check_range("memory", self.memory, least=64, most=2**20)
        check_range("output", self.output, least=1, most=2**30)

    def check(self, example: Example) -> None:
        """Refuses tests that cannot be read or that miss something in the sandbox, and a sandbox that does not hold."""
        tests = self._tests(example)
        if len(written_calls(_calls(tests))) > MOST_TEXT:
            raise ValueError(f"The tests of {example.label} are longer than {MOST_TEXT} characters: use fewer of them.")
        if self.sandbox == "bubblewrap":
            require_isolation()
        try:
            _require_imports(tests.imports, self.sandbox, self._limits)
        except ValueError as error:
            raise ValueError(
                f"Of the tests of {example.label}, {error}. There is only the standard library."
            ) from error

    def __call__(self, example: Example, response: str) -> float:
        """1, 0, or the share of tests that are passed."""
        if self.sandbox == "bubblewrap":
            require_isolation()
        tests, code = self._tests(example), written_code(response)
        if not _fits(code):
            return 0.0
        passed = itertools.chain(self._called(tests, code), self._printed(tests, code))
        if self.partial:
            return sum(passed) / (len(tests.calls) + len(tests.programs))
        return float(all(passed))  # programs after the first that fails are not run

    def _tests(self, example: Example) -> UnitTests:
        try:
            return read_tests(example.columns.get(self.tests), example.columns.get(self.entry_point))
        except ValueError as error:
            raise ValueError(
                f"PassesTests reads tests in column {self.tests!r} of {example.label}: {error}."
            ) from error

    @property
    def _limits(self) -> Limits:
        return Limits(self.seconds, self.memory * 1024**2, self.output)

    def _called(self, tests: UnitTests, code: str) -> Iterator[bool]:
        if tests.calls:
            outcome = run_code(self.sandbox, self._limits, code, _calls(tests))
            lines = [] if outcome.output is None else outcome.output.decode("utf-8", "replace").splitlines()
            results = dict(line.split(" ", maxsplit=1) for line in lines if " " in line)
            yield from (call.holds(results.get(str(number), "")) for number, call in enumerate(tests.calls))

    def _printed(self, tests: UnitTests, code: str) -> Iterator[bool]:
        for program in tests.programs:
            outcome = run_code(self.sandbox, self._limits, code, stdin=program.stdin)
            text = None if outcome.output is None else outcome.output.decode("utf-8", "replace")
            yield text is not None and outcome.status == 0 and program.holds(text)


def _calls(tests: UnitTests) -> Calls:
    return Calls(tuple(call.source for call in tests.calls), tests.imports, tests.setup)


@functools.lru_cache(maxsize=1024)
def _require_imports(imports: str, sandbox: Kind, limits: Limits) -> None:
    """Refuses imports that fail in the sandbox. Many examples have the same ones, or none."""
    if imports:
        run_code(sandbox, limits, "", Calls(("None",), imports))


def written_code(response: str) -> str:
    """The last fenced block of a response, or else the whole response."""
    blocks = _BLOCK.findall(response)
    return blocks[-1] if blocks else response


def _fits(code: str) -> bool:
    """Whether the text can be an argument of a program: not too long, no NUL, no half of a surrogate pair."""
    try:
        return len(code.encode()) <= MOST_TEXT and "\0" not in code
    except UnicodeEncodeError:
        return False
