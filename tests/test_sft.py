"""Supervised fine-tuning: given answers as groups of one, against torch, and as a run."""

import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_metrics_page import unexplained
from test_models import GOLDEN, ONE, load_golden
from test_text import CHATML, END, END_OF_TEXT, EOS, START, TROUBLE, save_tokenizer

import grpo_jax as gj
from grpo_jax import grpo
from grpo_jax.algorithm import Algorithm
from grpo_jax.cli import main
from grpo_jax.config import build, read, render
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place, place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.learner.microbatches import choose
from grpo_jax.learner.update import add_gradient, microbatches, shardings_of
from grpo_jax.models import tiny
from grpo_jax.models.answered import answered
from grpo_jax.models.tokenizer import byte_tokenizer, load_tokenizer
from grpo_jax.models.weights import load_weights
from grpo_jax.objectives.presets import dapo, likelihood
from grpo_jax.optimizers import adamw
from grpo_jax.report.curves import whole_curves
from grpo_jax.report.page import write_report
from grpo_jax.report.reading import read_run
from grpo_jax.rewards import Example, Mix, exact
from grpo_jax.rollout import as_engine
from grpo_jax.rollout.given import Answered, GivenAnswers
from grpo_jax.saved.directory import RunDirectory
from grpo_jax.structs import Prompts, Rollouts
from grpo_jax.tasks import Task, kept
from grpo_jax.training import supervised
from grpo_jax.training.supervised import Supervised

EXPECTED = np.load(GOLDEN / "sft" / "expected.npz")
OPTIMIZER = {"learning_rate": 1e-3, "warmup_steps": 2, "clip_norm": 0.5, "weight_decay": 0.1}  # of golden/make_sft.py


def batch_of(step: int) -> tuple[Prompts, list[Answered]]:
    """The examples of a step of golden/make_sft.py."""
    rows = [[EXPECTED[f"{kind}_{step}_{index}"] for kind in ("prompt", "answer", "said")] for index in range(4)]
    tokens_PL, valid_PL = np.zeros((4, 24), np.int32), np.zeros((4, 24), bool)
    for index, (prompt, _, _) in enumerate(rows):
        tokens_PL[index, 24 - len(prompt) :], valid_PL[index, 24 - len(prompt) :] = prompt, True
    examples = [Answered("?", tokens_T=answer.astype(np.int32), said_T=said, ended=True) for _, answer, said in rows]
    return Prompts(tokens_PL, valid_PL), examples


def algorithm_of(policy, **changes) -> Algorithm:
    engine = GivenAnswers(as_engine(lambda *given: None), max_tokens=128)
    parts = {"objective": likelihood(), "optimizer": adamw(**OPTIMIZER)}
    return Algorithm(policy, engine, str, lambda example, response: 0.0, **parts | changes)


def rollouts_of_step(algorithm: Algorithm, step: int, mesh=ONE) -> Rollouts:
    prompts, examples = batch_of(step)
    prompts = place_prompts(prompts, mesh)
    return algorithm.engine(algorithm.policy, {}, prompts, jax.random.key(0), examples)


def stored(policy, name: str):
    """Arrays that torch has written under the names of the weights."""
    return load_weights(GOLDEN / "sft" / name, policy.shapes, weight_shardings(policy.shapes, ONE))


def state_of(algorithm: Algorithm, params, mesh=ONE):
    state = grpo.init(algorithm, params)
    return jax.tree.map(place, state, weight_shardings(state, mesh))


def learned_from(algorithm: Algorithm, state, step: int, mesh=ONE):
    prompts, examples = batch_of(step)
    return grpo.step(algorithm, state, place_prompts(prompts, mesh), examples, jax.random.key(step))


def same(found, expected, tolerance: float = 1e-5):
    """All weights the same, as parts of the largest number of each."""
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        size = np.abs(np.asarray(b)).max()
        np.testing.assert_allclose(np.asarray(a) / size, np.asarray(b) / size, atol=tolerance, err_msg=str(path))


