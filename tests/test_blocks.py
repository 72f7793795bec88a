"""Every fenced block of every page is of a language, and works: one walk over all of them.

The `grpo-jax` lines of shell blocks, and of the heads of configs, are parsed, their configs and overrides are read, and
the files that other lines name are there; nothing is trained. YAML is read as (a part of) a config. Python is run here,
or by the test that `RUN_BY` names.
"""

import importlib.util
import json
import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

from grpo_jax import cli, tasks
from grpo_jax.config import SECTIONS, find_config, read
from grpo_jax.config.advice import usable_names

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "tpu_scripts/**/*.md", ".github/**/*.md") for path in ROOT.glob(pattern)
)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1``` *$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"bash", "python", "yaml", "toml", "json", "text", "{toctree}"}  # text: what a command prints
RUN_BY = {  # pages whose Python another test runs
    "README.md": "test_readme.py",
    "docs/python.md": "test_readme.py",
    "docs/evaluation.md": "test_readme.py",
    "docs/sft.md": "test_readme.py",
    "docs/environments.md": "test_environments_page.py",
    "docs/rewards.md": "test_rewards_page.py",
    "docs/judges.md": "test_guide_pages.py",
}
WITH_TORCH = {
    "docs/models.md": "in_transformers.py",
    "docs/lora.md": "in_peft.py",
}  # .ci/transformers makes these calls
GIVEN = {  # what the text around a block takes for granted
    "docs/objectives.md": """
import dataclasses
import jax.numpy as jnp
from grpo_jax import objectives
rewards_PG = jnp.array([[1.0, 0.0]])
logprobs_PGT = old_logprobs_PGT = jnp.zeros((1, 2, 3))
action_PGT = jnp.ones((1, 2, 3), bool)
""",
    "docs/tracking.md": """
import grpo_jax as gj
def send(step, metrics): pass
def post(channel, text): pass
""",
}
OF_EVERY_REWARD = {"use", "weight", "workers", "deadline", "on_error"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each block of a page."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(language.strip(), textwrap.dedent(text)) for _, language, text in found]


def all_blocks(language: str) -> list:
    """The blocks in a language, as parameters of a test: the page, and the text."""
    return [
        pytest.param(name_of(page), text, id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, (found, text) in enumerate(blocks_of(page))
        if found == language
    ]


def test_every_block_is_of_a_language():
    assert {
        (name_of(page), language) for page in PAGES for language, _ in blocks_of(page) if language not in LANGUAGES
    } == set()
    for page in PAGES:  # a fence that does not match would hide blocks
        assert len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) == 2 * len(blocks_of(page)), page


# Shell


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, each as its words, without what is fed to one by `<<`."""
    text = re.sub(r"<<-? *'?(\w+)'?(.*\n)(?:.*\n)*? *\1\n", r"\2", text.replace("\\\n", " "))
    text = re.sub(r"^for (\w+) in (.*); do\n((?:.*\n)*?)done$", _unrolled, text, flags=re.MULTILINE)
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>"):
                found += [command] if command else []
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):  # a variable of the command
                command.append(word)
    return found


def _unrolled(loop: re.Match) -> str:
    name, values, body = loop.groups()
    return "".join(body.replace(f"${name}", value) for value in values.split())


def own_config(folder: Path, name: str) -> Path:
    """The config that a command names. One that is the reader's own stands for a copy of the quickstart."""
    if name.startswith("configs/") or "." not in name:
        return find_config(name)
    path = folder / Path(name).name
    path.write_text(f"base: {ROOT / 'configs' / 'quickstart.yaml'}\n")
    return path


def check_command(words: list[str], folder: Path) -> None:
    """Parses a `grpo-jax` command, and reads the config and the overrides that it is given."""
    try:
        arguments = cli.parse(words)
    except SystemExit as end:  # such as `--help`
        assert end.code in (None, 0), words
        return
    config = getattr(arguments, "config", None)
    if arguments.command == "eval":
        config = arguments.target if arguments.target.endswith(".yaml") else "quickstart"
        assert all(name in tasks.__all__ or own_config(folder, name) for name in arguments.task or ())
    if config is not None:
        sft = arguments.command == "sft" or getattr(arguments, "sft", False)
        read(own_config(folder, config), arguments.overrides, sft)
    name, section = getattr(arguments, "name", None), {"tasks": "task", "rewards": "rewards", "objectives": "objective"}
    if name is not None and arguments.command in section:
        assert name in usable_names(SECTIONS[section[arguments.command]])


def check_files(words: list[str]) -> None:
    """Whether the files of the repository that a command names are there, and the extras of the package."""
    for word in words:
        if re.match(r"(tpu_scripts|\.ci|docs|examples|tests|configs|notebooks)/[\w./-]+$", word):
            assert (ROOT / word).exists(), word
        extras = re.fullmatch(r"(?:\.|grpo-jax)\[([\w,-]+)\].*", word)
        if extras is not None:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(extras[1].split(",")) <= set(known), word


def check_shell(text: str, folder: Path) -> int:
    """Checks each command of a shell block. How many are of this package."""
    own = 0
    for words in commands(text):
        words = words[2:] if words[1:3] == ["-m", "grpo_jax"] else words
        check_files(words)
        if words[0] in ("grpo-jax", "grpo_jax"):
            check_command(words[1:], folder)
            own += 1
    return own


@pytest.mark.parametrize(("page", "text"), all_blocks("bash"))
def test_the_commands_of_a_page_are_known_and_so_are_their_files_and_settings(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_shell(text, tmp_path)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_head_of_a_config_has_commands_that_work(config, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    head = re.match(r"(?:#.*\n)+", config.read_text())[0]
    text = "".join(f"{line}\n" for line in re.findall(r"^#     (.*)$", head, re.MULTILINE))
    assert check_shell(text, tmp_path) or "tpu_scripts/run.sh" in text
    assert f"configs/{config.name}" in text


@pytest.mark.parametrize(
    "text",
    [
        "grpo-jax train configs/quickstart.yaml train.step=3\n",
        "grpo-jax train configs/quickstar.yaml\n",
        "pip install x && grpo-jax watch runs/a --twice\n",
        "A=1 grpo-jax tran my.yaml\n",
        "cat <<'END'\nnothing\nEND\ngrpo-jax tasks arithmetik\n",
        "python docs/no_such_file.py\n",
        "for p in grpo grop; do\n  grpo-jax objectives $p\ndone\n",
        'pip install -e ".[tpus]"\n',
    ],
)
def test_a_command_that_would_not_work_is_found(text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError, FileNotFoundError, SystemExit)):
        check_shell(text, tmp_path)


def test_the_commands_in_the_text_of_pages_and_their_options_are_known(capsys):
    helps = {}
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for span in re.findall(r"`grpo-jax ([a-z]\w*[^`]*)`", text):
            command, *words = span.split()
            for name in command.split("|"):
                assert name in cli.COMMANDS, f"{page}: {span}"
                if name not in helps:
                    with pytest.raises(SystemExit):
                        cli.parse([name, "--help"])
                    helps[name] = capsys.readouterr().out
                for option in re.findall(r"(?:^| )(--[\w-]+)", " ".join(words)):
                    assert option in helps[name], f"{page}: {span}"
    assert len(helps) > 10


# Configs


def write_modules(text: str, folder: Path) -> None:
    """Modules with the functions that a config names as its reader's own, which have the keys that it gives them."""
    found: dict[str, dict[str, set[str]]] = {}

    def walk(value, keys=()):
        if isinstance(value, dict):
            walk(value.get("use"), [key for key in value if key not in OF_EVERY_REWARD])
            for key, inner in value.items():
                walk(inner if key != "use" else None)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str) and (named := re.fullmatch(r"(\w+):(\w+)", value)):
            found.setdefault(named[1], {}).setdefault(named[2], set()).update(keys)

    walk(yaml.safe_load(text))
    for module, functions in found.items():
        if importlib.util.find_spec(module) is None:
            lines = [
                f"def {name}({', '.join(['example', 'response', *keys])}):\n    return 1.0\n"
                for name, keys in functions.items()
            ]
            (folder / f"{module}.py").write_text("\n".join(lines))


@pytest.mark.parametrize(("page", "text"), all_blocks("yaml"))
def test_the_configs_of_a_page_are_read(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_modules(text, tmp_path)
    (tmp_path / "rest.yaml").write_text("model: {name: tiny}\ntask: {use: arithmetic}\ntrain: {steps: 1}\n")
    (tmp_path / "page.yaml").write_text(text if text.startswith("base:") else f"base: rest.yaml\n{text}")
    read(tmp_path / "page.yaml", sft=re.search(r"^(sft|answers):", text, re.MULTILINE) is not None)


@pytest.mark.parametrize(("page", "text"), all_blocks("json"))
def test_the_json_of_a_page_is_json(page, text):
    assert [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("page", "text"), all_blocks("toml"))
def test_the_toml_of_a_page_is_toml(page, text):
    assert tomllib.loads(text)


# Python


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(language == "python" for language, _ in blocks_of(page))], ids=name_of
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    name = name_of(page)
    if name in RUN_BY:
        assert page.name in (ROOT / "tests" / RUN_BY[name]).read_text()
        return
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    exec(GIVEN.get(name, ""), names)
    for text in [text for language, text in blocks_of(page) if language == "python"]:
        program = compile(text, name, "exec")
        if name in WITH_TORCH and "transformers" in text:
            calls = (ROOT / "tests" / WITH_TORCH[name]).read_text()
            assert all(call in calls for call in re.findall(r"\w+\.from_pretrained", text))
            continue
        exec(program, names)
