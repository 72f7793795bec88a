"""Code of responses runs in a sandbox: it passes tests by what it computes, and reaches nothing outside."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from grpo_jax.rewards import Example, PassesTests, check_examples, isolation, sandbox, seccomp
from grpo_jax.rewards.code import written_code
from grpo_jax.rewards.unit_tests import read_tests

pytestmark = pytest.mark.faults


def why_no_sandbox() -> str:
    """Why bubblewrap cannot be tried on this machine, whose kernel may forbid user namespaces; empty if it can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "" if ended.returncode == 0 else f"bubblewrap does not start on this machine: {ended.stderr.strip()}"


NO_SANDBOX = why_no_sandbox()
needs_bwrap = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX)
DOUBLE = Example("Write f(x), twice x.", columns={"tests": ["assert f(2) == 4", "assert f(-5) == -10"]})
GOOD = "Here it is:\n```python\ndef f(x):\n    return 2 * x\n```\nIt doubles."
SECRET = "31415926535897932384626433832795"


def passes(tests, code, **settings):
    return PassesTests(**settings)(Example("q", columns={"tests": tests}), code)


# Unit tests as data


@pytest.mark.parametrize(
    ("text", "source", "expected", "tolerance"),
    [
        ("assert f(2) == [1, (2,), {'a'}]", "f(2)", [1, (2,), {"a"}], 0),
        ("assert -4 == f(2), 'twice'", "f(2)", -4, 0),
        ("assert set(f(2)) == {1, 2}", "set(f(2))", {1, 2}, 0),
        ("assert f(2) is None", "f(2)", None, 0),
        ("assert f(2)", "bool(f(2))", True, 0),
        ("assert not f(2)", "bool(f(2))", False, 0),
        ("assert abs(f(2) - 1.5) < 1e-6", "f(2)", 1.5, 1e-6),
    ],
)
def test_an_assert_is_divided_into_a_call_and_its_value(text, source, expected, tolerance):
    (call,) = read_tests(text).calls
    assert (call.source, call.expected, call.tolerance) == (source, expected, tolerance)


def test_tests_as_humaneval_has_them_call_the_function_by_its_name():
    body = "    x = 3\n    assert candidate(1) == 2\n    assert candidate(x=2) == 4\n"
    text = f"import math\ndef check(candidate):\n{body}check(f)"
    tests = read_tests(text, "double")
    assert [call.source for call in tests.calls] == ["double(1)", "double(x=2)"]
    assert (tests.imports, tests.setup) == ("import math", "x = 3")
    with pytest.raises(ValueError, match="entry_point"):
        read_tests(text)


def test_a_value_is_compared_outside_and_only_as_plain_data():
    (exact,), (near,) = read_tests("assert f() == [1, 2]").calls, read_tests("assert abs(f() - 1) <= 0.5").calls
    assert exact.holds("[1, 2]") and exact.holds("[1.0, 2]")
    assert not any(map(exact.holds, ["", "(1, 2)", "[1, 2", "[" * 10_000, "__import__('os')", "1" * 5000]))
    odd = ["{[1]}", "{[1]: 2}", "1" + "0" * 400, "-" * 60_000 + "1", "1j", "b''", "{1: {}}", "{**1}", "'\\N{'", "\x00"]
    assert not any(map(exact.holds, odd)) and not any(map(near.holds, odd))
    assert near.holds("1.4") and not near.holds("1.6") and not near.holds("'1'") and not near.holds("1e999")


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        (None, "got 'None'"),
        ([], "list of tests"),
        ("x = 1", "there is no test"),
        ("assert f(", "not Python"),
        ("assert f(2) < 3", "compared in the sandbox"),
        ("assert f(2) == g(2)", "compared in the sandbox"),
        ("assert f(1) == 1 and f(2) == 2", "compared in the sandbox"),
        ("for n in range(3):\n    assert f(n) == 2", "one below the other"),
        ([{"input": "1"}], "input and output"),
        ([3], "input and output"),
    ],
)
def test_tests_that_cannot_be_held_outside_are_refused_with_their_place(tests, words):
    example = Example("q", columns={"tests": tests}, source="rows.jsonl:4")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:4: reward PassesTests .*{words}"):
        check_examples(PassesTests(sandbox="unsafe"), [example], "training")