def gradient_unpacked(policy, params):
    """The same, with a row of its own for each answer, as long as any may be."""
    rollouts = rollouts_of_step(algorithm_of(policy), 0)

    def loss_of(params):
        return -jnp.sum(token_logprobs(policy, params, rollouts)[0]) / jnp.sum(rollouts.action_PGT)

    return jax.jit(jax.value_and_grad(loss_of))(params)


def gradient_of(algorithm: Algorithm, params, mesh=ONE):
    """The loss and its gradient on the first batch, of all microbatches together."""
    state, rollouts = state_of(algorithm, params, mesh), rollouts_of_step(algorithm, 0, mesh)
    batch = grpo.prepare(algorithm, state, rollouts, grpo.score(algorithm, rollouts, batch_of(0)[1]), jax.random.key(0))
    batch, shardings, total = replace(batch, metrics={}), shardings_of(state), None
    for each in microbatches(algorithm, state.params, rollouts)[1][0]:
        chosen = choose(batch, each.index_p, each.index_pg, mesh)
        found = add_gradient(algorithm, shardings, state.params, None, chosen, each.slots_PBW)[0]
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total[0], total[2]


def test_loss_and_gradient_are_those_of_transformers():
    policy, params = load_golden("llama")
    loss, gradient = gradient_of(algorithm_of(policy), params)
    np.testing.assert_allclose(loss, EXPECTED["losses"][0], rtol=1e-5)
    same(gradient, stored(policy, "gradient"))


def test_three_steps_are_those_of_torch():
    policy, params = load_golden("llama")
    algorithm = algorithm_of(policy)
    state = state_of(algorithm, params)
    for step in range(3):
        state, metrics = learned_from(algorithm, state, step)
        np.testing.assert_allclose(metrics["loss"], EXPECTED["losses"][step], rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], EXPECTED["norms"][step], rtol=1e-5)
    before = load_golden("llama")[1]
    moved = jax.tree.map(jnp.subtract, state.params, before)
    same(moved, jax.tree.map(jnp.subtract, stored(policy, "trained"), before), tolerance=1e-3)
    same(state.params, stored(policy, "trained"))


@pytest.mark.slow
def test_microbatches_and_packing_change_nothing():
    policy, params = load_golden("llama")
    whole = gradient_of(algorithm_of(policy), params)
    loss, gradient = gradient_of(algorithm_of(policy, responses_at_once=1), load_golden("llama")[1])
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    same(gradient, whole[1], tolerance=4e-6)
    loss, gradient = gradient_unpacked(policy, load_golden("llama")[1])
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    same(gradient, whole[1], tolerance=4e-6)


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    mesh = Layout(data=2, fsdp=2, tensor=2).mesh()
    policy, params = load_golden("llama", mesh)
    loss, gradient = gradient_of(algorithm_of(policy), params, mesh)
    np.testing.assert_allclose(loss, EXPECTED["losses"][0], rtol=1e-5)
    same(gradient, stored(policy, "gradient"))


@pytest.mark.slow
def test_every_answer_counts_the_same_if_asked_for():
    policy, params = load_golden("llama")
    rollouts = rollouts_of_step(algorithm_of(policy), 0)
    logprobs_PGT, _ = token_logprobs(policy, params, rollouts)
    means = [float(row[said].mean()) for row, said in zip(logprobs_PGT[:, 0], rollouts.action_PGT[:, 0], strict=True)]
    loss, _ = gradient_of(algorithm_of(policy, objective=likelihood("sequence_mean")), params)
    np.testing.assert_allclose(loss, -np.mean(means), rtol=1e-5)


# Tokens of answers.

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "2 + 2?"},
]
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not thinks %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return load_tokenizer(save_tokenizer(tmp_path_factory.mktemp("chat"), CHATML, **EOS))


