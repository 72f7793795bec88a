"""Every block of the page about environments is run, and prints what stands behind `print`."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.config import read
from grpo_jax.config.building import environment_of
from grpo_jax.environments import Bounded, tools
from grpo_jax.environments.configured import OF_LIMITS
from grpo_jax.environments.stepping import Stepper
from grpo_jax.rewards import Conversation, Example

PAGE = (Path(__file__).parent.parent / "docs" / "environments.md").read_text(encoding="utf-8")
FILES = ("my_env", "my_tools", "my_rewards")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The modules that the page writes."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (block,) = [block for block in blocks("python") if block.startswith(f"# {name}.py\n")]
        (tmp_path / f"{name}.py").write_text(block)
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in FILES}
    for name in FILES:
        sys.modules.pop(name)


def test_the_python_of_the_page_prints_what_it_says(modules, capsys):
    run = [block for block in blocks("python") if not block.startswith("# my_")]
    assert len(run) == 2
    for block in run:
        exec(compile(block, "environments.md", "exec"), {"__name__": "page"})
        printed = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert printed and capsys.readouterr().out.splitlines() == printed


def test_the_environment_of_fifteen_lines_has_fifteen_and_travels_between_steps(modules):
    lines = [line for line in blocks("python")[0].splitlines()[1:] if line.strip()]
    assert len(lines) <= 15
    stepper = Stepper(modules["my_env"].Countdown(), 1000)
    step, rewards = stepper(None, Example("?", "3"), 0), []
    for text in ("3", "2", "1"):
        step = stepper(step.state, {"role": "assistant", "content": text})
        rewards.append((step.reward, step.done))
    assert rewards == [(1, False), (1, False), (1, True)]


def test_the_configs_of_the_page_are_read_and_built(modules, tmp_path):
    first, second, trl = blocks("yaml")
    path = tmp_path / "config.yaml"
    table, _ = blocks("bash")[0].splitlines()
    subprocess.run(["bash", "-c", table], check=True)
    rest = "task: {use: arithmetic, train: 2, held_out: 1}\ntrain: {steps: 1}\nmodel: {name: none}\n"
    for text, turns in ((first, 10), (rest + second, 4)):
        path.write_text(text)
        config = read(path)
        assert environment_of(config.environment, config.task.build()).turns == turns
    assert "kind: trl" in trl


def test_the_table_of_limits_has_all_with_their_defaults():
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE, re.MULTILINE))
    bounded = tools(len_of)
    assert set(OF_LIMITS) <= set(rows)
    for name in OF_LIMITS:
        value = getattr(bounded, name)
        assert rows[name] == ("null" if value is None else f"{value:g}" if isinstance(value, float) else str(value))
    assert isinstance(bounded, Bounded)


def len_of(text: str) -> int:
    """How long a text is."""
    return len(text)


def test_the_reward_of_the_page_judges_conversations(modules):
    replies = [{"role": "assistant", "content": "a"}] * 2
    assert modules["my_rewards"].brief(Example("?"), Conversation(replies, [0.0, 0.0], [1, 1])) == 0.5
