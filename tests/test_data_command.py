"""`grpo-jax data` shows what a config asks, and what its rewards give for known answers."""

import json
import re
from pathlib import Path

import pytest

from grpo_jax.cli import main
from grpo_jax.commands.data.lengths import bars
from grpo_jax.commands.data.shown import marked, pieces
from grpo_jax.config import read
from grpo_jax.models.tokenizer import byte_tokenizer

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
ROWS = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1), "hints": ["add", "one"]} for n in range(3, 15)]
REWARDS = """
def mentions(example, response):
    return float(all(hint in response for hint in example.columns["hints"]))

def long(example, response):
    return float(len(response) > 20)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    Path("project/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("project/mine_of_the_command.py").write_text(REWARDS)
    Path("project/c.yaml").write_text(
        "model: {name: tiny}\ntask: {use: data, path: rows.jsonl, held_out_share: 0.3}\n"
        "rewards: [exact, last_number, {use: 'mine_of_the_command:mentions', weight: 0.5}]\ntrain: {steps: 1}\n"
    )
    return tmp_path


def test_a_config_shows_its_prompts_lengths_golds_and_probes(folder, capsys):
    assert main(["data", "project/c.yaml", "--show", "1", "--probes", "4"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"training: \d+ examples, the first from project/rows\.jsonl:\d+\nheld-out: \d+ examples", text)
    assert "rewards: exact (weight 1), last_number (weight 1), mentions (weight 0.5)" in text
    assert re.search(r"project/rows\.jsonl:\d+: 3[12] tokens, answer '\d+'\n    u│s│e│r│:│ │W│h│a│t", text)
    assert re.search(r"tokens of the training prompts: median 3\d.*_prompt_tokens is 512\n +31 to 31 +#+", text)
    assert re.search(r"  exact: (\d+) earn 1\n  last_number: \1 earn 1\n  mentions: 0 earn 1; less: ", text)
    earned = {line[:27].strip(): [*map(float, re.findall(r"\d\.\d{3}", line))] for line in text.splitlines()}
    assert earned["the gold answer"] == [2.0, 1.0, 1.0, 0.0]
    assert earned["nothing"] == earned["the question, repeated"] == [0.0] * 4
    assert earned["all words of the criteria"] == [0.5, 0.0, 0.0, 1.0]
    assert earned["the answer, denied"] == [1.0, 0.0, 1.0, 0.0]
    assert earned["many answers at once"] == [0.0] * 4
    assert re.findall(r"\n  ([a-z ,]+?) +\d.*can be fooled", text) == ["the answer, denied"]


@pytest.mark.faults
def test_what_training_would_refuse_is_listed_with_status_1(folder, capsys):
    rows = [{**row, "answer": " . "} if n % 4 == 1 else row for n, row in enumerate(ROWS)]
    Path("project/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "project/c.yaml", "task.held_out_share=0", "train.max_prompt_tokens=31"]) == 1
    text = capsys.readouterr().out
    assert "5 have more than 31, and training would refuse them (train.long_prompts): project/rows.jsonl:8, " in text
    assert "3 examples cannot be scored:" in text
    assert all(f"project/rows.jsonl:{line}: reward exact cannot score" in text for line in (2, 6, 10))


@pytest.mark.faults
def test_golds_that_earn_1_of_no_reward_are_listed_with_status_1(folder, capsys):
    changes = ["rewards=['mine_of_the_command:long']", "task.held_out_share=0"]
    assert main(["data", "project/c.yaml", *changes, "--show", "0", "--probes", "0"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"  long: 0 earn 1; less: .*rows\.jsonl:5 and 7 more\n  12 earn 1 of no reward: project", text)
    assert "no probes" in text
    assert main(["data", "project/c.yaml", "task.path=none.jsonl"]) == 2
    assert "none.jsonl is not a file" in capsys.readouterr().err


def test_tokens_are_shown_as_text_and_nothing_reaches_the_terminal_as_a_command():
    tokenizer = byte_tokenizer()
    ids = tokenizer.backend("né\n\x1b[2J", add_special_tokens=False)["input_ids"]
    assert list(pieces(ids, tokenizer)) == ["n", "é(2 tokens)", "\n", "\x1b", "[", "2", "J"]
    assert marked(ids, tokenizer) == "n│é(2 tokens)│\\n\n│\\x1b│[│2│J"
    assert "... 600 tokens ..." in marked(ids[:1] * 1000, tokenizer)


def test_every_length_is_in_one_bar():
    lines = bars([1, 1, 2, 30, 99, 100])
    assert len(lines) == 10 and sum(int(line.split()[-1]) for line in lines) == 6
    assert lines[0].split() == ["1", "to", "10", "#" * 40, "3"]
    assert bars([5, 5]) == [f"  5 to 5  {'#' * 40}  2"]


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_config_of_the_page_is_read(tmp_path, block):
    (tmp_path / "c.yaml").write_text(f"{block}train: {{steps: 1}}\n")
    call = read(tmp_path / "c.yaml").task
    assert call.target == "grpo_jax.tasks:data"
    row = {"question": "a", "result": "b", "prompt": "a", "answer": "b", "level": 2}
    for name in ("rows.jsonl", "held.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    if call.arguments["path"] == "rows.jsonl":
        assert call.build().held_out[0].answer == "b"


RUBRIC = """
[[criteria]]
name = "kind"
text = "Is it kind?"
[[criteria]]
name = "number"
text = "Does it name the number?"
rule = {any_of = "{answer}"}
"""


@pytest.mark.parametrize("judge", ["{name: tiny}", "{use: endpoint, url: 'http://127.0.0.1:9/v1', model: m}"])
def test_a_judge_is_asked_only_if_that_is_wanted(folder, judge, capsys):
    Path("project/r.toml").write_text(RUBRIC)
    Path("project/j.yaml").write_text(
        "model: {name: tiny}\ntask: {use: data, path: rows.jsonl}\nrewards: [{use: Rubric, path: r.toml}]\n"
        f"judge: {judge}\nobjective: rubric\ntrain: {{steps: 1}}\n"
    )
    assert main(["data", "project/j.yaml", "--show", "0", "--probes", "2"]) == 0
    printed = capsys.readouterr().out
    assert "judge: not asked" in printed and "Rubric/number: 12 earn 1" in printed and "Rubric/kind:" not in printed
    assert re.search(r"the gold answer +1\.000 +- +1\.000", printed)
    if "tiny" in judge:
        assert main(["data", "project/j.yaml", "--show", "0", "--probes", "2", "--judge"]) == 0
        printed = capsys.readouterr().out
        assert "judge: not asked" not in printed and "Rubric/kind: 0 earn 1" in printed
