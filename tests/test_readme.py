"""The code of the README and of the page about Python does what they say."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


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
