import os
import signal
import sys
import time

import pytest

from grpo_jax.rewards import Example, MathEqual, check_examples, symbolic
from grpo_jax.rewards.child import Child

# Says that it is ready, then answers a number with its double; "end" ends it, "wait" takes for ever.
DOUBLES = """
import json, sys, time
print("true", flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if question == "end":
        sys.exit(0)
    while question == "wait":
        time.sleep(0.01)
    print(2 * question, flush=True)
"""


def test_a_child_that_is_late_or_ends_is_replaced():
    child = Child((sys.executable, "-c", DOUBLES))
    assert child.ask(4, 30.0) == 8
    first = child.process.pid
    assert child.ask(5, 30.0) == 10
    assert child.process.pid == first
    for question in ("wait", "end"):
        begun = time.monotonic()
        assert child.ask(question, 0.5) is None
        assert time.monotonic() - begun < 5
        assert child.ask(6, 30.0) == 12
    assert child.process.pid != first
    child._end()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_an_interrupted_question_leaves_no_answer_to_the_next():
    child = Child((sys.executable, "-c", DOUBLES))
    assert child.ask(1, 30.0) == 2

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            child.ask("wait", 30.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert child.ask(3, 30.0) == 6
    child._end()


def test_a_child_that_cannot_start_answers_none():
    assert Child((sys.executable, "-c", "raise SystemExit(3)")).ask(1, 5.0) is None


def test_numbers_are_compared_without_math_verify(monkeypatch):
    monkeypatch.setattr(symbolic, "_installed", lambda: False)
    reward = MathEqual()
    reward.check(Example("q", "1/2"))
    assert reward(Example("q", "1/2"), r"\boxed{0.50}") == 1.0
    assert reward(Example("q", "1/2"), r"\boxed{0.51}") == 0.0
    assert reward(Example("q", "1/2"), "one half, 1/2") == 0.0
    assert reward(Example("q", "1/2"), "1/2") == 1.0
    assert reward(Example("q", r"Half, so \boxed{\frac12}."), r"\boxed{0.5}") == 1.0


def test_a_formula_without_math_verify_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(symbolic, "_installed", lambda: False)
    with pytest.raises(ValueError, match=r'not installed.*pip install "grpo-jax\[math\]"'):
        MathEqual().check(Example("q", r"\sqrt{2}"))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), 1e9])
def test_a_limit_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds must be above 0"):
        MathEqual(seconds)


@pytest.mark.slow
def test_formulas_are_equal_by_value_and_a_hostile_one_costs_its_deadline():
    pytest.importorskip("math_verify")
    reward = MathEqual(seconds=2.0)
    golds = {
        r"\frac{\sqrt{2}}{2}": (r"\boxed{\frac{1}{\sqrt{2}}}", r"\boxed{\frac{1}{2}}"),
        r"\{1, 2\}": (r"\boxed{\{2, 1\}}", r"\boxed{\{1\}}"),
        "(1, 2)": (r"\boxed{(1, 2)}", r"\boxed{(2, 1)}"),
        "x^2 + 2x + 1": (r"<answer>(x + 1)^2</answer>", r"<answer>(x + 2)^2</answer>"),
        r"2\pi": (r"#### 2\pi", r"3\pi"),
        "4": (r"\boxed{2^2}", r"\boxed{2^3}"),
        r"[0, \infty)": (r"\boxed{[0, \infty)}", r"\boxed{(0, \infty)}"),
    }
    check_examples(reward, [Example("q", gold) for gold in golds], "training")
    for gold, (right, wrong) in golds.items():
        assert (reward(Example("q", gold), right), reward(Example("q", gold), wrong)) == (1.0, 0.0)
    begun = time.monotonic()
    assert reward(Example("q", r"2\pi"), rf"\boxed{{{'(' * 450}{')' * 450}}}") is None
    assert time.monotonic() - begun < 10
    assert reward(Example("q", r"2\pi"), r"\boxed{\frac{6\pi}{3}}") == 1.0


HOSTILE = [  # for the gold 2 pi: other values, several values, programs, what is cut off, and what takes for ever
    r"9^{9^{9^{9}}}",
    r"2\pi, 3\pi",
    r"2\pi \text{ or } 3\pi",
    r"\pi\pi",
    r"\infty",
    "x",
    r"\frac{2\pi}{0}",
    "NaN",
    r"\text{two pi}",
    r"2\pi r",
    r"2 \cdot \pi i",
    r"\{2\pi, 0\}",
    r"(0, 2\pi)",
    r"x \ge 2\pi",
    "6.28",
    "6",
    r"\lim_{n\to\infty} 2\pi + \sin n",
    r"2\pi \ne 2\pi",
    "__import__('os').system('touch hacked')",
    "exec(open('/etc/passwd').read())",
    "(" * 450 + ")" * 450,
]


@pytest.mark.slow
def test_a_hostile_formula_earns_nothing(tmp_path, monkeypatch):
    pytest.importorskip("math_verify")
    monkeypatch.chdir(tmp_path)
    reward, example = MathEqual(seconds=2.0), Example("q", r"2\pi")
    earned = {answer: reward(example, rf"\boxed{{{answer}}}") for answer in HOSTILE}
    assert {answer for answer, value in earned.items() if value} == set()
    assert reward(example, r"\boxed{2\pi") == 0.0  # cut off
    assert reward(example, r"\boxed{\frac{4\pi}{2}}") == 1.0
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("gold", ["Paris", r"\text{Evelyn}", "NaN", "none of these"])
def test_words_are_no_formula(gold):
    pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: reward MathEqual .* Use exact for answers in words"):
        check_examples(MathEqual(), [Example("q", gold, source="rows.jsonl:3")], "training")
