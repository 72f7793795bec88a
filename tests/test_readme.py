"""The README and the pages for newcomers say what is so, and their code does what they say."""

import re
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax.config import read
from grpo_jax.training.progress import Progress

ROOT = Path(__file__).parent.parent


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text(page), re.DOTALL)


def test_the_readme_is_read_in_five_minutes():
    read_aloud = re.sub(r"```.*?```|\]\([^)]*\)|[|`#*-]", " ", text("README.md"), flags=re.DOTALL)
    assert len(read_aloud.split()) <= 5 * 200


def test_the_readme_says_how_large_the_package_is():
    page = re.search(r"grpo_jax/grpo\.py\), (\d+) lines\. The whole package is about ([\d,]+)", text("README.md"))
    assert int(page[1]) == len(text("grpo_jax/grpo.py").splitlines())
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "grpo_jax").rglob("*.py"))
    assert int(page[2].replace(",", "")) == pytest.approx(lines, rel=0.1)


def test_the_table_of_the_readme_has_every_config_that_trains_and_no_other():
    named = set(re.findall(r"configs/([\w.-]+\.yaml)", text("README.md")))
    assert named == {path.name for path in (ROOT / "configs").glob("*.yaml")} - {"travel_judged.yaml"}


def test_the_figures_of_the_readme_are_those_of_the_pages_with_their_commands():
    page, head = text("docs/training.md"), re.sub(r"\n# ?", " ", text("configs/quickstart.yaml"))
    for name in ("Tunix 0.1.7", "TRL 1.16.0"):
        (row,) = re.findall(rf"^\| {re.escape(name)} \|.*$", text("README.md"), re.MULTILINE)
        assert row.partition(name)[2] in re.sub(r", three steps after two", "", page)
    (own,) = re.findall(r"^\| grpo_jax \|.*$", text("README.md"), re.MULTILINE)
    (there,) = re.findall(r"^\| grpo_jax: .*$", page, re.MULTILINE)
    assert set(re.findall(r"\d+\.\d", own)) <= set(re.findall(r"\d+\.\d", there))
    before, after = re.search(r"the reward went from (0\.\d\d) to\s(0\.\d\d)", text("README.md")).groups()
    measured = re.search(r"64 held-out sums (0\.\d+) before, .* (0\.\d+) at 24", head).groups()
    assert [before, after] == [f"{float(value):.2f}" for value in measured]
    assert f"{re.search('([0-9.]+) of them training', text('README.md'))[1]} minutes" in head


def test_the_pages_for_newcomers_ask_for_the_python_that_the_package_needs():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    oldest, *newer = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">=3.{oldest}"
    assert all(f"Python 3.{oldest} or newer" in text(page) for page in ("README.md", "docs/start.md"))
    versions = ", ".join(f"3.{minor}" for minor in (oldest, *newer[:-1])) + f" or 3.{newer[-1]}"
    assert f"`python3 --version` has to say {versions}" in text("docs/install.md")


def test_the_variables_of_the_page_about_installing_are_read():
    rows = re.findall(r"^\|.*\|.*\|(.*)\|$", text("docs/install.md").split("## Where things are kept")[1], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z]{2,}_[A-Z_]+)\b", row)}
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "grpo_jax").rglob("*.py"))
    assert named >= {"GRPO_JAX_CACHE", "XDG_CACHE_HOME", "TFDS_DATA_DIR"}
    assert {name for name in named if name not in code} <= {"HF_HOME"}  # read by huggingface_hub


