"""A model in this process as a judge: what it computes, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from grpo_jax.config import build, read
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.judges import ModelJudge, in_process, model
from grpo_jax.judges.asking import about
from grpo_jax.models import tiny
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.models.weights import load_weights
from grpo_jax.rewards import Example, Rubric, score
from grpo_jax.rewards.rubrics import Asked, Sheet
from grpo_jax.structs import Prompts

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "judge.json").read_text())
ONE = Layout().mesh(jax.devices()[:1])
CHARACTERS = {"\n": 0} | {chr(code): code - 31 for code in range(32, 127)}
ASKED = tuple(Asked(f"c{n}", text, tuple(answers)) for n, (text, answers) in enumerate(EXPECTED["questions"]))
SHEETS = [Sheet("Be fair.", "Where?", response, ASKED) for response in EXPECTED["responses"]]


def character_tokenizer() -> Tokenizer:
    """A token for each printable character, as in make_judge.py."""
    backend = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(BPE(CHARACTERS, [])))
    return Tokenizer(backend, 96, (0,))


def golden_judge(name: str, mesh=ONE, **options) -> ModelJudge:
    policy = decoder_policy(read_shape(GOLDEN / name))
    params = load_weights(GOLDEN / name, policy.shapes, weight_shardings(policy.shapes, mesh))
    return ModelJudge(policy, params, character_tokenizer(), mesh, **({"max_tokens": 4096, "at_once": 16} | options))


def expected(name: str) -> np.ndarray:
    """The expected place among the answers, as a share of the best one's."""
    rows = EXPECTED["probabilities"][name]
    return np.array([[np.dot(p, np.linspace(0, 1, len(p))) for p in row] for row in rows])


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_judge_finds_answers_as_likely_as_transformers_does(name):
    values = golden_judge(name).judge(SHEETS)
    np.testing.assert_allclose(values, expected(name), atol=1e-5)
    assert np.ptp(expected(name)) > 0.01  # answers and questions differ


def test_an_answer_is_judged_alike_alone_in_pieces_and_on_several_devices():
    whole = golden_judge("llama").judge(SHEETS)
    pieces = golden_judge("llama", at_once=2).judge(SHEETS)
    divided = golden_judge("llama", Layout(fsdp=2, tensor=2).mesh()).judge(SHEETS)
    alone = [golden_judge("llama").judge([sheet])[0] for sheet in SHEETS]
    for other in (pieces, divided, alone):
        np.testing.assert_allclose(other, whole, atol=1e-5)
    assert golden_judge("llama").judge(SHEETS) == whole
    assert golden_judge("llama").judge([]) == []


def test_the_text_is_the_question_the_criteria_and_the_answer_and_a_reply_begins_with_a_name():
    row = golden_judge("llama").read(SHEETS[0])
    letters = {token: letter for letter, token in CHARACTERS.items()}
    assert "".join(letters[t] for t in row.text) == f"{about(SHEETS[0])}\n\nReply:\n"
    assert about(SHEETS[0]).endswith("c2: Place? (one of: no, yes)\n\nAnswer:\nIn Namba.")
    assert ["".join(letters[t] for t in begin) for begin in row.begins] == ["c0: ", "c1: ", "c2: "]
    assert [[letters[t] for t in answers] for answers in row.answers] == [["n", "y"], ["a", "f", "v"], ["n", "y"]]


def test_answers_are_told_apart_where_they_differ_first():
    judge = golden_judge("llama")
    judge.check(Sheet("", "?", "", (Asked("a", "?", ("not good", "not bad")),)))
    assert judge.read(Sheet("", "?", "", (Asked("a", "?", ("not good", "not bad")),))).answers == [[72, 67]]  # g and b
    with pytest.raises(ValueError, match=r"among those of a, 'no', 'nothing', 'yes', two begin alike"):
        judge.check(Sheet("", "?", "", (Asked("a", "?", ("no", "nothing", "yes")),)))


def test_an_answer_that_is_too_long_has_no_verdict_and_a_long_question_is_refused(caplog):
    judge = golden_judge("llama", max_tokens=250)
    sheets = [SHEETS[0], Sheet("Be fair.", "Where?", "x" * 500, ASKED)]
    values = judge.judge(sheets)
    assert values[1] == [None, None, None]
    np.testing.assert_allclose(values[0], expected("llama")[0], atol=1e-5)
    assert "1 of 2 answers are longer than the judge reads" in caplog.text
    with pytest.raises(ValueError, match=r"Raise judge\.max_tokens"):
        judge.check(Sheet("", "x" * 300, "", ASKED))