def texts_of(tokenizer, prompt, turns) -> tuple[str, str]:
    """What is learned to be said, and all that follows the prompt."""
    found = answered(tokenizer, prompt, turns)
    said = [token for token, chosen in zip(found.ids, found.said, strict=True) if chosen]
    return tokenizer.backend.decode(said), tokenizer.backend.decode(found.ids)


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_an_answer_is_what_the_template_adds_to_the_prompt_up_to_its_end(chat):
    whole = chat.backend.apply_chat_template([*CONVERSATION, say("4")], return_dict=False)
    found = answered(chat, CONVERSATION, [say("4")])
    assert chat.encode(CONVERSATION) + found.ids == whole[: -len("\n")]
    assert found.ids[-1] == END
    assert all(found.said)


def test_all_turns_are_learned_with_their_ends_and_nothing_between_them(chat):
    said, whole = texts_of(chat, CONVERSATION[:2], [*CONVERSATION[2:], say("4")])
    assert said == "Yes.<|im_end|>4<|im_end|>"
    assert whole == "Yes.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"


def test_the_end_of_a_turn_in_an_answer_is_text(chat):
    found = answered(chat, CONVERSATION, [say(TROUBLE)])
    assert [token for token in found.ids if token in (START, END)] == [END]
    assert chat.backend.decode(found.ids) == f"{TROUBLE}<|im_end|>"


def test_an_answer_goes_on_from_what_the_prompt_has_of_it(chat):
    begun = [*CONVERSATION, say("The answer")]
    assert texts_of(chat, begun, [say(" is 4")])[1] == " is 4<|im_end|>"


def test_an_answer_without_an_end_in_the_template_gets_one(chat, tmp_path):
    tokenizer = byte_tokenizer()
    assert answered(tokenizer, "Hi?", [say("Yes.")]).ids == [*b" Yes.", 257]
    base = load_tokenizer(save_tokenizer(tmp_path, None, **EOS))
    assert answered(base, "1, 2,", [say(" 3")]).ids == [*b" 3", END_OF_TEXT]


def test_thoughts_that_a_template_adds_are_a_part_of_the_prompt_or_of_the_answer(tmp_path):
    save_tokenizer(tmp_path, THINKING, **EOS)
    empty = "<think>\n\n</think>\n\n"
    assert texts_of(load_tokenizer(tmp_path, {"thinks": True}), CONVERSATION, [say("4")])[1] == f"{empty}4<|im_end|>"
    assert texts_of(load_tokenizer(tmp_path), CONVERSATION, [say("4")])[1] == "4<|im_end|>"
    with pytest.raises(ValueError, match=r"changes an earlier turn once a later one follows.* or use another"):
        answered(load_tokenizer(tmp_path), CONVERSATION[:2], [*CONVERSATION[2:], say("4")])


def test_a_template_that_changes_an_answer_is_refused(tmp_path):
    upper = CHATML.replace("message['content'] | trim", "message['content'] | upper")
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, upper, **EOS))
    with pytest.raises(ValueError, match="changes the text of the answer"):
        answered(tokenizer, CONVERSATION, [say("four")])


# Which answers are learned.

MODEL = tiny()


def parts_of(train, held_out=(), answers=None, **changes):
    task = Task(tuple(train), tuple(held_out), Mix(((exact, 1.0),)))
    algorithm = Algorithm(MODEL.policy, as_engine(lambda *given: None), str, task.reward, dapo(), adamw())
    return Supervised(**changes).parts(MODEL, task, algorithm, answers)


def ask(text: str, answer: str, **columns) -> Example:
    return Example(text, answer, columns, f"rows.jsonl:{len(text)}")


def test_the_text_to_learn_may_be_another_column_than_the_answer_that_is_checked():
    task, algorithm = parts_of([ask("?", "4", worked="2 + 2 = 4")], answer="worked")
    (example,) = task.train
    assert bytes(example.tokens_T[:-1].tolist()).decode().strip() == "2 + 2 = 4"
    assert example.answer == "4"
    assert algorithm.engine.responses == 1