def test_the_own_table_of_the_first_ten_minutes_earns_what_the_page_says(tmp_path, monkeypatch):
    page = "docs/start.md"
    (table,) = [block for block in blocks(page, "text") if block.startswith("question,answer\n")]
    (reward,), (config,) = blocks(page), blocks(page, "yaml")
    for name, block in {"capitals.csv": table, "my_rewards.py": reward, "capitals.yaml": config}.items():
        (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    config = read(tmp_path / "capitals.yaml")
    task, (mixed,) = config.task.build(), [item.build() for item in config.rewards]
    shown = re.search(r"training: (\d+) examples, .*\nheld-out: (\d+) examples", text(page))
    assert (len(task.train), len(task.held_out)) == (int(shown[1]), int(shown[2]))
    assert all(mixed(example, example.answer) == 1 for example in (*task.train, *task.held_out))
    paris = next(example for example in task.train if example.answer == "Paris")
    assert mixed(paris, "The capital of France is Paris.") == pytest.approx(1 / 6)
    assert mixed(paris, "The answer is not Paris.") == pytest.approx(1 / 5)
    assert mixed(paris, "The capital of France is Lyon.") == 0
    sys.modules.pop("my_rewards", None)


def test_the_step_line_of_the_first_ten_minutes_is_what_training_prints(capsys):
    line = next(line for line in text("docs/start.md").splitlines() if line.startswith("step  8/24"))
    reward, length, entropy, grad, *times = map(float, re.findall(r" (\d+\.\d+)", line))
    progress = Progress(24, 7, watchdog_minutes=0.0)
    progress.times = dict(zip(("sampling", "scoring", "learning"), times[1:], strict=True))
    progress.durations.extend([57 / 16] * 9)
    progress.finish_step({"reward": reward, "completions/mean_length": length, "entropy": entropy, "grad_norm": grad})
    printed = capsys.readouterr().out.strip()
    assert re.sub(r"\d\.\d s ", "", printed) == re.sub(r"\d\.\d s ", "", line)


@pytest.mark.slow
def test_the_api_block_runs_and_its_reward_climbs(capsys):
    (block,) = blocks("README.md")
    assert len(block.splitlines()) <= 33
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    rewards = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(rewards) == 40
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5


@pytest.mark.slow
def test_the_page_about_python_runs_from_top_to_bottom(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *rest = blocks("docs/python.md")
    assert len(first.strip().splitlines()) == 15
    names: dict = {"__name__": "page"}
    for block in (first, *rest):
        exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    steps, rewards = names["gj"].RunDirectory("runs/grpo").column("reward")
    assert steps == [1, 2, 3] and all(0 <= reward <= 1.1 for reward in rewards)
    assert f"({steps}, {rewards})" in printed and "'reward':" in printed
    assert "asked ['" in printed
    assert int(names["state"].step) == 2
    advantages_PG = np.array([[1, -1, -1, 1], [0, 0, 0, 0]]) * 0.5 / (np.std([1, 0, 0, 1], ddof=1) + 1e-4)
    np.testing.assert_allclose(names["advantages_PG"], advantages_PG, rtol=1e-5)
    ratio = np.exp(0.2)
    per_token = np.minimum(ratio * advantages_PG, np.clip(ratio, 0.8, 1.2) * advantages_PG)
    np.testing.assert_allclose(names["loss"], -per_token.mean(), rtol=1e-5)
    assert isinstance(names["gradient_PGT"], jax.Array)


@pytest.mark.slow
def test_the_block_of_the_page_about_evaluation_runs(capsys):
    (block,) = blocks("docs/evaluation.md")
    names: dict = {"__name__": "page"}
    exec(compile(block, "docs/evaluation.md", "exec"), names)
    found = names["found"]
    assert len(found.answers) == 32 and len(found.of_prompts["pass@4"]) == 8 and "maj@4" in found
    assert f"{found['reward']} " in capsys.readouterr().out


@pytest.mark.slow
def test_the_block_of_the_page_about_sft_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("docs/sft.md")
    names: dict = {"__name__": "page"}
    exec(compile(block, "docs/sft.md", "exec"), names)
    steps, losses = names["gj"].RunDirectory("runs/warm").column("eval/loss")
    assert steps == [0, 2, 4] and losses[-1] < losses[0]
    assert str((steps, losses)) in capsys.readouterr().out