def test_a_rubric_asks_the_tiny_model_by_its_chat_template(tmp_path):
    (tmp_path / "r.toml").write_text('[[criteria]]\nname = "kind"\ntext = "Is it kind?"\n')
    reward = Rubric(str(tmp_path / "r.toml"), judge=model("tiny"))
    example = Example([{"role": "system", "content": "s"}, {"role": "user", "content": "Where?"}])
    reward.check(example)
    values = reward([example], [["a", "b<|x|>\n", "a"]])[0]
    assert all(0 < each["kind"] < 1 for each in values) and values[0] == values[2] != values[1]
    loaded = tiny()
    ids = loaded.tokenizer.encode(
        [{"role": "user", "content": about(Sheet("", "Where?", "a", (Asked("kind", "Is it kind?"),)))}]
    ) + [ord(letter) for letter in "kind: "]
    tokens = np.array(ids, np.int32)[None]
    params = loaded.params(ONE)
    last_PD, _ = loaded.policy.read(params, Prompts(tokens, np.ones(tokens.shape, bool)))
    logits_PV = loaded.policy.unembed(params, last_PD)
    yes, no = (float(logits_PV[0, ord(letter)]) for letter in "yn")
    assert values[0]["kind"] == pytest.approx(1 / (1 + np.exp(no - yes)), abs=1e-5)


def test_an_answer_is_read_once_and_the_same_forward_pass_answers_all_questions(monkeypatch):
    judge, passes, other = golden_judge("llama"), [], [replace(sheet, prompt="Whose?") for sheet in SHEETS]
    monkeypatch.setattr(
        in_process, "_answer_probabilities", lambda *given: passes.append(given) or np.ones((2, 3, 3, 3))
    )
    judge.judge([*SHEETS, *other])
    ((_, _, prompts, tokens_PGT, start_PGT, length_PG, trunk_PG, *_),) = (
        passes  # one pass for all questions and answers
    )
    assert tokens_PGT.shape[:2] == (2, 3)  # two questions, which are read once, with three answers each
    assert (np.asarray(prompts.valid_PL).sum(axis=1) == len(about(SHEETS[1]))).all()  # the second answer is empty
    ends = len("\n\nReply:\n")
    assert np.asarray(trunk_PG).tolist() == [[len(text) + ends for text in EXPECTED["responses"]]] * 2
    assert (np.asarray(length_PG) - np.asarray(trunk_PG) == 3 * len("c0: ")).all()
    assert len({*np.asarray(start_PGT)[0, 0].tolist()}) == 1 + len(ASKED)


def test_groups_of_unequal_sizes_are_judged_as_each_answer_alone():
    judge = golden_judge("llama", at_once=2)
    sheets = [replace(sheet, prompt=prompt) for prompt in ("A?", "B?") for sheet in SHEETS]
    sheets = [*sheets, replace(SHEETS[0], criteria=ASKED[:1]), SHEETS[2]]
    alone = [judge.judge([sheet])[0] for sheet in sheets]
    for found, wanted in zip(golden_judge("llama").judge(sheets), alone, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_judge_of_another_family_reads_what_the_policy_wrote_with_its_own_tokenizer(tmp_path):
    (tmp_path / "r.toml").write_text(
        "instructions = 'Be fair.'\n"
        + "".join(f"[[criteria]]\nname = '{a.name}'\ntext = '{a.text}'\nanswers = {list(a.answers)}\n" for a in ASKED)
    )
    writes = tiny().tokenizer
    texts = [writes.decode(writes.backend(text)["input_ids"]) for text in EXPECTED["responses"]]
    values_PGR = score(Rubric(str(tmp_path / "r.toml"), judge=golden_judge("qwen3")), [Example("Where?")], [texts])
    np.testing.assert_allclose(values_PGR[0], expected("qwen3"), atol=1e-5)


CONFIG = """
run: {name: t}
model: {name: tiny}
task: {use: arithmetic, train: 8, held_out: 2}
rewards: [{use: Rubric, path: r.toml, weight: 2.0}]
judge: {name: tiny, at_once: 4}
rollout: {responses: 4, max_tokens: 4}
train: {steps: 1, prompts: 4}
"""


def test_a_config_names_the_judge_and_the_rubric_gets_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text('[[criteria]]\nname = "kind"\ntext = "Is it kind?"\n')
    (tmp_path / "c.yaml").write_text(CONFIG)
    algorithm = build(read("c.yaml"))["algorithm"]
    ((reward, weight),) = algorithm.reward.parts
    assert isinstance(reward, Rubric) and weight == 2.0
    assert isinstance(reward.judge, ModelJudge) and reward.judge.at_once == 4
    assert algorithm.judge[1] is reward.judge.params
