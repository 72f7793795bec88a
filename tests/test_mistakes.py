"""Mistakes in configs: each is one sentence with its place and a way out, and none of them is a traceback."""

import json
import os
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from grpo_jax.config import SECTIONS, ConfigError, build, locate, read, render
from grpo_jax.config.advice import keys_of
from grpo_jax.config.elsewhere import OTHERS, OWN, TRL, VERL

pytestmark = pytest.mark.faults
DATA = Path(__file__).parent / "data" / "mistakes.txt"


def corpus() -> list[tuple[str, str, list[str]]]:
    """The text of each file, its place, and the words that a message about it has."""
    found = []
    for block in DATA.read_text(encoding="utf-8").split("----\n")[1:]:
        text, _, expected = block.rpartition("=> ")
        place, *words = expected.strip().split(" | ")
        found.append((text, place, words))
    return found


MISTAKES = corpus()


def overrides(text: str) -> list[str]:
    """What a file lacks to be a config, apart from its mistake."""
    task = [] if re.search(r"^-? ?task:", text, re.MULTILINE) else ["task.use=arithmetic"]
    return [*task] if re.search(r"^ *steps", text, re.MULTILINE) else [*task, "train.steps=1"]


def test_the_corpus_has_a_hundred_mistakes():
    assert len({text for text, _, _ in MISTAKES}) == len(MISTAKES) >= 100


