"""Rewards in worker processes: what is late or hostile costs its deadline, and nothing else."""

import functools
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import slow_rewards

from grpo_jax.rewards import Batch, Example, Guarded, Mix, arrange, ask, exact, score, workers
from grpo_jax.rewards.signatures import Request

NAN = np.nan
PAIR = [Example("q", "a"), Example("r", "b")]

pytestmark = pytest.mark.faults


def judged(mix, examples, responses):
    answers = ask(mix, Batch(examples, responses, step=0), 60.0)
    mix.learn(answers.found)
    return arrange(mix, answers)


def test_a_hostile_item_costs_its_deadline_and_nothing_else(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("grpo_jax"), "propagate", True)
    guarded = Guarded(slow_rewards.hostile, workers=2, deadline=3.0, on_error="mask")
    mix = Mix(((guarded, 1.0), (exact, 1.0)))
    score(mix, PAIR[:1], [["a"]])  # the workers are there
    begun = time.monotonic()
    found = judged(mix, PAIR, [["a", "waits", "dies", "b"], ["backtracks", "b", "fails", "b"]])
    assert time.monotonic() - begun < 40  # one process that starts takes seconds where the machine is busy
    np.testing.assert_array_equal(found.rewards_PGR[..., 0], [[1, NAN, NAN, 0], [NAN, 1, NAN, 1]])
    np.testing.assert_array_equal(found.rewards_PGR[..., 1], [[1, 0, 0, 0], [0, 1, 0, 1]])
    assert found.metrics == {"rewards/late_frac": 3 / 8, "rewards/failed_frac": 1 / 8}
    assert "reward hostile did not score 3 of 8 responses" in caplog.text
    assert "KeyError: 'fails' (slow_rewards.py:" in caplog.text
    np.testing.assert_array_equal(score(mix, PAIR[:1], [["a", "b"]])[0, :, 0], [1, 0])


@pytest.mark.parametrize(("response", "why"), [("dies", "with status 0"), ("kills", "by signal 9")])
def test_a_worker_that_died_is_not_said_to_be_late(response, why, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("grpo_jax"), "propagate", True)
    assert np.isnan(score(Guarded(slow_rewards.hostile, workers=1, deadline=50.0), PAIR[:1], [[response]])).all()
    assert f"the first is example 0, response 0: its process ended {why}" in caplog.text


def test_a_failure_in_a_worker_ends_the_run_with_the_line_of_the_user():
    for response, words in (("fails", "KeyError: 'fails'"), ("exits", "SystemExit: 0"), ("stops", "KeyboardInterrupt")):
        guarded = Guarded(slow_rewards.hostile, workers=1)
        with pytest.raises(ValueError, match=rf"failed on example 0, response 1: .*{words} \(slow_rewards\.py:\d+: "):
            score(guarded, PAIR[:1], [["a", response]])


def test_workers_import_no_jax_and_stay_for_the_next_step():
    mix = Mix(((Guarded(slow_rewards.modules, workers=1), 1.0), (Guarded(slow_rewards.process, workers=1), 1.0)))
    first, second = (score(mix, PAIR, [["a", "b"]] * 2) for _ in range(2))
    assert first[0, 0, 0] == 0.0
    assert (first[..., 1] == second[0, 0, 1]).all() and first[0, 0, 1] != os.getpid()


def test_rewards_in_workers_wait_beside_each_other():
    guards = [Guarded(functools.partial(slow_rewards.a_second, n=n), workers=1) for n in range(4)]
    mix = Mix(tuple((guard, 1.0) for guard in guards))
    score(mix, PAIR, [["a"], ["b"]])
    begun = time.monotonic()
    assert score(mix, PAIR, [["a"], ["b"]]).all()
    assert time.monotonic() - begun < 3.5


def test_a_reward_of_a_group_may_be_async_in_a_worker():
    mix = Mix(((Guarded(slow_rewards.of_group, workers=1), 1.0),))
    np.testing.assert_array_equal(score(mix, PAIR, [["a", "aa"], ["", "b"]])[..., 0], [[1, 2], [0, 1]])
    assert mix.names == ("of_group/length", "of_group/first")


def test_what_workers_cannot_import_is_refused():
    for reward in (lambda example, response: 1.0, functools.partial(slow_rewards.exact, lambda: 1)):
        with pytest.raises(ValueError, match="cannot be sent to them"):
            score(Guarded(reward, workers=1), PAIR[:1], [["a"]])
    with pytest.raises(ValueError, match="nothing can be logged"):
        score(Guarded(slow_rewards.logs, workers=1), PAIR[:1], [["a"]])


PROGRAM = """
import os, signal, threading, time
import slow_rewards
from grpo_jax.rewards import Example, Guarded, score

def own(example, response):
    return len(response)

if __name__ == "__main__":
    print(score(Guarded(own, workers=1), [Example("q")], [["four"]]).item(), flush=True)
    guarded = Guarded(slow_rewards.hostile, workers=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    try:
        score(guarded, [Example("q")], [["backtracks"]])
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - begun < 10)
"""


def test_ctrl_c_ends_workers_and_a_program_may_have_its_reward_itself(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    folder = os.path.dirname(slow_rewards.__file__)
    environment = os.environ | {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(tmp_path / "program.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment)
    assert ended.stdout == "4.0\ninterrupted True\n"


def test_a_call_that_hangs_delays_no_call_that_comes_later_and_a_cancelled_one_frees_its_worker():
    guarded = Guarded(slow_rewards.hostile, workers=2)

    def started(*responses):
        calls = [Request(range(1), "a place", (PAIR[0], response)) for response in responses]
        return workers.start(guarded, "hostile", calls)

    (hangs,) = started("waits")
    assert [future.result(60) for future in started("a", "b", "a")] == [1.0, 0.0, 1.0]
    (later,) = started("a")
    assert later.result(60) == 1.0 and not hangs.done()
    others = started("waits", "waits", "a")
    for future in (hangs, *others[:2]):
        future.cancel()
    assert others[2].result(60) == 1.0