def test_an_example_without_an_answer_is_named_by_its_place():
    with pytest.raises(ValueError, match=r"^rows.jsonl:2: there is no answer to learn.*columns with text: note"):
        parts_of([ask("?", "4"), ask("??", " ", note="x")])
    with pytest.raises(ValueError, match=r"^rows.jsonl:1: there is no text in column 'worked'"):
        parts_of([ask("?", "4")], answer="worked")


def test_answers_that_are_cut_are_counted_and_refused_if_most_are(caplog):
    short, long = ask("?", "4"), ask("??", "x" * 40)
    task, _ = parts_of([short, short, long], max_tokens=16)
    assert "1 of 3 given answers have more than 16 tokens (sft.max_tokens)" in caplog.text
    assert "rows.jsonl:2" in caplog.text
    assert [(len(each.tokens_T), each.ended) for each in task.train] == [(3, True), (3, True), (16, False)]
    with pytest.raises(ValueError, match=r"2 of 3 given answers .* Raise sft.max_tokens"):
        parts_of([short, long, long], max_tokens=16)


def test_all_turns_of_a_conversation_begin_after_its_first_question():
    example = Example(CONVERSATION, "4")
    task, _ = parts_of([example], [example], turns="all")
    assert task.train[0].prompt == CONVERSATION[:2]
    assert not task.train[0].said_T.all()
    assert task.held_out[0].prompt == CONVERSATION
    assert task.held_out[0].said_T.all()


def test_answers_of_another_task_are_learned_and_the_tasks_own_questions_held_out():
    other = Task((ask("!!", "5"),), (), Mix(((exact, 1.0),)))
    task, _ = parts_of([ask("?", "4")], [ask("???", "6"), ask("????", "")], answers=other)
    assert [each.prompt for each in task.train] == ["!!"]
    assert [isinstance(each, Answered) for each in task.held_out] == [True, False]


def keep(path: Path, step: int, *rows: tuple) -> None:
    names = ("prompt", "completion", "reward", "truncated")
    lines = [json.dumps(dict(zip(names, row, strict=True)) | {"answer": "4"}) for row in rows]
    (path / "completions").mkdir(parents=True, exist_ok=True)
    (path / "completions" / f"step_{step:06d}.jsonl").write_text("\n".join(lines) + "\n")


def test_the_best_answers_of_a_run_are_kept(tmp_path):
    keep(tmp_path, 1, ("a", "good", 1.0, False), ("a", "bad", 0.0, False), ("b", "cut", 1.0, True))
    keep(tmp_path, 2, ("a", "good ", 1.0, False), ("a", "later", 1.0, False), ("c", "best", 2.0, False))
    keep(tmp_path, 3, ("c", "fine", 1.0, False), ("b", "no score", None, False))

    def found(**choices):
        return [(each.prompt, each.answer) for each in kept(str(tmp_path), **choices).train]

    assert found() == [("a", "later"), ("c", "best")]
    assert found(best=None) == [("a", "later"), ("a", "good "), ("c", "best"), ("c", "fine")]
    keep(tmp_path, 4, ("d", "twice", 0.5, False), ("d", "once", 0.75, False), ("d", "twice", 1.0, False))
    assert found(least=0.5)[-1] == ("d", "twice")
    assert found(best=None, least=0.5)[-2:] == [("d", "twice"), ("d", "once")]
    (tmp_path / "completions" / "step_000004.jsonl").unlink()
    assert found(least=1.5) == [("c", "best")]
    assert found(of_steps=(1, 1)) == [("a", "good")]
    assert kept(str(tmp_path)).train[0].columns == {"answer": "4", "reward": 1.0, "step": 2}
    assert kept(str(tmp_path)).train[0].source == f"{tmp_path}, step 2"
    with pytest.raises(ValueError, match=r"of the 7 with a reward the highest earned 2. Lower answers.least"):
        found(least=3.0)
    with pytest.raises(ValueError, match="it has those of steps 1 to 3"):
        found(of_steps=(7, 9))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        kept(str(tmp_path / "none"))


# A run.

