"""Prompts over the limit are refused, left out or cut, and counted with their places."""

import json

import pytest

from grpo_jax import objectives, optimizers
from grpo_jax.algorithm import Algorithm
from grpo_jax.config import read
from grpo_jax.devices.mesh import Layout
from grpo_jax.models.load import tiny
from grpo_jax.rollout import Sampler
from grpo_jax.tasks import data
from grpo_jax.training.long_prompts import fitted
from grpo_jax.training.session import Settings, assemble

MODEL = tiny()
ROWS = [{"prompt": f"{'so ' * (40 if n % 5 == 2 else 1)}{n} + 1 =", "answer": str(n + 1)} for n in range(16)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def session_of(rows, tmp_path, held_out=None, **settings):
    path = written(tmp_path / "rows.jsonl", rows)
    task = data(path, held_out=None if held_out is None else written(tmp_path / "held.jsonl", held_out))
    sampler = Sampler(MODEL.tokenizer.end_ids, responses=4, max_tokens=4)
    algorithm = Algorithm(
        policy=MODEL.policy,
        sample=sampler,
        decode=MODEL.tokenizer.decode,
        reward=task.reward,
        objective=objectives.grpo(),
        optimizer=optimizers.adamw(),
    )
    chosen = Settings(**({"steps": 2, "prompts": 4, "max_prompt_tokens": 64} | settings))
    return assemble(MODEL, task, algorithm, chosen, Layout(data=2, fsdp=1, tensor=4))


@pytest.mark.faults
def test_long_prompts_are_refused_with_the_ways_out(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.jsonl:3\) has \d+ tokens.*train\.long_prompts: leave_out or cut"):
        session_of(ROWS, tmp_path)


@pytest.mark.faults
def test_long_prompts_are_left_out_and_counted_by_file_and_line(tmp_path, caplog):
    other = [{**row, "prompt": f"other {row['prompt']}"} for row in ROWS[:8]]
    session = session_of(ROWS, tmp_path, other, long_prompts="leave_out")
    assert [example.answer for example in session.questions.examples] == [str(n + 1) for n in range(16) if n % 5 != 2]
    assert len(session.held_out.examples) == 6
    assert "3 of 16 training prompts have more than 64 tokens and are left out" in caplog.text
    assert "rows.jsonl:3, " in caplog.text and "rows.jsonl:13" in caplog.text and "2 of 8 held-out" in caplog.text
    with pytest.raises(ValueError, match="got 14 prompts and 13 examples"):
        session_of(ROWS, tmp_path, prompts=14, long_prompts="leave_out")


def cut(rows, tmp_path, max_tokens=64):
    return fitted(data(written(tmp_path / "rows.jsonl", rows)).train, MODEL, max_tokens, "cut", "training")


@pytest.mark.faults
def test_long_prompts_are_cut_at_their_beginning_as_little_as_needed(tmp_path, caplog):
    examples = cut(ROWS, tmp_path)
    assert [example.answer for example in examples] == [row["answer"] for row in ROWS]
    assert [len(MODEL.tokenizer.encode(examples[n].prompt)) for n in (2, 7, 12)] == [64] * 3
    assert all(row["prompt"].endswith(example.prompt) for row, example in zip(ROWS, examples, strict=True))
    assert "3 of 16 training prompts have more than 64 tokens and are cut" in caplog.text
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": ROWS[2]["prompt"]}]
    system, user = cut([{"prompt": chat, "answer": "3"}], tmp_path)[0].prompt
    assert system == chat[0] and user["content"].endswith("2 + 1 =")
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:1: its prompt is longer than train\.max_prompt_tokens of 6 even"
    ):
        cut(ROWS[2:3], tmp_path, 6)


def test_a_file_beside_the_config_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    written(tmp_path / "configs" / "rows.jsonl", ROWS[:2])
    written(tmp_path / "configs" / "held.jsonl", ROWS[3:4])
    config = tmp_path / "configs" / "c.yaml"
    config.write_text("task: {use: data, path: rows.jsonl, held_out: held.jsonl}\ntrain: {steps: 1}\n")
    (tmp_path / "derived.yaml").write_text("base: configs/c.yaml\ntrain: {steps: 2}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (config, tmp_path / "derived.yaml", "../configs/c.yaml"):
        task = read(path).task.build()
        assert len(task.train) == 2 and len(task.held_out) == 1
        assert task.train[0].source.endswith("configs/rows.jsonl:1")
    written(tmp_path / "elsewhere" / "rows.jsonl", ROWS[4:5])  # the current folder comes first
    assert len(read(config).task.build().train) == 1
    with pytest.raises(ValueError, match=r"command line: task\.path: none\.jsonl is not a file"):
        read(config, ["task.path=none.jsonl"]).task.build()
