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

from grpo_jax.config import SECTIONS, ConfigError, read, render
from grpo_jax.config.advice import keys_of
from grpo_jax.config.elsewhere import OTHERS, TRL, VERL

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


@pytest.mark.parametrize("name", [*TRL, *VERL, *OTHERS])
def test_what_another_program_calls_a_setting_is_answered_with_keys_that_there_are(name):
    said = {**TRL, **VERL, **OTHERS}[name]
    named = re.findall(rf"\b({'|'.join(SECTIONS)})\.(\w+)\b(?! and)", said)
    for section, key in named:
        assert key == "use" or key in keys_of(section), said
    assert named or "leave it out" in said or "--resume" in said or "rewards" in said


@pytest.mark.parametrize("name", sorted(TRL))
def test_a_name_of_another_program_is_no_key_of_ours_of_another_meaning(name):
    """Except for Adam's epsilon, of which the answer speaks, and a preset's own beta, which stands in its section."""
    assert name in ("beta", "epsilon") or not any(name in keys_of(section) for section in SECTIONS)


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
