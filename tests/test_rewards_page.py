"""Every block of the page about rewards is run, and prints what stands behind `print`."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from grpo_jax.config import read
from grpo_jax.rewards import Example, score

PAGE = Path(__file__).parent.parent / "docs" / "rewards.md"
BASE = "task: {use: arithmetic}\ntrain: {steps: 1}\nmodel: {name: none}\n"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    """The module that the page writes."""
    own = [block for block in blocks("python") if block.startswith("# my_rewards.py\n")]
    (tmp_path / "my_rewards.py").write_text("\n".join(own))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    yield importlib.import_module("my_rewards")
    sys.modules.pop("my_rewards")


def test_the_python_of_the_page_prints_what_it_says(my_rewards, capsys):
    for block in blocks("python"):
        if block.startswith("# my_rewards.py\n"):
            continue
        exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
        printed = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert printed and capsys.readouterr().out.splitlines() == printed


def test_the_configs_of_the_page_build_their_rewards(my_rewards, tmp_path):
    for number, block in enumerate(blocks("yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(BASE + block)
        config = read(path)
        assert len([item.build() for item in config.rewards]) == 2
    last = [item.build() for item in config.rewards]
    assert (last[0].workers, last[0].deadline, last[1].on_error, last[1].workers) == (4, 5.0, "mask", 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("short", [0.97, 0.985]),
        ("names_the_city", [1, 0]),
        ("rarest", [0.5, 0.5]),
        ("all_at_once", [0, 1]),
        ("judged", [0, 0]),
        ("matches", [0, 0]),
        ("soft_limit", [0, 0]),
        ("correct", [0, 1]),
        ("exact_match", [0, 1]),
    ],
)
def test_every_reward_of_the_page_judges(my_rewards, name, expected):
    example = Example("q", "yes", {"city": "Osaka", "pattern": "a+", "answer": "yes"})
    found = score(getattr(my_rewards, name), [example], [["Osaka!", "yes"]], [[[1], [2]]], 0)
    assert found.ravel().tolist() == pytest.approx(expected)