CONFIG = """
model: {name: tiny}
task: {use: arithmetic, train: 64, held_out: 8}
rollout: {responses: 2, max_tokens: 4}
train: {steps: 9, prompts: 8, evaluate_every: 2, save_every: 2, report_minutes: 0}
sft:
  max_tokens: 32
  run: {name: warm}
  optimizer: {learning_rate: 1e-2, warmup_steps: 1}
  train: {steps: 4, resample: 3}
objective: distillation
"""  # an objective without its teacher, and asking again: sft looks at neither


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("sft") / "both.yaml"
    path.write_text(f"{CONFIG}run: {{name: grpo, root: {path.parent}}}\n")
    return path


@pytest.fixture(scope="module")
def warm(config):
    """A run of four steps; what it printed is beside it."""
    with (config.parent / "said.txt").open("w") as output, redirect_stdout(output):
        assert main(["sft", str(config)]) == 0
    return RunDirectory(config.parent / "warm")


def weights_of(path: Path, step: int):
    """The files of the weights of a checkpoint, restored."""
    return ocp.StandardCheckpointer().restore(path / "checkpoints" / str(step) / "default")["params"]


@pytest.mark.slow
def test_a_run_measures_what_means_something(warm):
    before, *steps = warm.metrics()
    assert unexplained([before, *steps]) == []
    assert [row["step"] for row in (before, *steps)] == [0, 1, 2, 3, 4]
    assert steps[-1]["eval/loss"] < before["eval/loss"] - 0.5
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {"loss", "grad_norm", "tokens", "entropy", "learning_rate", "completions/mean_length"} <= steps[0].keys()
    foreign = ("reward", "clip_ratio", "sampling/sampling", "sampling/importance", "frac_reward", "advantage")
    assert [name for name in steps[0] if name.startswith(foreign)] == []
    assert {"eval/reward", "eval/loss", "eval/length"} <= steps[1].keys()
    assert warm.answer_steps() == []
    assert warm.held_out_steps() == [0, 2, 4]


@pytest.mark.slow
def test_the_loss_of_held_out_answers_is_the_mean_over_their_tokens(warm, config):
    parts = build(read(config, sft=True))
    model, held_out = parts["model"], parts["task"].held_out
    params, total, tokens = model.params(ONE), 0.0, 0
    first_PL, all_PGT = Prompts(np.ones((1, 1), np.int32), np.zeros((1, 1), bool)), jnp.ones((1, 1, 96), bool)
    hidden = jax.jit(lambda tokens_PGT: model.policy.respond(params, first_PL, tokens_PGT, all_PGT)[1])
    for example in held_out:
        asked, said = model.tokenizer.encode(example.prompt), example.tokens_T.tolist()
        both_T = np.array(asked + said, np.int32)
        hidden_TD = hidden(jnp.asarray(np.pad(both_T, (0, 96 - len(both_T)))[None, None]))[0, 0]
        logits_TV = np.asarray(model.policy.unembed(params, hidden_TD), np.float64)[len(asked) - 1 :]
        for logits_V, token in zip(logits_TV, said, strict=False):
            total += np.log(np.exp(logits_V).sum()) - logits_V[token]
            tokens += 1
    np.testing.assert_allclose(warm.metrics()[0]["eval/loss"], total / tokens, rtol=1e-5)


def test_its_lines_and_its_report_speak_of_given_answers(warm):
    said = (warm.path.parent / "said.txt").read_text()
    assert "given answers are learned" in said and "KL" not in said
    assert f"next: grpo-jax train CONFIG model.name={warm.path} goes on from here with rewards" in said
    drawn = {curve.title: curve.says for curve in whole_curves(read_run(warm.path))}
    assert "sft.max_tokens" in drawn["Cut-off answers"]


