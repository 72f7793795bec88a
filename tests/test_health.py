"""Warnings about a training: each cause in a history made for it, and no warning where training is healthy."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_jax import RunDirectory
from grpo_jax.cli import main
from grpo_jax.devices import programs
from grpo_jax.training.health import CHECKS, Health, Limits, Seen, Setup
from grpo_jax.training.health.saying import two_answers
from grpo_jax.training.progress import Progress, compile_clock
from grpo_jax.training.record import Record

pytestmark = pytest.mark.faults

QUICKSTART = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "quickstart_metrics.jsonl").read_text().splitlines()
]
SETUP = Setup(100, ("exact",), responses=8, held_out=64)
RATIO = "sampling/importance_sampling_ratio"


def step_row(step: int, **changes: object) -> dict[str, object]:
    """The metrics of a healthy step: the reward rises, everything else stays. Names have "__" for "/"."""
    row = {
        "step": step,
        "reward": 0.2 + 0.01 * step,
        "frac_reward_zero_std": 0.3,
        "rewards/exact/mean": 0.2 + 0.01 * step,
        "rewards/exact/std": 0.4,
        "entropy": 1.0,
        "grad_norm": 1.0 + 0.1 * (step % 3),
        "learning_rate": 1e-6,
        "kl": 0.01,
        "clip_ratio/region_mean": 0.02,
        "completions/clipped_ratio": 0.1,
        "completions/mean_length": 50.0,
        "completions/max_length": 100.0,
        "sampling/effective_sample_size": 0.99,
        "sampling/k3": 1e-4,
        f"{RATIO}/p01": 0.9,
        f"{RATIO}/p99": 1.1,
        "step_time": 4.0,
        "time/compile": 0.0,
        "time/sampling": 2.0,
        "time/scoring": 0.5,
        "time/learning": 1.5,
    }
    return row | {name.replace("__", "/"): value for name, value in changes.items()}


def history(steps: int, bad: int = 0, **changes: object) -> list[dict[str, object]]:
    """Healthy steps, in the last `bad` of which metrics are changed; a function of the step or a number."""
    rows = [step_row(step) for step in range(1, steps - bad + 1)]
    for step in range(steps - bad + 1, steps + 1):
        changed = {name: value(step) if callable(value) else value for name, value in changes.items()}
        rows.append(step_row(step, **changed))
    return rows


def warnings_of(rows: list[dict[str, object]], setup: Setup = SETUP) -> dict[str, str]:
    """What is said about the last of these steps, by cause."""
    found = {check.__name__: check(Seen(rows, setup)) for check in CHECKS}
    return {name: text for name, text in found.items() if text is not None}


FLAT = {"reward": 0.5, "rewards__exact__mean": 0.5}
SAME = {"frac_reward_zero_std": 1.0, "rewards__exact__std": 0.0, "grad_norm": 0.0}
SHARED = {"frac_reward_zero_std": 1.0, "grad_norm": 0.0}
# cause: its history, the setup, the words that have to be said, and the nearest history that is healthy.
CASES = {
    "failing_environment": (
        history(9, 1, environment__ended_by_error=0.75),
        SETUP,
        ("failed in 75% of the conversations", "completions/", "environment.on_error=stop"),
        history(9, 1, environment__ended_by_error=0.25),
    ),
    "no_scores": (
        history(9, 3, reward=None, rewards__exact__mean=None),
        SETUP,
        ("no response got a score from exact", "3 steps", "judge"),
        history(9, 3, rewards__exact__mean=lambda step: None if step < 9 else 0.1),
    ),
    "equal_rewards": (
        history(9, 5, reward=0.0, rewards__exact__mean=0.0, **SAME),
        SETUP,
        ("no group differed in the last 5 steps", "earned 0", "reward for a part of the way"),
        history(9, 4, reward=0.0, rewards__exact__mean=0.0, **SAME),
    ),
    "agreeing_groups": (
        history(19, 10, **SHARED),
        SETUP,
        ("no group differed in the last 10 steps", "rollout.responses, now 8", "train.resample", "rollout.temperature"),
        history(19, 9, **SHARED),
    ),
    "held_out_falls": (
        [row | ({"eval/reward": 0.6 - 0.01 * row["step"]} if row["step"] % 10 == 0 else {}) for row in history(40)],
        SETUP,
        ("since step 10", "held-out reward falls (0.5 -> 0.2)", "objective.kl"),
        [row | ({"eval/reward": 0.5 - 0.002 * row["step"]} if row["step"] % 10 == 0 else {}) for row in history(40)],
    ),
    "cut_off": (
        history(9, 5, completions__clipped_ratio=1.0, completions__max_length=12.0),
        replace(SETUP, cut_off_earns_nothing=True),
        ("all responses of the last 5 steps were cut off at 12 tokens", "gives those nothing", "rollout.max_tokens"),
        history(9, 5, completions__clipped_ratio=0.95),
    ),
    "empty_responses": (
        history(9, 3, completions__mean_length=1.0, completions__clipped_ratio=0.0),
        SETUP,
        ("empty", "end token alone", "rollout.min_tokens"),
        history(9, 3, completions__mean_length=1.0, completions__clipped_ratio=0.2),  # max_tokens may be 1
    ),
    "growing_responses": (
        history(40, 40, completions__mean_length=lambda step: 20.0 * 1.05**step, **FLAT),
        SETUP,
        ("responses grow", "earn no more", "dr_grpo", "rollout.max_tokens"),
        history(40, 40, completions__mean_length=lambda step: 20.0 * 1.05**step),  # as rewards rise
    ),
    "low_entropy": (
        history(40, 40, entropy=lambda step: max(1.0 - 0.1 * step, 0.01), **FLAT),
        SETUP,
        ("entropy has collapsed (0.8 -> 0.01 nats)", "objective.clip_high", "rollout.temperature"),
        history(40, 40, entropy=lambda step: max(1.0 - 0.1 * step, 0.01)),  # as rewards rise
    ),
    "rising_entropy": (
        history(12, 12, entropy=lambda step: 0.5 * step, reward=lambda step: 0.5 - 0.01 * step),
        SETUP,
        ("comes apart", "optimizer.learning_rate", "optimizer.clip_norm"),
        history(12, 12, entropy=lambda step: 0.5 * step),
    ),
    "no_gradient": (
        history(9, 3, grad_norm=0.0),
        SETUP,
        ("gradient was exactly 0 in the last 3 steps", "masks"),
        history(9, 2, grad_norm=0.0),
    ),
    "no_learning_rate": (
        history(9, 3, learning_rate=0.0),
        SETUP,
        ("learning rate was 0 in the last 3 steps", "optimizer.learning_rate"),
        history(9, 3, learning_rate=lambda step: 0.0 if step < 9 else 1e-9),
    ),
    "mismatch": (
        history(9, 3, sampling__effective_sample_size=0.5, sampling__k3=0.1),
        SETUP,
        ("effective sample size 0.5", "rollout.int8_cache", "model.activations"),
        history(9, 3, sampling__effective_sample_size=0.9, sampling__k3=5e-4),
    ),
    "runaway_kl": (
        history(20, 3, kl=0.5),
        SETUP,
        ("KL 0.5 nats a token, 0.01 in the steps before", "objective.kl"),
        history(20, 3, kl=0.09),
    ),
    "coefficient_at_bound": (
        history(20, 10, **{"coefficient__term 1": 1.0}),
        replace(SETUP, bounds={"term 1": (1.0, "entropy")}),
        ("coefficient of term 1", "largest value 1 ", "entropy still misses"),
        history(20, 10, **{"coefficient__term 1": lambda step: 1.0 if step < 20 else 0.0}),
    ),
    "clipping": (
        history(9, 3, **{"clip_ratio__region_mean": 0.9}),
        SETUP,
        ("90% of the tokens were clipped", "algorithm.minibatches", "objective.clip"),
        history(9, 3, **{"clip_ratio__region_mean": 0.3}),
    ),
    "learned_by_heart": (
        history(30, 30, loss=0.1, eval__loss=lambda step: 0.5 if step == 10 else 0.7),
        SETUP,
        ("(0.5 at step 10 -> 0.7)", "learned is 0.1", "end at step 10 (train.steps)"),
        history(30, 30, loss=0.1, eval__loss=lambda step: 0.5 if step in (10, 29) else 0.7),
    ),
    "spike": (
        history(25, 1, grad_norm=1100.0),
        SETUP,
        ("1000 times its median", "optimizer.clip_norm"),
        history(25, 1, grad_norm=10.0),
    ),
    "straggler": (
        history(20, 1, step_time=64.0, time__scoring=60.5),
        SETUP,
        ("this step took 64.0 s, 16 times the median", "scoring", "judge"),
        history(20, 1, step_time=64.0, time__compile=60.0),
    ),
}


def test_every_check_has_a_case():
    assert sorted(CASES) == sorted(check.__name__ for check in CHECKS)


@pytest.mark.parametrize("cause", CASES)
def test_a_cause_is_named_with_the_setting_to_change_and_its_healthy_neighbour_is_not(cause):
    rows, setup, words, healthy = CASES[cause]
    found = warnings_of(rows, setup)
    assert list(found) == [cause]
    assert [word for word in words if word not in found[cause]] == []
    assert "\n" not in found[cause]
    assert warnings_of(healthy, setup) == {}


@pytest.mark.parametrize(
    ("changes", "setup", "words"),
    [
        ({"reward": 1.0, "rewards__exact__mean": 1.0, **SAME}, SETUP, "earned 1, so nothing is learned. If this is"),
        ({"grad_norm": 0.0, "completions__clipped_ratio": 0.8}, replace(SETUP, cut_off_earns_nothing=True), "80% of"),
        ({"entropy": 0.0, "reward": 0.5}, SETUP, "near 0 from the start"),
        ({"completions__mean_length": lambda step: 50.0 if step < 12 else 4.0, "reward": 0.5}, SETUP, "become short"),
        ({"learning_rate": lambda step: 1e-8 * step}, replace(SETUP, steps=30), "optimizer.warmup_steps"),
    ],
    ids=["all at the maximum", "cut off and the rest equal", "greedy from the start", "ever shorter", "warm-up"],
)
def test_the_same_symptom_of_another_cause_is_said_in_other_words(changes, setup, words):
    assert words in " ".join(warnings_of(history(30, 30, **changes), setup).values())


def test_groups_that_agree_are_no_warning_where_the_objective_learns_from_other_groups():
    learns = history(19, 10, frac_reward_zero_std=1.0)  # its gradient is not 0
    assert warnings_of(learns) == {}
    assert list(warnings_of(learns, replace(SETUP, only_rewards_teach=False))) == ["agreeing_groups"]
    assert warnings_of(history(19, 10, **SHARED), replace(SETUP, responses=1)) == {}


def test_every_prefix_of_a_real_quickstart_has_no_warning():
    """Its metrics are those of a run that went from a reward of 0.12 to 0.75 in 24 steps."""
    setup = Setup(24, ("last_number",), responses=8, held_out=64)
    for end in range(1, len(QUICKSTART) + 1):
        assert warnings_of(QUICKSTART[:end], setup) == {}, end


def test_metrics_that_are_missing_are_not_judged():
    names = sorted(set(step_row(1)) - {"step"})
    for name in names:
        rows = [{key: value for key, value in row.items() if key != name} for row in history(40)]
        assert warnings_of(rows) == {}, name
        if name not in ("reward", "rewards/exact/mean"):
            assert warnings_of([row | {name: None} for row in history(40)]) == {}, name


def recorded(path: Path, rows: list[dict[str, object]], start: int = 0) -> list[str]:
    """What a run says whose steps have these metrics. The first `start` steps were there before."""
    said: list[str] = []
    path.mkdir(exist_ok=True)
    record = Record(path, start)
    health = Health(SETUP, record, said.append)
    for row in rows[start:]:
        step = row["step"]
        answers = [
            {"prompt": "2 + 2 = ?", "completion": text, "rewards/exact": reward, "advantage": 0.0}
            for text, reward in (("It is\n5.", 0.0), ("x" * 1000, 0.0), ("four \ud83d", 1.0))
        ]
        (path / "completions").mkdir(exist_ok=True)
        lines = [json.dumps(answer) + "\n" for answer in answers[: 2 if row["rewards/exact/mean"] == 0 else 3]]
        (path / "completions" / f"step_{step:06d}.jsonl").write_text("".join(lines))
        record.metrics(
            step, {name: float("nan" if value is None else value) for name, value in row.items() if name != "step"}
        )
        health.look()
    record.close()
    return said


def test_a_warning_is_said_once_and_again_only_after_it_had_gone(tmp_path):
    bad = {"reward": 0.0, "rewards__exact__mean": 0.0, **SAME}
    rows = history(40, 35, **bad)
    rows += [step_row(step) for step in range(41, 71)]
    rows += [
        step_row(step, **{name.replace("/", "__"): value for name, value in bad.items()}) for step in range(71, 90)
    ]
    said = recorded(tmp_path, [row | {"rewards/exact/mean": 0.0} for row in rows])
    assert [text.count("no group differed") for text in said] == [1, 1]
    written = [json.loads(line) for line in (tmp_path / "warnings.jsonl").read_text().splitlines()]
    assert [(row["step"], row["warning"]) for row in written] == [(10, "equal_rewards"), (75, "equal_rewards")]


def test_a_warning_is_one_line_and_two_lines_of_answers_with_their_rewards(tmp_path):
    (text,) = recorded(tmp_path, history(9, 5, reward=0.0, rewards__exact__mean=0.0, **SAME))
    warning, *answers = text.split("\n")
    assert warning.startswith("warning: no group differed in the last 5 steps: every response earned 0")
    assert answers[0] == '  to "2 + 2 = ?" an answer (exact 0): "It is\\n5."'
    assert answers[1].startswith('  to "2 + 2 = ?" an answer (exact 0): "xxx') and len(answers[1]) < 220


def test_the_best_and_the_worst_answer_are_shown_where_rewards_differ(tmp_path):
    (text,) = recorded(tmp_path, history(9, 5, completions__clipped_ratio=1.0))
    assert '(exact 0): "It is\\n5."' in text
    assert '(exact 1): "four \\ud83d"' in text  # half a surrogate, which no terminal could print


def test_a_resumed_run_goes_on_with_the_warnings_of_the_run_that_was_not_stopped(tmp_path):
    rows = history(20, 16, completions__clipped_ratio=1.0, learning_rate=lambda step: 0.0 if step > 12 else 1e-6)
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    recorded(whole, rows)
    recorded(halted, rows[:17])
    with (halted / "warnings.jsonl").open("a") as file:
        file.write('{"step": 3, "warn')  # torn, as the machine stopped
    again = recorded(halted, rows, start=12)  # from an older checkpoint, so the second warning comes again
    assert [text.count("learning rate was 0") for text in again] == [1]
    assert (halted / "warnings.jsonl").read_text() == (whole / "warnings.jsonl").read_text()


def test_all_runs_of_a_process_share_one_listener():
    """JAX keeps a listener for ever, and with it all that the listener holds."""
    first, second = (
        Progress(3, 0, speaks=False, watchdog_minutes=0.0),
        Progress(3, 0, speaks=False, watchdog_minutes=0.0),
    )
    assert first.clock is second.clock is compile_clock()


def test_a_step_says_how_its_time_compares_with_the_steps_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress, ratios = Progress(9, 0, speaks=False, watchdog_minutes=0.0), []
    numbers = {"reward": 0.0, "completions/mean_length": 1.0, "entropy": 1.0, "grad_norm": 1.0}
    for seconds in (2.0, 2.0, 4.0, 20.0):
        with progress.phase("sampling"):
            now[0] += seconds
        ratios.append(progress.finish_step(numbers).get("time/over_median"))
    assert ratios == [None, 1.0, 2.0, 10.0]


STUCK = """
import {imports}
from grpo_jax.training.progress import Progress
progress = Progress(9, 0, watchdog_minutes={minutes})
with progress.phase("sampling"):
    time.sleep(0.3)
