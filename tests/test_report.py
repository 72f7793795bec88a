"""A report of a run: one page from its files, safe, whole, with a diagnosis; and the same in a terminal."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fakes.run_directories import FAILURES, Made, healthy

from grpo_jax import objectives
from grpo_jax.cli import main
from grpo_jax.health.kept import GIVE_NOTHING, read_setup, write_setup
from grpo_jax.health.seen import Seen, Setup
from grpo_jax.health.whole import learned
from grpo_jax.objectives.shaping import nothing_for_truncated
from grpo_jax.report.answers import Card, Chapter, Question
from grpo_jax.report.comparing import compared, sides_of
from grpo_jax.report.curves import POINTS, curves, thinned
from grpo_jax.report.diagnosis import TITLES, diagnoses
from grpo_jax.report.headline import headline
from grpo_jax.report.page import bounded, write_comparison, write_report
from grpo_jax.report.reading import read_run
from grpo_jax.report.terminal import BLOCKS
from grpo_jax.report.tokens import Token
from grpo_jax.saved.directory import RunDirectory
from grpo_jax.training.reporting import Reporter

DATA = Path(__file__).parent / "data"
VOID = {"meta", "br", "img", "link", "input", "hr", "path", "use"}
HELD_OUT = "The held-out reward falls"
ADDRESSES = {"src", "srcset", "poster", "action", "formaction", "data", "background", "ping", "manifest"}


@pytest.fixture(autouse=True)
def no_reports():
    """Replaces the fixture that keeps the trainings of other tests from making reports."""


class Page(HTMLParser):
    """What a browser would find on a page: its text, its tags, and whether each tag is closed where it has to be."""

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def check(self):
        """Nothing on the page asks for anything that is not on it, and nothing can run."""
        names = {tag for tag, _ in self.tags}
        assert {"script", "iframe", "link", "img", "object", "embed", "base", "form"}.isdisjoint(names)
        for tag, attributes in self.tags:
            assert not ADDRESSES & attributes.keys() or tag == "meta", (tag, attributes)
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            for name in ("href", "xlink:href"):
                assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        style = re.search(r"<style>(.*?)</style>", self.html, re.DOTALL)[1]
        assert "url(" not in style and "@import" not in style
        policies = [
            a["content"] for t, a in self.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        return self


def page_of(run: Path) -> Page:
    return Page(write_report(run)).check()


@pytest.fixture(scope="module")
def well(tmp_path_factory) -> Path:
    """A run that learns."""
    return healthy().write(tmp_path_factory.mktemp("runs") / "well")


@pytest.mark.slow
def test_a_healthy_run_gets_a_headline_curves_answers_settings_and_no_diagnosis(well):
    page = page_of(well)
    assert "held-out reward 0.200 (0.100 to 0.300) → 0.850" in page.text
    assert "It rose by more than chance" in page.text
    assert "Nothing is wrong" in page.text
    titles = [curve.title for curve in curves(read_run(well))]
    assert titles[:2] == ["Reward", "Spread of rewards within groups"]
    assert {"Length", "Entropy", "Groups that agree", "Speed", "Time of a step, by phase", "Padding"} <= set(titles)
    assert page.html.count("<svg") >= len(titles)
    assert "What is 1" in page.text and "advantage +0.500" in page.text
    assert "train.prompts 8 16 made.yaml:8" in page.text  # its value, the default, and where it was written
    assert len(page.html) < 1_000_000


@pytest.mark.parametrize("name", FAILURES)
def test_a_run_that_fails_gets_the_diagnosis_of_its_cause_and_no_other(name, tmp_path):
    make, title = FAILURES[name]
    found = diagnoses(read_run(make().write(tmp_path / "run")))
    assert [diagnosis.title for diagnosis in found] == [title]
    assert re.search(r"\d", found[0].text), "there is no evidence"
    assert re.search(r"optimizer\.|rollout\.|objective|task|train\.|rewards", found[0].text), "there is nothing to do"


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 6},
        {"steps": 24, "seed": 5},
        {"steps": 80, "seed": 1},
        {"right": lambda part: min(0.2 + 2 * part, 0.99), "entropy": lambda part: max(1.4 - 2 * part, 0.01)},
        {"objective": "verifiable", "cut": lambda part: 0.8 - 0.6 * part},
    ],
    ids=["short", "as the quickstart", "long", "solved", "cut off less and less"],
)
def test_runs_that_learn_get_no_diagnosis(given, tmp_path):
    assert diagnoses(read_run(healthy(**given).write(tmp_path / "run"))) == []


def at_once(part: float) -> float:
    """An entropy that is gone after two of forty steps."""
    return 5.0 if part < 0.06 else 0.001


WITH_TERM = Setup(40, ("last_number",), 8, 64, only_rewards_teach=False)  # a term has a gradient of its own


@pytest.mark.parametrize(
    ("made", "setup", "titles"),
    [
        (Made(cut=lambda part: 1.0), None, []),
        (Made(cut=lambda part: 1.0, objective="verifiable"), None, ["Answers are cut off"]),
        (Made(cut=lambda part: 1.0, right=lambda part: 0.0), None, ["All groups are wrong"]),
        (Made(right=lambda part: 0.3, entropy=at_once), None, ["The learning rate is too high"]),
        (Made(right=lambda part: 0.3, entropy=at_once), WITH_TERM, ["The entropy is gone"]),
        (Made(entropy=at_once), None, []),
        (Made(kl=lambda part: 3 * part), None, []),
        (Made(kl=lambda part: 3 * part, right=lambda part: 0.4), None, ["The policy runs away from its reference"]),
        (Made(steps=60, right=lambda part: 0.5, held_out=lambda part: 0.6 - 0.5 * part), None, [HELD_OUT]),
        (Made(steps=60, right=lambda part: 0.0, held_out=lambda part: 0.0), None, ["All groups are wrong"]),
    ],
    ids=[
        "it learns although all answers are cut off",
        "cut-off answers that earn nothing",
        "wrong, and cut off",
        "the entropy goes within two steps",
        "a term takes the entropy",
        "the entropy goes, and the reward rises",
        "the reference is left behind, and the reward rises",
        "the reference is left behind",
        "held-out falls, and training stays",
        "held-out is never right",
    ],
)
def test_two_causes_that_look_alike_are_told_apart(made, setup, titles, tmp_path):
    run = made.write(tmp_path / "run")
    if setup is not None:
        write_setup(run, setup)
    assert [diagnosis.title for diagnosis in diagnoses(read_run(run))] == titles


def test_the_interval_of_evaluations_says_whether_the_held_out_reward_falls(tmp_path):
    """0.6 to 0.55 is chance for 64 rewards of 0 or 1, and not for numbers whose interval is 0.01 wide."""
    made = Made(steps=60, held_out=lambda part: 0.6 if part < 0.2 else 0.55)
    assert diagnoses(read_run(made.write(tmp_path / "wide"))) == []
    rows = [json.loads(line) for line in (tmp_path / "wide" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "eval/reward" in row:
            row |= {"eval/reward/low": row["eval/reward"] - 0.005, "eval/reward/high": row["eval/reward"] + 0.005}
    shutil.copytree(tmp_path / "wide", tmp_path / "narrow")
    with_rows(tmp_path / "narrow", *rows)
    assert [diagnosis.title for diagnosis in diagnoses(read_run(tmp_path / "narrow"))] == [HELD_OUT]


def test_the_real_quickstart_gets_no_diagnosis(tmp_path):
    shutil.copy(DATA / "quickstart_metrics.jsonl", tmp_path / "metrics.jsonl")
    assert diagnoses(read_run(tmp_path)) == []
    assert "Nothing is wrong" in page_of(tmp_path).text


@pytest.mark.parametrize(
    ("rewards", "is_learned"),
    [
        ([0.0] * 19 + [1 / 256], False),
        ([0.0] * 18 + [1 / 256, 1 / 256], False),
        ([-0.01, 0.01, -0.02, 0.0] * 5 + [0.01, 0.02, -0.01, 0.01], False),
        ([0.0] * 4 + [1 / 256] * 16, True),
        ([0.1, 0.9] + [1.0] * 14, True),
        ([step / 10 for step in range(6)], True),
        ([0.1, 0.5], True),
    ],
)
def test_a_run_has_learned_if_its_reward_rose_by_more_than_chance(rewards, is_learned):
    rows = [{"step": step, "reward": reward} for step, reward in enumerate(rewards, 1)]
    assert learned(Seen(rows, Setup(len(rows)))) is is_learned


def test_every_check_has_a_title():
    from grpo_jax.health import CHECKS
    from grpo_jax.report.diagnosis import EXPLAINS, WHOLE

    assert {check.__name__ for check in (*CHECKS, *WHOLE)} == set(TITLES)
    assert {*EXPLAINS, *(effect for effects in EXPLAINS.values() for effect in effects)} <= set(TITLES)


def test_the_presets_that_give_nothing_to_cut_off_responses_are_known():
    """A run of an earlier version tells its objective by name alone."""
    names = [name for name in dir(objectives) if not name.startswith("_")]
    found = set()
    for name in names:
        try:
            made = getattr(objectives, name)()
        except (TypeError, ValueError):
            continue
        if nothing_for_truncated in getattr(made, "shaping", ()):
            found.add(name)
    assert found == set(GIVE_NOTHING)


def test_what_the_checks_have_to_know_is_kept_and_read(tmp_path):
    setup = Setup(9, ("a", "b"), 4, 8, True, False, {"term 1": (1.0, "entropy")})
    write_setup(tmp_path, setup)
    assert read_setup(tmp_path) == setup
    (tmp_path / "health.json").write_text("{torn")
    assert read_setup(tmp_path) is None


# Runs that are damaged, or hardly there.


def with_rows(path: Path, *rows: dict[str, object]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_empty_folder_is_a_page_that_says_so(tmp_path):
    text = page_of(tmp_path).text
    assert "Nothing has been measured yet" in text and "there is no metrics.jsonl" in text


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "reward": 0.5, "entropy": 1.0, "grad_norm": 0.0}],
        [{"step": 1, "reward": None, "entropy": None}, {"step": 2, "reward": None, "entropy": None}],
        [{"step": step, "reward": float(-step), "grad_norm": None if step == 2 else 1e30} for step in range(1, 5)],
        [
            {"step": 0, "eval/reward": -3.0},
            {"step": 9, "eval/reward": -1.5, "eval/reward/low": -2.0, "eval/reward/high": -1},
        ],
        [{"step": 1, "reward": "high", "kl": True, "x": [1]}, {"step": "2"}, {"step": 3, "reward": 1e308}],
        [{"step": 5, "reward": 1.0}, {"step": 2, "reward": 0.0}],
    ],
    ids=["one step", "null alone", "negative and huge", "evaluations alone", "strange values", "out of order"],
)
def test_any_metrics_make_a_page(rows, tmp_path):
    page_of(with_rows(tmp_path / "run", *rows))


def test_the_interval_of_an_evaluation_is_that_which_it_measured(tmp_path):
    rows = [
        {"step": s, "eval/reward": v, "eval/reward/low": v - 1, "eval/reward/high": v + 1} for s, v in ((0, 1), (9, 5))
    ]
    text = page_of(with_rows(tmp_path / "run", *rows)).text
    assert "held-out reward 1.000 (0.000 to 2.000) → 5.000 (4.000 to 6.000)" in text


def test_an_evaluation_without_an_interval_does_not_hide_those_of_the_others(tmp_path):
    rows = [{"step": 0, "eval/reward": 0.5, "eval/reward/low": 0.4, "eval/reward/high": 0.7}]
    run = with_rows(tmp_path / "run", *rows, {"step": 1, "reward": 1.0}, {"step": 2, "reward": 1.0, "eval/reward": 1.0})
    (line,) = [line for curve in curves(read_run(run)) for line in curve.lines if line.label == "held-out"]
    assert (line.low.tolist(), line.high.tolist()) == ([0.4, 1.0], [0.7, 1.0])


def test_the_intervals_of_many_evaluations_are_thinned_with_their_values(tmp_path):
    value = {"eval/reward": 0.5, "eval/reward/low": 0.4, "eval/reward/high": 0.7}
    run = with_rows(tmp_path / "run", *({"step": step, **value} for step in range(5 * POINTS)))
    (line,) = [line for curve in curves(read_run(run)) for line in curve.lines if line.label == "held-out"]
    assert len(line.steps) == len(line.values) == len(line.low) == len(line.high) <= 2 * POINTS + 2


def test_a_torn_line_is_left_out_and_said(well, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(well, run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = lines[3][:50]
    (run / "metrics.jsonl").write_text("\n".join(lines)[:-40] + "\n\0\0\0")
    (run / "completions" / "step_000039.jsonl").write_bytes(b'{"prompt": "a", "compl\xff\xfe')
    (run / "run.json").write_text("{")
    (run / "warnings.jsonl").write_text('{"step": 1, "warning": ["x"], "text": "t"}\n[1]\n{"text"')
    text = page_of(run).text
    assert "metrics.jsonl has 2 line(s) that cannot be read and are left out (line 4, 41)" in text
    assert "step_000039.jsonl has 1 line(s)" in text and "run.json cannot be read" in text


def evaluation(run: Path, step: int, rewards: list[float], size: int = 1) -> None:
    """Writes two held-out answers to each prompt, of so many characters; the rewards are those of the prompts."""
    rows = [
        {"step": step, "prompt": f"p{n}", "answer": "", "completion": "x" * size, "rewards/x": reward, "reward": reward}
        for n, reward in enumerate(rewards)
        for _ in range(2)
    ]
    (run / "completions").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "completions" / f"held_out_{step:06d}.jsonl").write_text(lines)


def test_a_file_of_answers_that_is_read_in_part_is_said_and_compared_with_none(tmp_path, monkeypatch):
    run = with_rows(tmp_path / "run", {"step": 0, "eval/reward": 0.2}, {"step": 8, "eval/reward": 0.5})
    evaluation(run, 0, [0.0, 0.1, 0.3, 0.4], size=1000)
    evaluation(run, 8, [0.5, 0.4, 0.9, 0.2], size=1000)
    whole = headline(read_run(run))
    assert (
        whole.change is not None
        and whole.change.prompts == 4
        and not [each for each in read_run(run).problems if "larger" in each]
    )
    monkeypatch.setattr("grpo_jax.report.reading.EVALUATION_BYTES", 4_500)  # ends within the third prompt's answers
    found = read_run(run)
    assert headline(found).change is None
    assert [len(group) for group in found.held_out[8]] == [2, 2]
    said = [f"held_out_00000{n}.jsonl is larger than 4,500 bytes: only its first 5 answers are read" for n in (0, 8)]
    assert [problem for problem in found.problems if "larger" in problem] == said


def test_answers_of_steps_after_the_last_are_those_from_before_a_resume_and_left_out(tmp_path):
    run = healthy(steps=20).write(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in lines[:13]))  # resumed from step 12
    evaluation(run, 0, [0.0, 0.1])
    evaluation(run, 12, [0.5, 0.4])
    evaluation(run, 20, [0.5, 0.4])
    found = read_run(run)
    assert max(found.answers) == 12 and [*found.held_out] == [0, 12]
    said = ["answers of 7 step(s) after step 12 are left out", "answers of 1 step(s) after step 12 are left out"]
    assert [problem.partition(":")[0] for problem in found.problems] == said


def test_a_number_that_no_float_can_hold_is_none(tmp_path):
    large = "1" + 400 * "0"
    (tmp_path / "metrics.jsonl").write_text(
        f'{{"step": 1, "reward": {large}}}\n{{"step": 2, "reward": 0.5}}\n{{"step": {large}}}\n'
    )
    (tmp_path / "completions").mkdir()
    row = f'{{"prompt": "p", "completion": "c", "rewards/x": {large}, "length": {large}, "advantage": {large}'
    row += f', "tokens": ["c"], "logprobs": [{large}]}}\n'
    (tmp_path / "completions" / "step_000001.jsonl").write_text(row)
    assert "1 row(s) without a step" in page_of(tmp_path).text
    assert read_run(tmp_path).history[0]["reward"] is None


@pytest.mark.slow
def test_a_run_without_a_config_or_with_a_torn_one_makes_a_page(well, tmp_path):
    for number, config in enumerate((None, b"run:\n  name: \xff\xfe", b"")):
        run = tmp_path / str(number)
        shutil.copytree(well, run)
        (run / "config.yaml").unlink()
        if config is not None:
            (run / "config.yaml").write_bytes(config)
        assert "held-out reward" in page_of(run).text


@pytest.mark.slow
def test_a_run_of_an_earlier_version_makes_a_page(tmp_path):
    shutil.copytree(DATA / "run_of_0d0afb5" / "old", tmp_path / "old")
    text = page_of(tmp_path / "old").text
    assert "held-out reward" in text and "What is 4 + 4?" in text and "optimizer.learning_rate 0.001" in text


EVIL = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} {% raw %} &"
EVIL += " \x00\x1b[31m \ud800 \u202e"


def test_text_of_a_run_is_text_wherever_it_stands(tmp_path):
    run = healthy(steps=3).write(tmp_path / "run")
    name = "<b onclick=x>$\\frac{1}{2}$"
    row = {"step": 4, "reward": 0.1, f"rewards/{name}/mean": 0.3, "rewards/_x/mean": 0.1, f"own/{name}": 1.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row | {"step": step, f"own/{name}": step}) + "\n" for step in (4, 5)))
    answer = {"prompt": EVIL, "answer": EVIL, "completion": EVIL, f"rewards/{name}": 0.5, "advantage": [0.5, 0.0]}
    talk = answer | {"prompt": [{"role": EVIL, "content": EVIL}, {"role": "user", "content": [1]}]}
    (run / "completions" / "step_000005.jsonl").write_text(json.dumps(answer) + "\n" + json.dumps(talk) + "\n")
    (run / "warnings.jsonl").write_text(
        json.dumps({"step": 2, "warning": EVIL, "text": f"rollout.max_tokens {EVIL}", "answers": [EVIL]}) + "\n"
    )
    config = (
        run / "config.yaml"
    ).read_text() + f"model:  # grpo_jax.models:load\n  name: {json.dumps(EVIL)}  # <i>x</i>\n"
    (run / "config.yaml").write_text(config)
    page = page_of(run)
    assert "b" not in {tag for tag, attributes in page.tags if attributes}
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "\x00" not in page.html and "\x1b" not in page.html and "\u202e" not in page.html
    assert "{{ 7*7 }}" in page.text and "49" not in page.text.split("{{ 7*7 }}")[0][-5:]
    assert name in page.text


def test_the_lowest_and_the_highest_value_of_a_long_curve_are_drawn():
    steps = np.arange(100_000)
    values = np.sin(steps / 500)
    values[54_321], values[77_777] = 9.0, -9.0
    kept, drawn = thinned(steps, values)
    assert len(kept) <= 2 * POINTS + 2
    assert (drawn.max(), drawn.min(), kept[0], kept[-1]) == (9.0, -9.0, 0, 99_999)
    np.testing.assert_array_equal(values[kept], drawn)


@pytest.mark.slow
def test_a_run_of_100_000_steps_makes_a_small_page_in_seconds(tmp_path):
    run = healthy(steps=40).write(tmp_path / "run")
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 100_001):
            file.write(json.dumps(row | {"step": step, "reward": (step * 7919 % 1000) / 1000}) + "\n")
    # In a process of its own, without the type checks of tests, which cost more than the report.
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "grpo_jax", "report", str(run)], check=True, timeout=500)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20  # 10 on a machine that is idle
    file = run / "report.html"
    assert file.stat().st_size < 10_000_000
    Page(file).check()


def test_answers_of_one_group_stand_side_by_side_with_rewards_and_advantages(tmp_path):
    run = with_rows(tmp_path / "run", {"step": 1, "reward": 0.5})
    (run / "completions").mkdir()
    rows = [
        {"prompt": "p", "answer": "a", "completion": f"said {n}", "rewards/x": n, "rewards/y": 0, "advantage": n - 0.5}
        for n in (0, 1)
    ]
    (run / "completions" / "step_000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page_of(run).text
    assert "reward not known advantage +0.500 6 characters x 1 y 0 said 1" in text  # no weights: no total
    rows = [row | {"reward": 0.25 * row["rewards/x"]} for row in rows]
    (run / "completions" / "step_000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page_of(run).text
    assert "reward 0.25 advantage +0.500 6 characters x 1 y 0 said 1 reward 0 advantage -0.500" in text


def test_a_response_of_several_turns_is_shown_as_a_conversation(tmp_path):
    run = with_rows(tmp_path / "run", {"step": 1, "reward": 0.5})
    (run / "completions").mkdir()
    talk = [("assistant", '<tool_call>{"name": "f"}</tool_call>'), ("tool", EVIL), ("assistant", "It is 4.")]
    messages = [{"role": role, "content": content} for role, content in talk]
    row = {"prompt": "p", "answer": "a", "completion": "It is 4.", "reward": 1.0, "length": 9, "stop_reason": "done"}
    lines = [json.dumps(row | {"conversation": each}) for each in (messages, messages[2:], "torn", [3, 4])]
    (run / "completions" / "step_000001.jsonl").write_text("".join(f"{line}\n" for line in lines))
    text = page_of(run).text
    assert '9 tokens, ended by done assistant: <tool_call>{"name": "f"}</tool_call> tool: ' in text
    assert "assistant: It is 4. reward 1" in text and "ended by done It is 4." in text


@pytest.mark.parametrize("closed", [False, True], ids=["weights", "a gate"])
def test_totals_that_were_not_written_follow_from_the_metrics_if_they_can(closed, tmp_path):
    """An earlier version wrote the parts alone; each answer has the criteria good (0.3) and bad (-0.2)."""
    parts = [(1, 0), (1, 1), (0, 1), (1, 0.5)]
    totals = [0.3 * good - 0.2 * bad for good, bad in parts]
    totals[3] = 0.0 if closed else totals[3]
    means = [{"rewards/r/good/mean": good, "rewards/r/bad/mean": bad} for good, bad in parts]
    steps = zip(totals, means, strict=True)
    run = with_rows(tmp_path / "run", *({"step": n, "reward": t} | mean for n, (t, mean) in enumerate(steps, 1)))
    (run / "completions").mkdir()
    row = {"prompt": "p", "answer": "a", "completion": "said", "rewards/r/good": 1.0, "rewards/r/bad": 1.0}
    (run / "completions" / "step_000002.jsonl").write_text(json.dumps(row) + "\n")
    assert ("reward not known" if closed else "reward 0.1 ") in page_of(run).text


def test_held_out_answers_are_shown_first_against_last(tmp_path):
    run = with_rows(tmp_path / "run", {"step": 0, "eval/reward": 0.0}, {"step": 8, "eval/reward": 1.0})
    (run / "completions").mkdir()
    for step, said in ((0, "wrong"), (8, "right")):
        row = {
            "step": step,
            "prompt": "p",
            "answer": "a",
            "completion": f"it was {said}",
            "rewards/x": float(step == 8),
        }
        row |= {"reward": float(step == 8), "length": 3, "truncated": step == 0, "sample": 0}
        (run / "completions" / f"held_out_{step:06d}.jsonl").write_text(json.dumps(row) + "\n")
    text = page_of(run).text
    assert "1 questions are answered better than at step 0" in text
    assert "step 0 reward 0 3 tokens, cut off it was wrong step 8 reward 1 3 tokens it was right" in text


def test_tokens_are_coloured_by_their_probability_and_the_sign_of_the_advantage(tmp_path):
    run = with_rows(tmp_path / "run", {"step": 1, "reward": 0.5})
    (run / "completions").mkdir()
    rows = [
        {"completion": "It is", "tokens": ["It", " is", ""], "logprobs": [-0.01, -1.0, -5.0], "advantage": 0.5},
        {"completion": "<b>", "tokens": ["<b>"], "logprobs": [-0.5], "advantage": [-0.25, 0.0]},
        {"completion": "torn", "tokens": ["tor", "m"], "logprobs": [-9.0, -9.0], "advantage": 1.0},
        {"completion": "x", "tokens": ["x"], "logprobs": [None], "advantage": 0.0},
    ]
    lines = [json.dumps({"prompt": "p", "answer": "a", "rewards/x": 0.5} | row) + "\n" for row in rows]
    (run / "completions" / "step_000001.jsonl").write_text("".join(lines))
    page = page_of(run)
    spans = [attributes for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert spans[:4] == [
        {"title": "log-prob -0.01 (99 %), advantage +0.500"},
        {"class": "up-2", "title": "log-prob -1.00 (37 %), advantage +0.500"},
        {"class": "down-1", "title": "log-prob -0.50 (61 %), advantage -0.250"},
        {"title": "log-prob not known, advantage +0.000"},
    ]
    assert "It is" in page.text and "<b>" in page.text and "torn" in page.text


def test_a_long_text_is_cut_in_its_middle_and_says_so(tmp_path):
    run = with_rows(tmp_path / "run", {"step": 1, "reward": 0.5})
    (run / "completions").mkdir()
    row = {"prompt": "p", "completion": "b" + "x" * 100_000 + "e", "rewards/x": 1.0}
    (run / "completions" / "step_000001.jsonl").write_text(json.dumps(row) + "\n")
    page = page_of(run)
    assert "98,502 characters left out" in page.text and len(page.html) < 100_000


def chapter_of(title: str, tokens: int = 0, is_of_step: bool = True) -> Chapter:
    """A chapter with 16 answers of so many coloured tokens of two characters."""
    coloured = [Token("ab", "up-1", "")] * tokens
    card = Card("", "" if tokens else "ab", "1", 1.0, [], "", "", False, coloured)
    return Chapter(title, "", [Question([("prompt", "p")], "", [card] * 16)], is_of_step=is_of_step)


def test_a_page_that_would_be_too_large_loses_colours_first_and_says_so():
    """16 answers of 300 tokens are nearly half a million characters: twelve steps of them do not fit into two."""
    steps = [chapter_of(f"Step {step}", tokens=300) for step in range(12, 0, -1)]
    given = [*steps, chapter_of("Best", is_of_step=False)]
    kept, said = bounded(given, most=2_000_000)
    assert [chapter.title for chapter in kept] == [chapter.title for chapter in given]
    assert [chapter.title for chapter in kept if chapter.questions[0].is_coloured] == ["Step 12", "Step 11", "Step 1"]
    assert all(chapter.questions[0].cards[0].text == "ab" * 300 for chapter in kept[2:11])
    assert said == ["the tokens of 9 chapter(s) of answers have no colours: the page would be too large"]
    kept, said = bounded(given, most=50_000)
    assert [chapter.title for chapter in kept] == ["Step 12", "Step 1", "Best"]
    assert len(said) == 11 and "'Step 2' is left out: the page would be too large" in said
    assert bounded(given, most=10_000_000) == (given, [])


@pytest.mark.slow
def test_a_page_that_cannot_be_written_leaves_no_file(well, tmp_path):
    (tmp_path / "report.html" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        write_report(well, tmp_path / "report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    left = tmp_path / "page.html.123.new"
    left.write_text("half of a page")
    os.utime(left, (0, 0))
    write_report(well, tmp_path / "page.html")
    assert not left.exists()


# Several runs on one page, the commands, and training.


@pytest.mark.slow
def test_seeds_of_one_config_are_one_side_and_another_config_is_another(tmp_path):
    runs = [healthy(steps=12, seed=seed).write(tmp_path / f"seed{seed}") for seed in (0, 1, 2)]
    runs.append(healthy(steps=12, objective="grpo").write(tmp_path / "other"))
    text = Page(write_comparison(runs, tmp_path / "c.html")).check().text
    assert "seed0 (3 seeds) other" in text
    assert "0.850 (range 0.850 to 0.850 of 3 runs)" in text or "of 3 runs" in text
    assert "objective.use dapo grpo" in text and "train.seed" not in text


def test_the_mean_and_the_band_of_long_runs_are_those_of_each_step(tmp_path):
    generator, rewards = np.random.default_rng(0), []
    for seed in (0, 1, 2):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "config.yaml").write_text(f"train:\n  seed: {seed}  # made.yaml:1\n  steps: 3000\n")
        rewards.append(generator.random(3000))
        with_rows(tmp_path / str(seed), *({"step": n, "reward": r} for n, r in enumerate(rewards[-1].tolist())))
    (side,) = sides_of([read_run(tmp_path / str(seed)) for seed in (0, 1, 2)])
    (line,) = compared([side])[0].lines
    assert POINTS < len(line.steps) <= 2 * POINTS + 2
    values = np.stack(rewards)[:, line.steps]
    np.testing.assert_allclose(line.values, values.mean(axis=0))
    np.testing.assert_allclose((line.low, line.high), (values.min(axis=0), values.max(axis=0)))


@pytest.mark.slow
def test_the_commands_write_a_page_and_print_its_path(well, tmp_path, capsys):
    assert main(["report", str(well)]) == 0
    assert capsys.readouterr().out.strip() == str(well / "report.html")
    assert main(["report", str(well), str(well), "--out", str(tmp_path / "two.html")]) == 0
    Page(tmp_path / "two.html").check()
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "none is not a folder; give the directory of a run" in capsys.readouterr().err
    assert main(["report", str(well), "--out", str(tmp_path / "none" / "x.html")]) == 2
    assert "Give another file: --out FILE" in capsys.readouterr().err


def test_watch_prints_the_headline_the_diagnosis_and_small_curves_once(well, tmp_path, capsys):
    assert main(["watch", str(well), "--once"]) == 0
    out = capsys.readouterr().out
    assert "held-out reward 0.200" in out and "Nothing is wrong" in out and "Entropy" in out
    make, title = FAILURES["all wrong"]
    run = make().write(tmp_path / "run")
    (run / "completions" / "step_000040.jsonl").write_text(
        json.dumps({"prompt": "\x1b[31m", "completion": "\x1b]0;x\x07", "rewards/last_number": 0.0}) + "\n"
    )
    assert main(["watch", str(run), "--once"]) == 0
    out = capsys.readouterr().out
    assert title in out and "\x1b]0" not in out
    assert main(["watch", str(tmp_path / "none"), "--once"]) == 2


@pytest.mark.parametrize("columns", [40, 60, 70, 80, 100, 200])
def test_watch_cuts_no_number_and_no_curve_however_narrow_the_terminal(well, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["watch", str(well), "--once"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert not re.search(rf"[{BLOCKS}]…|\s[-+0-9.e]+…", out)
    rewards = RunDirectory(well).column("reward")[1]
    line = next(line for line in out.splitlines() if line.startswith("Reward: training"))
    assert {f"{rewards[0]:.4g}", f"{rewards[-1]:.4g}"} <= {*line.split()}


def test_watch_prints_plain_characters_where_the_terminal_knows_no_others(well):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "80"}
    command = [sys.executable, "-m", "grpo_jax", "watch", str(well), "--once"]
    found = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()
    assert "held-out reward 0.200" in found.stdout.decode("ascii")


@pytest.mark.slow
def test_a_report_needs_no_jax(well):
    program = (
        f"import sys; from grpo_jax.report.page import write_report; write_report({str(well)!r}); print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"jax", "flax", "orbax", "transformers", "matplotlib.pyplot"}.isdisjoint(out)


def test_training_makes_a_report_in_a_process_of_its_own(well, tmp_path):
    run, said, priority = tmp_path / "run", [], os.getpriority(os.PRIO_PROCESS, 0)
    shutil.copytree(well, run)
    (run / "report.html").unlink(missing_ok=True)
    reporter = Reporter(run, 5.0, True, said.append)
    reporter.after_step()
    assert reporter.process is None, "it is not due yet"
    reporter.begun -= 400
    reporter.after_step()
    assert reporter.process is not None and reporter.process.wait(120) == 0
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority
    Page(run / "report.html").check()
    reporter.after_step()
    reporter.leave()
    assert said == []


def test_a_run_that_is_stopped_makes_the_report_anew_that_was_being_made(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Reporter, "_start", lambda self, nice: started.append(nice))
    reporter = Reporter(tmp_path, 5.0, True, print)
    reporter.process = older = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    half = tmp_path / f"report.html.{older.pid}.new"
    half.write_text("half of a page")
    reporter.leave()
    assert older.poll() is not None and started == [19] and not half.exists()


def test_a_report_that_fails_is_one_warning(tmp_path):
    said = []
    reporter = Reporter(tmp_path / "gone", 5.0, True, said.append)
    for _ in range(2):
        reporter.begun -= 400
        reporter.after_step()
        reporter.process.wait(120)
    reporter.after_step()
    assert len(said) == 1 and said[0].startswith("warning: gone/report.html is not made (")
    assert "The run is not affected" in said[0]


def test_no_report_is_made_where_none_is_wanted_or_another_host_makes_it(tmp_path):
    for minutes, writes in ((0.0, True), (5.0, False)):
        reporter = Reporter(tmp_path, minutes, writes, print)
        reporter.begun -= 400
        reporter.after_step()
        reporter.finish()
        reporter.leave()
        assert reporter.process is None and list(tmp_path.iterdir()) == []


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def requests_of_the_page(log: Path) -> list[str]:
    """The addresses that a page from a file asked for, by Chromium's log of the network."""
    lines = log.read_text(errors="replace").splitlines()
    found = [re.search(r'"url":"([^"]+)"', line) for line in lines if '"initiator":"null"' in line]
    return [match[1] for match in found if match is not None]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1400, 400])
def test_a_browser_asks_for_nothing_and_prints_no_error(width, well, tmp_path):
    """Its log of the network has no request of the page; those of the browser itself have no origin."""
    page = tmp_path / "report.html"
    shutil.copy(write_report(well), page)
    log, picture = tmp_path / "net.json", tmp_path / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking", "--no-first-run"]
    command += [f"--log-net-log={log}", f"--window-size={width},1200", f"--screenshot={picture}", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert picture.stat().st_size > 10_000, found.stderr
    assert "CONSOLE" not in found.stderr
    assert requests_of_the_page(log) == []
    image = '<img src="http://localhost:9/a.png">'
    page.write_text(f"<html>{image}</html>")
    subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert requests_of_the_page(log) == ["http://localhost:9/a.png"]  # so a request would be seen
