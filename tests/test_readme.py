"""The README's code does what the README says."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_api_block_runs_and_its_reward_climbs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.splitlines()) <= 30
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    rewards = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(rewards) == 40
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5
