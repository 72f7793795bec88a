"""A run is a model wherever a model is asked for."""

import io
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import judges
from grpo_jax.cli import main
from grpo_jax.models import find_shape
from grpo_jax.models.runs import find_run
from grpo_jax.rewards.rubrics import Asked, Sheet
from grpo_jax.saved.arrays import read_arrays
from grpo_jax.saved.manifest import write_manifest
from grpo_jax.training.resuming import Fingerprint, write_fingerprint

OLD = Path(__file__).parent / "data" / "run_of_0d0afb5" / "old"
ONE = gj.Layout().mesh(jax.devices()[:1])


@pytest.fixture
def run(tmp_path):
    """A run of `tiny` with its one checkpoint, of step 3, which has no manifest: an early version wrote it."""
    return shutil.copytree(OLD, tmp_path / "runs" / "old")


def sealed(run: Path, *steps: int) -> None:
    """The checkpoint of step 3 as that of these steps, each with a manifest."""
    for step in steps:
        folder = run / "checkpoints" / str(step)
        if step != 3:
            shutil.copytree(run / "checkpoints" / "3", folder, ignore=shutil.ignore_patterns("manifest.json"))
        write_manifest(folder, step)


def test_a_run_gives_its_base_model_and_the_weights_of_its_step(run):
    model = gj.load(str(run))
    params = model.params(ONE)
    assert model.shape == gj.tiny().shape and model.origin.base == "tiny"
    assert jax.tree.structure(params) == jax.tree.structure(model.policy.shapes)
    wanted = {"params": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), params)}
    saved = read_arrays(run / "checkpoints", 3, wanted)["params"]
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    assert not np.array_equal(params["norm_D"], gj.tiny().params(ONE)["norm_D"])
    assert find_shape(str(run)) == model.shape


def test_the_newest_step_that_can_be_verified_is_taken_or_the_one_that_is_named(run, caplog):
    sealed(run, 3, 5, 7)
    assert gj.load(str(run)).origin.run.step == 7
    assert gj.load(f"{run}@5").origin.run.step == 5
    (run / "checkpoints" / "7" / "commit_success.txt").write_text("damaged")
    assert gj.load(str(run)).origin.run.step == 5
    assert "step 7 failed verification" in caplog.text and "using step 5" in caplog.text
    with pytest.raises(ValueError, match=r"step 7 failed verification.*name another step"):
        gj.load(f"{run}@7")


def test_the_state_of_the_optimiser_is_not_read(run, monkeypatch):
    import orbax.checkpoint as ocp

    asked = []
    known = ocp.PyTreeCheckpointHandler.restore

    def restore(self, directory, item=None, args=None):
        asked.append(args.item)
        return known(self, directory, item=item, args=args)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
    gj.load(str(run)).params(ONE)
    assert [list(item) for item in asked] == [["params"]]


def no_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    return str(run), "has no checkpoint.*name another run"


def no_such_step(run):
    return f"{run}@9", "has no step 9: its steps are 3"


def folder_of_runs(run):
    return str(run.parent), f"is a folder of runs.*Name a run, such as .*{run.name}"


def folder_in_a_run(run):
    return str(run / "checkpoints" / "3"), "is a part of a run.*old@3"


def nothing_saved_whole(run):
    sealed(run, 3)
    (run / "checkpoints" / "3" / "commit_success.txt").unlink()
    return str(run), "No checkpoint in .* can be used"


def base_that_is_gone(run):
    (run / "run.json").write_text(json.dumps({"name": "old", "model": "/no/where"}))
    return str(run), "was trained from /no/where.*none of them.*If it has moved, write its new path into .*run.json"


def made_in_python(run):
    (run / "config.yaml").unlink()
    return str(run), "does not say which model.*made in Python.*run.json"


def step_of_a_model(run):
    (run / "config.json").write_text("{}")
    return f"{run}@3", "Only a run has steps"


@pytest.mark.parametrize(
    "damage",
    [
        no_checkpoint,
        no_such_step,
        folder_of_runs,
        folder_in_a_run,
        nothing_saved_whole,
        base_that_is_gone,
        made_in_python,
        step_of_a_model,
    ],
)
@pytest.mark.faults
def test_a_run_that_is_no_model_is_refused_in_a_sentence(damage, run):
    name, message = damage(run)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gj.load(name)


@pytest.mark.faults
def test_weights_of_another_model_are_refused(run, tmp_path):
    golden = Path(__file__).parent / "golden" / "llama"
    base = shutil.copytree(golden, tmp_path / "base")
    gj.load("tiny").tokenizer.backend.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    (run / "run.json").write_text(json.dumps({"name": "old", "model": str(base)}))
    model = gj.load(str(run))
    with pytest.raises(ValueError, match=r"weights of another model than .*base: .* \(\d+ differ\)"):
        model.params(ONE)