def test_long_encoding_says_how_long_it_takes(monkeypatch, caplog):
    monkeypatch.setattr(supervised, "ENOUGH", 1)
    monkeypatch.setattr(supervised, "SLOW", 0)
    caplog.set_level("INFO")
    parts_of([ask("?", "4")] * 8, [ask("!", "5")])
    assert "encoding 8 given answers takes about 0 s" in caplog.text


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_weights_also_from_python(warm, config):
    assert main(["sft", str(config), "run.name=halves", "train.steps=2"]) == 0
    optimizer = "optimizer={learning_rate: 1e-2, warmup_steps: 1}"
    parts = build(read(config, ["run.name=halves", "train.steps=4", "train.resample=3", "objective=dapo", optimizer]))
    trained = gj.sft(**parts | {"config": ""}, supervised=Supervised(max_tokens=32), resume=True)
    assert trained.complete
    halves = RunDirectory(trained.path)
    jax.tree.map(np.testing.assert_array_equal, weights_of(halves.path, 4), weights_of(warm.path, 4))
    assert [row["loss"] for row in halves.metrics()[1:]] == [row["loss"] for row in warm.metrics()[1:]]


@pytest.mark.slow
def test_a_run_is_a_model_for_grpo_at_once(warm, config, capsys):
    assert main(["train", str(config), f"model.name={warm.path}", "train.steps=1", "objective=reinforce_pp"]) == 0
    first = RunDirectory(config.parent / "grpo").metrics()[0]
    last = warm.metrics()[-1]
    assert first["eval/reward"] == last["eval/reward"]
    assert first["eval/length"] == last["eval/length"]
    assert f"first weights: {warm.path}@4" in capsys.readouterr().out


def test_a_report_says_what_happened_to_the_loss(warm, capsys):
    text = write_report(warm.path).read_text()
    assert "loss of held-out answers from" in text
    assert "Cross-entropy of given answers" in text
    assert "Clip fractions" not in text
    assert main(["watch", str(warm.path), "--once"]) == 0
    assert "Loss: held-out" in capsys.readouterr().out


def test_sections_inside_of_sft_count_for_it_alone(config):
    grpo_config, sft_config = read(config), read(config, ["train.prompts=16"], sft=True)
    assert (grpo_config.train.arguments["steps"], sft_config.train.arguments["steps"]) == (9, 4)
    assert (grpo_config.run.arguments["name"], sft_config.run.arguments["name"]) == ("grpo", "warm")
    assert (grpo_config.sft, sft_config.sft.arguments["max_tokens"]) == (None, 32)
    assert sft_config.train.arguments["prompts"] == 16
    assert sft_config.train.arguments["evaluate_every"] == 2


def test_its_config_and_what_it_needs_can_be_shown(config, capsys):
    assert main(["config", str(config), "--sft"]) == 0
    assert "steps: 4" in capsys.readouterr().out
    assert main(["config", str(config)]) == 0
    assert "sft:" not in capsys.readouterr().out
    assert main(["plan", "gsm8k_qwen3_0.6b", "sft.max_tokens=512", "--sft", "--memory", "16GiB"]) == 0
    assert "1 responses of 512; a device learns from 8 responses at once" in capsys.readouterr().out


def test_a_config_of_sft_is_written_as_it_is_read(config, tmp_path):
    found = read(config, ["answers={use: kept, run: runs/a}"], sft=True)
    (tmp_path / "written.yaml").write_text(render(found))
    assert read(tmp_path / "written.yaml", sft=True) == found
    assert read(tmp_path / "written.yaml").sft is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.train.steps=5", "write train.steps=..., which grpo-jax sft follows, too"),
        ("sft.turn=all", "sft.turn: unknown key, did you mean sft.turns?"),
        ("sft.max_tokens=0", "sft.max_tokens"),
        ("task={use: arithmetic, train: 2, held_out: 0}", "train.prompts"),
        ("sft.answer=solution", "no text in column 'solution' to learn"),
        ("sft.max_tokens=1", "Raise sft.max_tokens"),
    ],
)
def test_mistakes_are_one_sentence(config, override, message, capsys):
    assert main(["sft", str(config), "run.name=mistake", override]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error.partition("error: ")[2]
    assert not (config.parent / "mistake").exists()