@pytest.mark.parametrize(("text", "place", "words"), MISTAKES, ids=[repr(text)[1:40] for text, _, _ in MISTAKES])
@pytest.mark.slow
def test_a_mistake_is_reported_with_its_place_and_a_way_out(text, place, words, tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read(path, overrides(text))
    message = str(refused.value)
    assert message.startswith(f"{path}:{place}: ")
    assert [word for word in words if word not in message] == []
    assert "\n" not in message and "while scanning" not in message and "while parsing" not in message


def test_all_mistakes_are_reported_with_exit_code_2_and_without_importing_jax(tmp_path):
    """One process runs the command on each of them, and prints what it gave."""
    program = """
        import contextlib, io, json, sys
        from grpo_jax.cli import main

        for text, *overrides in json.load(sys.stdin):
            with open("some.yaml", "w", encoding="utf-8") as file:
                file.write(text)
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors):
                status = main(["train", "some.yaml", *overrides])
            print(json.dumps([status, errors.getvalue(), "jax" in sys.modules]))
    """
    cases = json.dumps([[text, *overrides(text)] for text, _, _ in MISTAKES])
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        input=cases,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == len(MISTAKES)
    for (status, errors, jax), (text, place, _) in zip(found, MISTAKES, strict=True):
        assert (status, jax) == (2, False), text
        assert errors.startswith(f"error: some.yaml:{place}: ") and errors.count("\n") == 1, errors


# What other programs call a setting


@pytest.mark.parametrize("name", [*TRL, *VERL, *OTHERS, *OWN])
def test_what_another_program_calls_a_setting_is_answered_with_keys_that_there_are(name):
    said = {**TRL, **VERL, **OTHERS, **OWN}[name]
    named = re.findall(rf"\b({'|'.join(SECTIONS)})\.(\w+)\b(?! and)", said)
    for section, key in named:
        assert key == "use" or key in keys_of(section), said
    assert named or "leave it out" in said or "--resume" in said or "rewards" in said


@pytest.mark.parametrize("name", sorted(TRL))
def test_a_name_of_another_program_is_no_key_of_ours_of_another_meaning(name):
    """Except for Adam's epsilon, of which the answer speaks, and a preset's own beta, which stands in its section."""
    assert name in ("beta", "epsilon") or not any(name in keys_of(section) for section in SECTIONS)


# What a config may name


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user, and gives the path of its file."""

    def write_module(text: str, name: str) -> Path:
        monkeypatch.syspath_prepend(tmp_path)
        return write(tmp_path / f"{name}.py", textwrap.dedent(text))

    return write_module


def config_that_names(tmp_path: Path, target: str, rest: str = "") -> Path:
    return write(tmp_path / "some.yaml", f"task:\n  use: {target}\n{rest}train: {{steps: 1}}\n")


@pytest.mark.parametrize(
    "spelling", ["from shutil import rmtree as questions", "import shutil\nquestions = shutil.rmtree"]
)
def test_a_function_of_the_standard_library_is_not_called_by_another_name_either(spelling, module, tmp_path):
    module(spelling, f"re_exports_{len(spelling)}")
    (tmp_path / "kept").mkdir()
    path = config_that_names(tmp_path, f"re_exports_{len(spelling)}:questions", f"  path: {tmp_path / 'kept'}\n")
    with pytest.raises(
        ConfigError, match=r"some.yaml:2:8: task.use: .* comes from shutil of Python's standard library"
    ):
        read(path).task.build()
    assert (tmp_path / "kept").is_dir()


def test_a_partial_of_a_function_of_the_standard_library_is_refused(module, tmp_path):
    module("import functools, os\nquestions = functools.partial(os.getcwd)", "partly_standard")
    with pytest.raises(ConfigError, match=r"partly_standard:questions comes from \w+ of Python's standard library"):
        read(config_that_names(tmp_path, "partly_standard:questions")).task.build()


def test_a_name_that_is_no_function_is_refused(module, tmp_path):
    module("import os\nCOUNT = 3", "holds_a_number")
    for name, kind in (("COUNT", "int"), ("os", "module")):
        with pytest.raises(ConfigError, match=rf"holds_a_number:{name} is of type {kind}; name a function or a class"):
            read(config_that_names(tmp_path, f"holds_a_number:{name}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef questions(:\n    pass\n", r":2:15: .*; correct it there"),
        ("x = (1\n", r":1:5: '\(' was never closed"),
        ("from broken_by_another import questions\n", r"broken_by_another_module has a syntax error at .*:1:"),
    ],
)
def test_a_syntax_error_in_a_module_of_the_user_is_reported_at_its_own_line(text, said, module, tmp_path):
    module("from broken_by_another_module import questions\n", "broken_by_another")
    module("def questions(\n", "broken_by_another_module")
    file = module(text, "broken_itself")
    with pytest.raises(ConfigError, match=r"^\S+some.yaml:2:8: task.use: ") as refused:
        read(config_that_names(tmp_path, "broken_itself:questions"))
    assert re.search(said if "has a" in said else f"{re.escape(str(file))}{said}", str(refused.value))


@pytest.mark.parametrize(
    ("number", "text", "said"),
    [
        (1, "import math\nmath.sqrt(-1)\n", r":2: ValueError: math domain error"),
        (2, "\nimport no_such_package\n", r":2: ModuleNotFoundError: No module named 'no_such_package'; .*install it"),
        (3, "import sys\nsys.exit(0)\n", r":2: SystemExit: 0"),
        (4, "from os import no_such_name\n", r":1: ImportError: cannot import name"),
    ],
)
def test_an_exception_while_a_module_is_imported_is_reported_at_its_line(number, text, said, module, tmp_path):
    file = module(f"{text}def questions(): ...\n", f"fails_{number}")
    config = read(config_that_names(tmp_path, f"fails_{number}:questions"))
    with pytest.raises(ConfigError, match=r"^\S+some.yaml:2:3: task.use: ") as refused:
        config.task.build()
    assert re.search(f"{re.escape(str(file))}{said}", str(refused.value))


def test_a_name_that_is_defined_by_itself_is_refused(module, tmp_path):
    module("questions = other\nother = questions\n", "goes_round")
    with pytest.raises(ConfigError, match="goes_round:questions is defined by itself"):
        read(config_that_names(tmp_path, "goes_round:questions"))


def test_an_exception_of_a_users_task_is_reported_with_the_key_and_the_line(module, tmp_path):
    file = module("def questions(size):\n    return [1] / size\n", "divides_a_list")
    config = read(config_that_names(tmp_path, "divides_a_list:questions", "  size: 3\n"))
    with pytest.raises(ConfigError, match=rf"some.yaml:1:1: task: {re.escape(str(file))}:2: TypeError: unsupported"):
        config.task.build()


def test_a_users_task_that_gives_no_task_is_refused(module, tmp_path):
    module("def questions():\n    return {}\n", "gives_a_dict")
    with pytest.raises(ConfigError, match=r"some.yaml:2:3: task.use gave an object of type dict; .* a Task$"):
        build(read(config_that_names(tmp_path, "gives_a_dict:questions")))


def test_a_variable_in_a_path_is_not_replaced_and_the_message_says_so(tmp_path):
    config = read(config_that_names(tmp_path, "jsonl", "  path: $HOME/none.jsonl\n"))
    with pytest.raises(ConfigError, match=r"some.yaml:3:3: task.path: \$HOME/none.jsonl is not.* \$HOME are not"):
        config.task.build()


# The key that an owner's error is about


@pytest.mark.parametrize(
    ("section", "text", "said"),
    [
        ("train", "train:\n  steps: 3\n  keep: 0\n", "3:3: train.keep must be at least 1"),
        ("rollout", "rollout:\n  top_k: 5\n  top_p: 2.0\n", "3:3: rollout.top_p: top_p must be above 0 and at most 1"),
        ("run", "run:\n  root: runs\n  name: a/b\n", "3:3: run.name: A run is named by letters"),
        (
            "task",
            "task:\n  use: arithmetic\n  train: 9999\n  largest: 3\n",
            "3:3: task.train: train and held_out ask for",
        ),
        (
            "objective",
            "objective:\n  use: dapo\n  kl: {estimator: k1, coefficient: 1, place: reward, ratio: token}\n",
            "3:",
        ),
    ],
)
def test_an_error_of_an_owner_is_reported_where_the_key_stands_that_it_names(section, text, said, tmp_path):
    config = read(write(tmp_path / "some.yaml", text), overrides(text))
    with pytest.raises(ConfigError) as refused:
        getattr(config, section).build(**({"ends": (2,)} if section == "rollout" else {}))
    assert str(refused.value).startswith(f"{tmp_path / 'some.yaml'}:{said}")
    assert str(refused.value).count("some.yaml") == 1


def test_an_error_of_a_check_of_several_sections_is_reported_where_the_key_stands(tmp_path):
    config = read(write(tmp_path / "some.yaml", "task: arithmetic\ntrain:\n  steps: 3\n  prompts: 7\n"))
    found = locate(config, "A step's prompts, train.prompts, have to be even; got 7.")
    assert found == f"{tmp_path / 'some.yaml'}:4:3: A step's prompts, train.prompts, have to be even; got 7."
    assert locate(config, "No key is named here.") == "No key is named here."


# Files that cannot be read


def test_a_config_that_is_too_large_or_too_deep_or_has_too_long_a_name_is_refused_in_a_sentence(tmp_path):
    deep = "[" * 900 + "]" * 900
    for text, said in ((f"task: {deep}", r":1:56: more than 50 levels deep"), ("#" * 2**19, ": a config has at most")):
        with pytest.raises(ConfigError, match=said):
            read(write(tmp_path / "some.yaml", text))
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read(tmp_path / ("a" * 300))
    with pytest.raises(ConfigError, match=r"learning_rate: expected float, got '9+\.\.\."):
        read(write(tmp_path / "some.yaml", "task: arithmetic\n"), ["optimizer.learning_rate=" + "9" * 400])


# Random changes of a config that works

VALID = """
run: {name: fuzz, root: runs}
model:
  name: tiny
task:
  use: arithmetic
  largest: 9
  system: "Answer: a number"
rewards:
  - use: last_number
  - {use: Matches, pattern: "[0-9]+", weight: 0.5}
rollout:
  responses: 4
  max_tokens: 8
  stop: ["\\n"]
objective:
  use: dapo
  clip_high: 0.28
  masks: [{use: TopEntropy, share: 0.2}]
optimizer: {learning_rate: 1e-5, warmup_steps: 3}
train:
  steps: 24
  prompts: 8 # a comment
mesh: {data: null}
"""
NUMBERS = ("0", "-1", "1e308", "-1e308", "1e400", ".inf", ".nan", "1" + 40 * "0", "9" * 400, "1e-320")
TEXTS = ('"\\ud800"', '"\\x00"', "\t", "\x85", "\u2028", "é", "use", "base: some.yaml", "os:system", "a" * 5000)
SIGNS = ('""', "[]", "{}", "[[[", "}", "{a: 1}", "- a", "*a", "&a b", "!x", "!!binary a", "%", "@", "`", "|", ">", "?")
EXTREMES = (*NUMBERS, *TEXTS, *SIGNS, ":", "null", "true", "yes", "[" * 900)


def changed(text: str, rng: random.Random) -> str:
    """A text with one to three random changes: of a token, a character or a line."""
    for _ in range(rng.randint(1, 3)):
        tokens = re.split(r"(\s+|[:,{}\[\]])", text)
        index, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        lines = text.split("\n")
        line = rng.randrange(len(lines))
        cut = rng.randrange(len(text) + 1)
        text = rng.choice(
            [
                "".join([*tokens[:index], *tokens[index + 1 :]]),
                "".join([*tokens[:index], tokens[index], *tokens[index:]]),
                "".join([*tokens[:index], tokens[other], *tokens[index + 1 :]]),
                "".join([*tokens[:index], rng.choice(EXTREMES), *tokens[index + 1 :]]),
                "".join([*tokens[:index], rng.choice(EXTREMES), *tokens[index + 1 :]]),
                "\n".join([*lines[:line], *lines[line + 1 :]]),
                "\n".join([*lines[:line], lines[line], *lines[line:]]),
                "\n".join([*lines[:line], " " + lines[line], *lines[line + 1 :]]),
                text[:cut] + rng.choice("\x00\t:-[]{}#&*!|>'\"%@`,\\é ") + text[cut:],
                text[:cut],
            ]
        )
    return text


@pytest.mark.slow
def test_five_hundred_random_changes_of_a_config_are_read_or_refused_in_one_sentence(tmp_path):
    """What can still be read is built, too, as far as that needs no device: objective, sampler, settings."""
    rng, path, read_well = random.Random(18), tmp_path / "some.yaml", 0
    path.write_text(VALID, encoding="utf-8")
    read(path)
    for _ in range(500):
        text = changed(VALID, rng)
        path.write_text(text, encoding="utf-8")
        try:
            config = read(path)
            read_well += 1
            assert read(write(tmp_path / "again.yaml", render(config))) == config
            for call in (config.run, config.rollout, config.objective, config.train, config.mesh):
                call.build(**({"ends": (2,), "decode": str} if call is config.rollout else {}))
            [part.build() for part in config.rewards]
        except ConfigError as error:
            assert re.match(rf"{re.escape(str(path))}(:\d+:\d+)?: ", str(error)), (text, error)
            assert "\n" not in str(error)
    assert 25 < read_well < 475


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