with progress.phase("learning"):
    {hangs}
print("went on")
"""


def stuck(hangs: str, minutes: float) -> subprocess.CompletedProcess:
    program = STUCK.format(imports="re, time", minutes=minutes, hangs=hangs)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_phase_that_stands_still_ends_the_process_with_a_sentence_and_all_stacks():
    found = stuck("time.sleep(1000)", minutes=0.01)
    assert found.returncode == 124
    assert "error: learning has taken" in found.stderr and "train.watchdog_minutes" in found.stderr
    assert "--resume" in found.stderr and 'File "<string>", line 8 in <module>' in found.stderr
    assert "went on" not in found.stdout


@pytest.mark.slow
def test_a_phase_that_holds_the_lock_of_python_is_ended_too():
    found = stuck('re.match("(a+)+b", "a" * 60)', minutes=0.01)
    assert found.returncode == 1
    assert "Timeout" in found.stderr and "re/__init__.py" in found.stderr


@pytest.mark.slow
def test_a_phase_that_ends_in_time_or_has_no_limit_goes_on():
    assert "went on" in stuck("time.sleep(0.1)", minutes=0.02).stdout
    assert "went on" in stuck("time.sleep(1.5)", minutes=0).stdout


CONFIG = """
run: {name: constant, root: ROOT}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 20, held_out: 2, largest: 9}
rewards: [{use: Matches, pattern: "never"}]
rollout: {responses: 2, max_tokens: 4}
objective: {use: dr_grpo}
optimizer: {warmup_steps: 1}
train: {steps: 7, prompts: 2, evaluate_every: 0, save_every: 7, max_prompt_tokens: 96}
mesh: {data: 1, fsdp: 1, tensor: 8}
"""


@pytest.mark.slow
def test_a_training_whose_rewards_are_all_alike_says_so_once(tmp_path, capsys):
    config = tmp_path / "constant.yaml"
    config.write_text(CONFIG.replace("ROOT", str(tmp_path)))
    assert main(["train", str(config)]) == 0
    printed = capsys.readouterr().out.splitlines()
    said = [line for line in printed if line.startswith("warning: no group differed")]
    assert len(said) == 1 and "every response earned 0" in said[0] and "task" in said[0]
    assert "an answer (Matches 0)" in printed[printed.index(said[0]) + 1]
    assert all(row["grad_norm"] == 0 for row in RunDirectory(tmp_path / "constant").metrics())
    assert Limits().equal < 7


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells in /proc what a process holds")
def test_objectives_in_turn_leave_no_threads_files_or_programs_behind(tmp_path, monkeypatch):
    config = tmp_path / "turn.yaml"
    config.write_text(CONFIG.replace("ROOT", str(tmp_path)))
    monkeypatch.setattr(programs, "most_memory_maps", lambda: 2)  # so programs are forgotten after every step
    held = []
    for index in range(9):
        overrides = [f"objective.use={('dr_grpo', 'dapo', 'opo')[index % 3]}", f"run.name=turn{index}"]
        assert main(["train", str(config), *overrides, "train.steps=1", "train.save_every=1"]) == 0
        held.append((len(os.listdir("/proc/self/fd")), threading.active_count(), programs.memory_maps()))
    (files, threads, maps), *_, (files_after, threads_after, maps_after) = held[1:]
    assert files_after < files + 7  # one for each of the seven runs between would be 7
    assert threads_after < threads + 7  # the pools of Orbax begin their threads as they need them, so some come later
    assert maps_after < maps + 700


def test_the_best_and_the_worst_answer_are_those_by_the_total_not_by_the_sum_of_its_parts(tmp_path):
    """A rubric's fault has a column of 1 where it is found, and takes away from the total."""
    rows = [
        {"prompt": "p", "completion": said, "rewards/r/good": good, "rewards/r/fault": fault, "reward": total}
        for said, good, fault, total in (
            ("faulty", 0.0, 1.0, -0.2),
            ("nothing", 0.0, 0.0, 0.0),
            ("good", 1.0, 0.0, 0.3),
        )
    ]
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "step_000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [line.rpartition(": ")[2] for line in two_answers(tmp_path, 1)] == ['"faulty"', '"good"']


def test_answers_with_line_separators_of_unicode_are_shown(tmp_path):
    rows = [{"prompt": "p", "completion": f"a\u2028{n}\x85", "rewards/r": n, "reward": n} for n in (0.0, 1.0)]
    (tmp_path / "completions").mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "completions" / "step_000001.jsonl").write_text(text, encoding="utf-8")
    assert ["a\u20280.0" in line for line in two_answers(tmp_path, 1)] == [True, False]