@pytest.mark.slow
def test_a_chat_remembers_what_was_said_until_it_is_reset(run, monkeypatch, capsys):
    said = "1 + 1\n2 + 2\n/set top_k 0.5\n/set max_tokens 3\n/reset\n/nothing\n1 + 1\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    asked = []
    known = gj.models.tokenizer.Tokenizer.encode
    monkeypatch.setattr(
        gj.models.tokenizer.Tokenizer,
        "encode",
        lambda self, prompt: asked.append([each["content"] for each in prompt]) or known(self, prompt),
    )
    assert main(["generate", str(run), "--max-tokens", "6"]) == 0
    printed = capsys.readouterr()
    first, second, third = asked
    assert first == ["1 + 1"] == third and second[0] == "1 + 1" and second[2] == "2 + 2"
    assert printed.out.startswith(second[1])
    assert "max_tokens 3" in printed.err and "forgotten" in printed.err and "/nothing is no command" in printed.err
    assert "top_k must be a whole number; got '0.5'." in printed.err


@pytest.mark.parametrize(
    ("options", "first"), [([], "Be brief."), (["--system", "Be long."], "Be long."), (["--system", ""], None)]
)
def test_a_run_is_asked_with_the_system_prompt_of_its_task(options, first, run, monkeypatch, capsys):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  system: null", '  system: "Be brief."'))
    asked = []
    known = gj.models.tokenizer.Tokenizer.encode
    monkeypatch.setattr(
        gj.models.tokenizer.Tokenizer, "encode", lambda self, prompt: asked.append(prompt) or known(self, prompt)
    )
    assert main(["generate", str(run), "1 + 1", "--max-tokens", "2", *options]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 + 1\n"))
    assert main(["generate", str(run), "--max-tokens", "2", *options]) == 0
    system = [] if first is None else [{"role": "system", "content": first}]
    question = {"role": "user", "content": "1 + 1"}
    assert asked == [[*system, question] if system else "1 + 1", [*system, question]]
    assert ("system prompt of the run" in capsys.readouterr().err) == (not options)


@pytest.mark.slow
def test_streamed_tokens_are_those_of_the_sampler(run):
    from grpo_jax.rollout.streaming import serving_copy, stream

    model = gj.load(str(run))
    params = model.params(ONE)
    prompts = model.tokenizer.encode_all(["3 + 4"], 64)
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 9, "repetition_penalty": 1.3}):
        sampler = gj.Sampler(model.tokenizer.end_ids, responses=1, max_tokens=12, **settings)
        whole = sampler(model.policy, params, prompts, jax.random.key(2))
        expected = whole.tokens_PGT[0, 0][: int(whole.action_PGT[0, 0].sum())]
        served = serving_copy(model.policy, params)
        found = list(stream(sampler, model.policy, params, served, prompts, jax.random.key(2)))
        np.testing.assert_array_equal(found, expected)


CONFIG = """
run: {name: second, root: ROOT}
model: {name: FIRST}
task: {use: arithmetic, train: 20, held_out: 4, largest: 9}
rollout: {responses: 2, max_tokens: 4}
objective: {use: grpo}
train: {steps: 1, prompts: 4, evaluate_every: 0, save_every: 1}
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_new_run_begins_with_the_weights_of_an_old_one(run, tmp_path, capsys):
    config = tmp_path / "second.yaml"
    config.write_text(CONFIG.replace("ROOT", str(tmp_path)).replace("FIRST", str(run)))
    assert main(["train", str(config), "optimizer.learning_rate=1e-30"]) == 0
    second = tmp_path / "second"
    assert (
        f"next: grpo-jax generate {second}, or grpo-jax export {second} --out {second}-model" in capsys.readouterr().out
    )
    told = json.loads((second / "run.json").read_text())
    assert (told["model"], told["first_weights"]) == ("tiny", f"{run}@3")
    mesh = gj.Layout().mesh()
    before, after = gj.load(str(run)).params(mesh), gj.load(str(second)).params(mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), before, after)
    sealed(run, 3, 5)  # the first run goes on; the second one is resumed all the same
    assert main(["train", str(config), "optimizer.learning_rate=1e-30", "train.steps=2", "--resume"]) == 0


def test_a_run_has_the_arguments_of_its_chat_template(run, tmp_path):
    base = gj.export(gj.load(str(run)), gj.load(str(run)).params(ONE), tmp_path / "base")
    template = "{{ messages[0]['content'] }}{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}"
    (base / "chat_template.jinja").write_text(template)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  system: null", '  system: "Be brief."'))
    sealed(run, 3)
    write_fingerprint(run, "old", Fingerprint({}), gj.load(str(base), template={"enable_thinking": False}))
    model = gj.load(str(run))
    assert model.tokenizer.template == {"enable_thinking": False}
    assert gj.load(str(run), template={}).tokenizer.template == {}
    out = gj.export(model, model.params(ONE), tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "add_generation_prompt=True, enable_thinking=False, return_tensors" in card
    assert 'messages = [{"role": "system", "content": "Be brief."}, {"role": "user"' in card


def test_a_run_can_be_the_judge_of_another_one(run):
    sheet = Sheet("", "Where?", "Here.", (Asked("kind", "Is it kind?"),))
    judge, base = judges.model(str(run), mesh=ONE), judges.model("tiny", mesh=ONE)
    jax.tree.map(np.testing.assert_array_equal, judge.params, gj.load(str(run)).params(ONE))
    ((trained,),), ((fresh,),) = judge.judge([sheet]), base.judge([sheet])
    assert 0 < trained < 1 and trained != fresh


def test_a_folder_beside_the_checkpoints_of_somebody_else_is_no_part_of_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "gemma").mkdir()
    assert find_run(str(tmp_path / "gemma")) is None