def test_the_tests_of_the_page_are_read():
    page = (Path(__file__).parents[1] / "docs" / "verifiers.md").read_text()
    rows = [
        json.loads(line) for block in re.findall("```json\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
    ]
    kinds = [(len(tests.calls), len(tests.programs)) for tests in (read_tests(row["tests"]) for row in rows)]
    assert kinds == [(2, 0), (0, 1)]


def test_the_last_fenced_block_is_the_code():
    assert written_code("```\na\n```\nno:\n```python\nb\n```\n") == "b\n"
    assert written_code("a = 1") == "a = 1"


def test_limits_out_of_range_are_refused():
    for wrong in ({"seconds": 0.0}, {"memory": 1}, {"output": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            PassesTests(**wrong)
    with pytest.raises((TypeError, ValueError), match="sandbox"):
        PassesTests(sandbox="none")


# The filter of system calls, run by an interpreter of its own


def refuses(program, architecture, number):
    """What the kernel would do with a system call: the jumps of the filter, followed one by one."""
    value, line = 0, 0
    while True:
        code, on_true, on_false, k = struct.unpack_from("=HBBI", program, 8 * line)
        line += 1
        match code:
            case 0x20:
                value = {0: number, 4: architecture}[k]
            case 0x15:
                line += on_true if value == k else on_false
            case 0x35:
                line += on_true if value >= k else on_false
            case 0x06:
                return {0x7FFF0000: "allowed", 0x00050001: "refused", 0x80000000: "killed"}[k]


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_refuses_what_is_listed_and_nothing_else(machine):
    program = seccomp.filter_program(machine)
    column, architecture = seccomp.MACHINES[machine]
    listed = {pair[column] for pair in seccomp.REFUSED.values()}
    for number in range(500):
        assert refuses(program, architecture, number) == ("refused" if number in listed else "allowed")
    assert refuses(program, architecture, 0x40000001) == "refused"  # x32
    assert refuses(program, 0x40000003, 1) == "killed"  # 32 bits


def test_a_machine_without_a_filter_is_refused():
    with pytest.raises(OSError, match="x86_64 and aarch64; this machine is riscv64"):
        seccomp.filter_program("riscv64")


# Running code


@pytest.mark.parametrize("kind", [pytest.param("bubblewrap", marks=needs_bwrap), "unsafe"])
def test_code_earns_what_it_passes(kind):
    reward = PassesTests(sandbox=kind)
    check_examples(reward, [DOUBLE], "training")
    assert reward(DOUBLE, GOOD) == 1.0
    half = "def f(x):\n    return 4 if x == 2 else 1"
    assert reward(DOUBLE, half) == 0.0
    assert PassesTests(sandbox=kind, partial=True)(DOUBLE, half) == 0.5
    for wrong in ("", "def f(x: return", "no code at all", "\0", "\ud83d", "x" * 200_000):
        assert reward(DOUBLE, wrong) == 0.0


@pytest.mark.parametrize("kind", [pytest.param("bubblewrap", marks=needs_bwrap), "unsafe"])
def test_a_program_is_judged_by_what_it_prints(kind):
    tests = [{"input": "2\n3\n", "output": "5"}, {"input": "1\n1\n", "output": "2\n"}]
    assert passes(tests, "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())), '')", sandbox=kind) == 1.0
    assert passes(tests, "print(5)", sandbox=kind, partial=True) == 0.5
    assert passes(tests, "print(int(input()) + int(input()))\nraise SystemExit(1)", sandbox=kind) == 0.0
    assert passes(tests[:1], "if __name__ == '__main__':\n    print(5)", sandbox=kind) == 1.0  # reads no input


@pytest.mark.parametrize("kind", [pytest.param("bubblewrap", marks=needs_bwrap), "unsafe"])
def test_tests_import_before_the_code_and_set_up_after_it(kind):
    tests = "import math\nfrom fractions import Fraction as F\ny = f(2)\nassert f(y) == 8\nassert f(F(1, 2)) == 1"
    assert passes(tests, "def f(x): return 2 * x", sandbox=kind, partial=True) == 0.5  # F(1, 1) is no plain data
    example = Example("q", columns={"tests": "import no_such_module\nassert f(2) == 4"}, source="rows.jsonl:4")
    with pytest.raises(ValueError, match=r"rows\.jsonl:4: .* the imports fail .*ModuleNotFoundError.*standard library"):
        check_examples(PassesTests(sandbox=kind), [example], "training")


@needs_bwrap
def test_the_sandbox_holds_here_and_the_attempts_that_show_it_succeed_without_it(tmp_path, monkeypatch):
    assert isolation.escapes() == []
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".profile").write_text("")
    unsafe = sandbox.run_code
    monkeypatch.setattr(isolation, "run_code", lambda kind, *rest, **named: unsafe("unsafe", *rest, **named))
    found = isolation.escapes()
    for words in (
        "sockets",
        "outside can be read",
        "outside can be written",
        "home",
        "signals",
        "seen",
        "processes can",
    ):
        assert any(words in each for each in found), words


def test_a_machine_without_bwrap_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    isolation.require_isolation.cache_clear()
    with pytest.raises(ValueError, match=r"apt-get install bubblewrap.*sandbox: unsafe"):
        check_examples(PassesTests(), [DOUBLE], "training")


@pytest.mark.parametrize(
    ("script", "words"), [("exit 1", "does not start"), ("exec 1>&2; echo No permission", "No perm")]
)
def test_a_bwrap_that_does_not_start_is_refused_with_what_it_says(tmp_path, monkeypatch, script, words):
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
    isolation.require_isolation.cache_clear()
    with pytest.raises(OSError, match=words):
        isolation.require_isolation()


def test_a_bwrap_that_isolates_nothing_is_refused(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
    isolation.require_isolation.cache_clear()
    with pytest.raises(OSError, match="does not hold on this machine: in it, sockets can be opened"):
        isolation.require_isolation()


@pytest.fixture(autouse=True)
def probed_anew():
    """What the probe found of a bwrap that is no longer there is forgotten."""
    yield
    isolation.require_isolation.cache_clear()


ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: raise SystemExit",
    "threads": "import threading\nwhile True: threading.Thread(target=print).start()",
    "subprocess": "import subprocess\nsubprocess.run(['/usr/bin/env'])\ndef f(x): return 2 * x + 0.5",
    "memory": "x = [bytearray(2**20)]\nwhile True: x += [bytearray(2**26)]",
    "memory in a file": "n = 0\nwhile True:\n    n += 1\n    open(f'{n}', 'wb').write(b'x' * 10**6)",
    "endless output": "import os\nwhile True:\n    for n in (1, 2, 3): os.write(n, b'0 4\\n' * 9999)",
    "endless loop": "while True: pass",
    "endless sleep, deaf": "import signal, time\nfor n in range(1, 30):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except OSError: pass\nwhile True: time.sleep(9)",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)\nos.kill(1, 9)\nos.kill(-1, 9)",
    "leaves early": "import sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "equal to all": "class All:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    "class Int(int):\n    def __eq__(self, other): return True\ndef f(x): return All() if x == 2 else Int(7)",
    "changes the program around it": "import builtins, json, os, ast, sys\nmain = sys.modules['__main__']\n"
    "main.written = lambda *a: 'True'\nbuiltins.repr = lambda x: '4'\nbuiltins.eval = lambda *a: True\n"
    "ast.literal_eval = lambda x: 4\ndef f(x): return True",
    "writes results": "import os\nfor n in range(16):\n    try: os.write(n, b'0 True\\n1 True\\n0 passed\\n')\n"
    "    except OSError: pass\nos._exit(0)",
    "seems broken": "import os\nos.write(1, b'error\\nImportError')\nos._exit(1)",
    "closes its output": "import os\nfor n in range(16):\n    try: os.close(n)\n    except OSError: pass",
    "fills every file": "import os\nfor n in range(99):\n    try: os.write(n, b'x' * 10**6)\n    except OSError: pass",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "results that no literal is": "import os\nfor n in range(3, 16):\n"
    "    try: os.write(n, b'0 {[1]}\\n1 ' + b'9' * 400 + b'\\n')\n    except OSError: pass\nos._exit(0)",
    "hides in a finalizer": "import os, atexit\nclass Late:\n    def __del__(self): os.write(1, b'0 4\\n1 -10\\n')\n"
    "late = Late()\natexit.register(print, 'passed')\nraise KeyboardInterrupt",
    "an endless result": "class Endless(list):\n    def __iter__(self):\n        while True: yield 1\n"
    "def f(x): return Endless([1])",
    "disk": "import os\nfor n in range(999):\n    with open(f'/scratch/{n}', 'wb') as file: file.truncate(2**24)\n"
    "    with open(f'/scratch/{n}', 'wb') as file: file.write(b'x' * 2**24)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "too large a result": "def f(x): return 'x' * 10**6",
    "a result in itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nx = bytearray(2**31)\n"
    "def f(x): return 2 * x",
}


@needs_bwrap
@pytest.mark.slow
@pytest.mark.parametrize("code", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_earns_nothing_and_ends_in_time(code):
    reward = PassesTests(seconds=2.0, memory=128)
    begun = time.monotonic()
    assert reward(DOUBLE, code) == 0.0
    assert time.monotonic() - begun < 30
    assert reward(DOUBLE, GOOD) == 1.0  # the next response has all it needs


@needs_bwrap
def test_code_cannot_read_or_write_files_of_the_host(tmp_path, monkeypatch):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id").write_text(SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TOKEN", SECRET)
    reads = (
        "import os\ndef f():\n    if 'TOKEN' in os.environ: return os.environ['TOKEN']\n"
        f"    for path in ('~/.ssh/id', '{tmp_path}/.ssh/id', '/proc/1/root{tmp_path}/.ssh/id', '/proc/1/environ'):\n"
        "        try: return open(os.path.expanduser(path)).read()\n        except OSError: pass"
    )
    assert passes(f"assert f() == '{SECRET}'", reads) == 0.0
    assert passes(f"assert f() == '{SECRET}'", reads, sandbox="unsafe") == 1.0
    listed = "def f():\n    try: return open('/etc/passwd').read()[:0]\n    except OSError as error: return error.errno"
    assert passes("assert f() == 2", listed) == 1.0  # no such file
    assert passes("assert f() == ''", listed, sandbox="unsafe") == 1.0
    target = tmp_path / "written"
    writes = f"import os\nos.makedirs('{tmp_path}', exist_ok=True)\nopen('{target}', 'w').write('x')\ndef f(): return 1"
    assert passes("assert f() == 1", writes) == 0.0
    assert not target.exists()
    assert passes("assert f() == 1", "open('mine', 'w').write('x')\ndef f(): return 1") == 1.0


@needs_bwrap
def test_code_reaches_no_network_and_no_process_of_the_host():
    with socket.create_server(("127.0.0.1", 0)) as server:
        connects = (
            "def f():\n    import socket\n    try: socket.create_connection(('127.0.0.1', "
            f"{server.getsockname()[1]}), 1); return 'in'\n    except OSError: return 'out'"
        )
        assert passes("assert f() == 'out'", connects) == 1.0
        assert passes("assert f() == 'in'", connects, sandbox="unsafe") == 1.0
    signals = f"import os\ndef f():\n    try: os.kill({os.getpid()}, 0); return 'in'\n    except OSError: return 'out'"
    assert passes("assert f() == 'out'", signals) == 1.0


@needs_bwrap
def test_code_cannot_find_what_is_expected_of_it():
    searches = (
        "import gc, sys\ndef f():\n    seen, frame = [str(sys.argv), repr(vars(sys))], sys._getframe()\n"
        "    while frame:\n        seen += [repr(frame.f_locals), repr(frame.f_globals)]\n"
        "        frame = frame.f_back\n"
        "    seen += [str(x)[:10**5] for x in gc.get_objects() if type(x) in (list, dict, tuple)]\n"
        "    for path in ('/proc/self/cmdline', '/proc/1/cmdline', '/proc/self/environ'):\n"
        "        try: seen.append(open(path).read())\n        except OSError: pass\n"
        f"    return any(''.join(reversed('{SECRET[::-1]}')) in text for text in seen)"
    )
    tests = ["assert f() == False", f"assert f() == '{SECRET}'"]
    assert passes(tests, searches, partial=True) == 0.5
    assert passes(tests, searches.replace("[str(sys.argv)", f"['{SECRET}'"), partial=True) == 0.0
