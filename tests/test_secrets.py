"""Secrets in a config or in the environment reach the object that needs them, and nothing that is written."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from grpo_jax import cli, redaction
from grpo_jax.config import ConfigError, read, render
from grpo_jax.redaction import hidden, is_secret, redact, revealed

pytestmark = pytest.mark.faults
LITERAL, FROM_ENVIRONMENT, OF_HUB = "sk-planted-literal", "sk-planted-variable", "hf_planted_of_the_hub"
REWARD = """
def judge(example, response, api_key: str = "", other: str = "", headers: dict = {}):
    assert api_key == "sk-planted-variable" and other == "sk-planted-variable", "the reward needs the keys themselves"
    assert headers == {"Authorization": "sk-planted-literal"}
    if FAILS:
        import os
        raise KeyError(f"401 for {api_key} with {headers} and {os.environ['HF_TOKEN']}")
    return float(len(response))
"""
CONFIG = """
run: {name: secret, root: runs}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 8, held_out: 0, largest: 9}
rewards: [{use: "MODULE:judge", api_key: "env:JUDGE_KEY", other: "env:JUDGE_KEY", headers: {Authorization: LITERAL}}]
rollout: {responses: 2, max_tokens: 4}
objective: {use: grpo, kl: 0.0}
train: {steps: 1, prompts: 2, evaluate_every: 0, max_prompt_tokens: 96}
"""


@pytest.fixture
def known(monkeypatch):
    """Nothing is known of earlier tests."""
    monkeypatch.setattr(redaction, "_known", set())


def write(folder: Path, module: str, fails: bool = False) -> Path:
    (folder / f"{module}.py").write_text(f"FAILS = {fails}\n{REWARD}")
    path = folder / f"{module}.yaml"
    path.write_text(CONFIG.replace("MODULE", module).replace("LITERAL", LITERAL))
    return path


@pytest.mark.parametrize(
    "name", ["api_key", "apiKey", "KEY", "hf_token", "HF_TOKEN", "secret", "password", "passwd", "Authorization"]
)
def test_these_names_hold_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["max_tokens", "min_tokens", "tokenizer", "keyword", "pad_token_id", "key_file", "TOKENIZERS_PARALLELISM"]
)
def test_these_names_hold_none(name):
    assert not is_secret(name)


def test_a_secret_is_written_as_stars_and_a_variable_by_its_name():
    assert hidden("api_key", LITERAL) == "***"
    assert hidden("password", 12345678) == "***"
    assert hidden("other", "env:JUDGE_KEY") == hidden("api_key", "env:JUDGE_KEY") == "env:JUDGE_KEY"
    assert hidden("headers", {"Authorization": LITERAL, "n": [1]}) == {"Authorization": "***", "n": [1]}
    assert hidden("max_tokens", 12) == 12 and hidden("api_key", None) is None and hidden("pattern", "a+") == "a+"


def test_a_variable_is_read_when_the_object_is_built(known, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", FROM_ENVIRONMENT)
    assert revealed("other", "env:JUDGE_KEY") == FROM_ENVIRONMENT
    assert redact(f"401 for {FROM_ENVIRONMENT}.") == "401 for ***."
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(
        ValueError, match=r"other is to come from the environment variable JUDGE_KEY, and there is none"
    ):
        revealed("other", "env:JUDGE_KEY")


def test_errors_show_no_secret_of_the_config_or_the_environment(known, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OF_HUB)
    assert redact(f"{OF_HUB} and {LITERAL}") == f"*** and {LITERAL}"
    revealed("api_key", LITERAL)
    assert redact(f"{OF_HUB} and {LITERAL}") == "*** and ***"


AS_A_FILE = "-----BEGIN KEY-----\nab+c/d='q\"x\\g pässwörd\U0001f511\n-----END KEY-----\n"
WRITINGS = {
    "as it is": str,
    "repr": repr,
    "ascii": ascii,
    "bytes": lambda text: repr(text.encode()),
    "KeyError": lambda text: str(KeyError(f"401 for {text}")),
    "an error in an error": lambda text: repr(ValueError(repr({"key": text}))),
    "JSON": json.dumps,
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON in JSON": lambda text: json.dumps({"body": json.dumps({"key": text})}),
    "a URL's query": lambda text: urlencode({"key": text}, quote_via=quote),
    "a URL's path": quote,
}


@pytest.mark.parametrize("write", WRITINGS.values(), ids=WRITINGS)
@pytest.mark.parametrize("secret", [AS_A_FILE, AS_A_FILE.replace("'", ""), AS_A_FILE.replace('"', ""), "pa'ss\\wo'rd"])
def test_a_secret_is_found_as_errors_and_files_write_it(known, monkeypatch, secret, write):
    monkeypatch.setenv("JUDGE_PRIVATE_KEY", secret)
    left = redact(f"before {write(secret)} after")
    assert left.startswith("before ") and left.endswith(" after") and left.count("***") == 1
    assert not [word for word in re.findall("[A-Za-z]{2,}", secret) if word in left]


def test_a_secret_that_was_read_with_its_newline_is_found_without_it(known, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"{OF_HUB}\n")
    assert redact(f"401 for {OF_HUB}.") == "401 for ***."


def test_a_text_like_a_secret_is_left_as_it_is(known, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a.b+c(d)*")
    assert redact("axb+c(d)* a.bbc(d) a.b+cd") == "axb+c(d)* a.bbc(d) a.b+cd"


@pytest.mark.parametrize("arguments", [["--api_key=7"], ["--hf-token", "7"], ["--steps=1", "--judge.password=7"]])
def test_a_secret_of_an_unknown_option_is_not_repeated(arguments, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["checkpoint", "list", "runs/r", *arguments])
    error = capsys.readouterr().err
    assert arguments[0].partition("=")[0] in error and "***" in error and "7" not in error


def test_an_error_of_a_thread_is_printed_without_secrets(known, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", OF_HUB)
    monkeypatch.setattr(threading, "excepthook", redaction.print_redacted_of_thread)
    thread = threading.Thread(target=lambda: int(OF_HUB), name="judge")
    thread.start()
    thread.join()
    error = capsys.readouterr().err
    assert error.startswith("Exception in thread judge:\nTraceback") and "***" in error and OF_HUB not in error


def test_a_config_that_is_written_holds_no_secret_and_does_not_start_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    written = render(read(write(tmp_path, "written_judge")))
    assert LITERAL not in written and "env:JUDGE_KEY" in written and '"***"' in written
    (tmp_path / "again.yaml").write_text(written)
    again = read(tmp_path / "again.yaml")
    assert render(again).count("***") == 1
    monkeypatch.setenv("JUDGE_KEY", FROM_ENVIRONMENT)
    with pytest.raises(ConfigError, match=r"Authorization is \*\*\*, which config\.yaml of a run has in place"):
        again.rewards[0].build()


def test_a_mistake_in_a_config_does_not_repeat_a_secret(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, "mistaken_judge")
    path.write_text(path.read_text().replace('"env:JUDGE_KEY", other', "123456789, other"))
    with pytest.raises(ConfigError, match=r"api_key: expected str, got '\*\*\*'") as refused:
        read(path)
    assert "123456789" not in str(refused.value)


def test_a_mistake_with_a_long_secret_does_not_show_its_beginning(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "many_keys.py").write_text("def judge(example, response, api_keys: list[str] = []):\n    return 0.0\n")
    path = write(tmp_path, "not_many_keys")
    long = "eyJhbGciOi" * 30  # longer than what messages show of a value
    before, _, after = path.read_text().partition("rewards: ")
    reward = f'rewards: [{{use: "many_keys:judge", api_keys: {long}}}]\n'
    path.write_text(before + reward + after.partition("\n")[2])
    with pytest.raises(ConfigError, match=r"api_keys: expected a list of str, got '\*\*\*'") as refused:
        read(path)
    assert "eyJ" not in str(refused.value)


def run(folder: Path, config: Path, *options: str) -> subprocess.CompletedProcess:
    planted = {"JUDGE_KEY": FROM_ENVIRONMENT, "HF_TOKEN": OF_HUB, "PYTHONPATH": str(Path(__file__).parents[1])}
    flags = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "grpo_jax", "train", config.name, *options],
        cwd=folder,
        env=flags | planted,
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
def test_no_file_of_a_run_and_no_line_of_its_output_holds_a_planted_secret(tmp_path):
    good = run(tmp_path, write(tmp_path, "good_judge"))
    assert good.returncode == 0, good.stderr.decode()
    resumed = run(tmp_path, tmp_path / "good_judge.yaml", "--resume", "train.steps=2")
    assert resumed.returncode == 0 and b"changed: rewards" not in resumed.stderr, resumed.stderr.decode()
    bad = run(tmp_path, write(tmp_path, "bad_judge", fails=True))
    assert bad.returncode != 0 and b"401 for ***" in bad.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files) and any("checkpoints" in path.parts for path in files)
    written = [path.read_bytes() for path in files]
    written += [text for ended in (good, resumed, bad) for text in (ended.stdout, ended.stderr)]
    for secret in (LITERAL, FROM_ENVIRONMENT, OF_HUB):
        assert not any(secret.encode() in text for text in written)
