"""What all commands have in common: help with examples, pipes that close, narrow terminals, JSON, quiet, completion."""

import argparse
import json
import logging
import os
import pty
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from grpo_jax.cli import main, parse, parser_for
from grpo_jax.commands import printing
from grpo_jax.commands.options import COMMANDS, GROUPS
from grpo_jax.config import find_config, read
from grpo_jax.hosts import codes
from grpo_jax.hosts.telling import announce
from grpo_jax.training.progress import Progress

PACKAGE = Path(__file__).parents[1]
RUN = PACKAGE / "tests" / "data" / "run_of_0d0afb5" / "old"
CONFIG = "model: {name: tiny}\ntask: {use: arithmetic, train: 16, held_out: 4}\ntrain: {steps: 1, prompts: 8}\n"
FEW = ["--prompts", "8", "--responses", "2", "--prompt-tokens", "8", "--response-tokens", "4", "--repeat", "1"]
PRINTING = {  # commands that read text alone, each with all that it can print
    "tasks": (["tasks"], ["tasks", "countdown"], ["tasks", "--json"]),
    "rewards": (["rewards"], ["rewards", "Matches"], ["rewards", "--json"]),
    "objectives": (["objectives"], ["objectives", "dapo"], ["objectives", "--table"], ["objectives", "--json"]),
    "config": (["config", "CONFIG"], ["config", "--all"], ["config", "CONFIG", "--json"]),
    "checkpoint": (["checkpoint", "list", str(RUN)], ["checkpoint", "verify", str(RUN), "--json"]),
    "watch": (["watch", str(RUN), "--once"],),
}
WORKING = {  # commands that load a model
    "report": (["report", str(RUN), "--out", "page.html"],),
    "data": (["data", "CONFIG"], ["data", "CONFIG", "--json"]),
    "plan": (["plan", "CONFIG", "--memory", "8GiB"], ["plan", "CONFIG", "--memory", "8GiB", "--json", "--quiet"]),
    "bench": (["bench", "rollout", "--model", "tiny", *FEW],),
    "eval": (["eval", "CONFIG"],),
    "generate": (["generate", "tiny", "hello", "--max-tokens", "4"],),
}
HELP_ALONE = {"train", "sft", "export"}  # a training saves, and ends with 75: tests/test_ending.py; an export is silent
CASES = [pytest.param(argv, id=" ".join(argv[:3])) for each in PRINTING.values() for argv in each]
SLOW = [
    pytest.param(argv, id=" ".join(argv[:2]), marks=[pytest.mark.slow]) for each in WORKING.values() for argv in each
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return tmp_path


def given(argv):
    return ["small.yaml" if each == "CONFIG" else each for each in argv]


@contextmanager
def unread(monkeypatch):
    """Standard output is a pipe that nobody reads any more, as after `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        yield


# Help


def test_the_commands_of_a_newcomer_come_first_and_each_is_listed_once(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    listed = re.findall(r"^  (\w+)  +[a-z]", text.partition("options:")[0], re.MULTILINE)
    assert listed[:4] == ["train", "generate", "eval", "report"]
    assert listed == list(COMMANDS) and len(listed) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_can_be_run(command, capsys):
    with pytest.raises(SystemExit):
        parse([command, "--help"])
    help_text = capsys.readouterr().out
    assert COMMANDS[command].examples
    for example in COMMANDS[command].examples:
        program, *argv = shlex.split(example)
        arguments = parse(argv)
        assert (program, arguments.command) == ("grpo-jax", command) and f"  {example}\n" in help_text
        if getattr(arguments, "config", None) is not None:
            assert read(find_config(arguments.config), arguments.overrides, command == "sft")


def test_every_option_says_what_it_does_and_its_default():
    parser = parser_for(list(COMMANDS))
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    for name, command in commands.items():
        for option in command._actions:
            assert option.help, (name, option.dest)
            if option.default not in (None, False, [], argparse.SUPPRESS):
                assert re.search(r"%\(default\)s|0, the default", option.help), (name, option.dest)


# Pipes, terminals


def test_every_command_is_run_with_a_pipe_that_closes():
    assert {*PRINTING, *WORKING, *HELP_ALONE} == {*COMMANDS}


@pytest.mark.faults
@pytest.mark.parametrize("argv", CASES + SLOW)
def test_a_command_whose_output_nobody_reads_ends_without_a_word(argv, folder, capsys, monkeypatch):
    with unread(monkeypatch):
        assert main(given(argv)) == codes.NOT_READ
    assert not re.search("rror|Traceback|pipe", capsys.readouterr().err)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_narrow_terminal(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage, _, text = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith("usage: ")  # which argparse breaks, but not before every option
    assert [line for line in text.splitlines() if len(line) > 40] == []


@pytest.mark.parametrize("argv", [case for case in CASES if "--json" not in case.values[0]])
def test_what_is_printed_fits_a_narrow_terminal(argv, folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(given(argv)) == int(argv[0] == "checkpoint")  # whose one step has no manifest
    text = capsys.readouterr().out
    if argv == ["config", "CONFIG"]:  # which is a config itself, and stays one
        assert read(_written("shown.yaml", text)) == read("small.yaml")
        return
    assert [line for line in text.splitlines() if len(line) > 40 and " " in line.strip()] == []


def _written(name, text):
    Path(name).write_text(text)
    return name


def test_a_table_that_does_not_fit_is_written_row_by_row():
    rows = [["", "tiny", "runs/quickstart@24"], ["reward", "0.100 (0.050 to 0.150)", "0.900"], ["cut off", "0%"]]
    assert printing.table(rows, 60).splitlines()[1] == "reward   0.100 (0.050 to 0.150)  0.900"
    assert printing.table(rows, 40) == (
        "reward\n  tiny: 0.100 (0.050 to 0.150)\n  runs/quickstart@24: 0.900\ncut off\n  tiny: 0%"
    )


@pytest.mark.parametrize("line", ["a word " * 20, "    " + "b " * 40, "label   " + "what it is " * 9, "c" * 90])
def test_broken_lines_keep_every_word_in_order(line):
    for columns in (20, 33, 40, 80):
        lines = printing.wrapped(line, columns).split("\n")
        assert " ".join(lines).split() == line.split()
        assert all(len(each) <= columns or each.strip() == "c" * 90 for each in lines)


def printed_in_a_terminal(argv, monkeypatch, **variables):
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", **variables}.items():
        monkeypatch.setenv(name, value)
    outside, inside = pty.openpty()
    with os.fdopen(inside, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        main(argv)
        stream.flush()
        os.set_blocking(outside, False)
        text = os.read(outside, 1 << 20).decode()
    os.close(outside)
    return text


COLOUR = r"\x1b\[[\d;]*(3[0-7]|38|9[0-7])[\d;]*m"


def test_no_color_takes_the_colours_away(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert re.search(COLOUR, printed_in_a_terminal(["watch", str(RUN), "--once"], monkeypatch))
    text = printed_in_a_terminal(["watch", str(RUN), "--once"], monkeypatch, NO_COLOR="1")
    assert "held-out reward" in text and not re.search(COLOUR, text)


# JSON, and quiet


@pytest.mark.parametrize("argv", [case.values[0] for case in CASES if "--json" in case.values[0]])
def test_with_json_standard_output_is_one_document(argv, folder, capsys):
    main(given(argv))
    assert json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_data_as_json_has_what_the_text_has(folder, capsys):
    assert main(["data", "small.yaml", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == "" and found["examples"]["training"]["examples"] == 16 and found["mistakes"] == []
    assert found["earned"]["the gold answer"]["reward"] == pytest.approx(
        sum(reward["weight"] for reward in found["rewards"])
    )
    assert main(["data", "small.yaml", "--quiet", "train.max_prompt_tokens=5"]) == 1
    assert re.fullmatch(r"20 prompts have more than 5 tokens: .*\n", capsys.readouterr().out)


@pytest.mark.slow
def test_a_quiet_plan_is_its_table_alone(folder, capsys):
    assert main(["plan", "small.yaml", "--memory", "8GiB", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith("weights ") and "It fits" in printed.out


def test_a_report_tells_what_was_learned_as_json(tmp_path, capsys):
    assert main(["report", str(RUN), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["page"]).is_file()
    (run,) = found["runs"]
    assert (run["name"], run["last"]["step"], run["last"]["value"]) == ("held-out reward", 3, 1.0)


METRICS = {"reward": 0.5, "completions/mean_length": 3.0, "entropy": 1.0, "grad_norm": 1.0}


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, True), (logging.WARNING, False)])
def test_a_quiet_training_prints_no_progress(level, shown, capsys, monkeypatch):
    announce(print, level)
    progress = Progress(2, 0, watchdog_minutes=0.0)
    with progress.phase("sampling"):
        pass
    progress.finish_step(METRICS)
    logging.getLogger("grpo_jax").info("compiling a program")
    logging.getLogger("grpo_jax").warning("something is wrong")
    progress.say("reward 0.1 -> 0.9")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["something is wrong", "reward 0.1 -> 0.9"]
    assert (len(lines) == 5) if shown else (len(lines) == 2)


def test_quiet_is_for_one_command_alone(folder, capsys):
    main(["data", "nowhere.yaml", "--quiet"])
    assert logging.getLogger("grpo_jax").level == logging.WARNING
    main(["tasks"])
    assert logging.getLogger("grpo_jax").level == logging.INFO


# Errors


@pytest.mark.faults
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.weights=int8", "model.weights is int8, and such weights cannot be trained"),
        ("model.name=tinny", "model.name: "),
        ("model.lora={rank: 0}", "model.lora.rank must be "),
        ("model.use=random", "model.use: unknown name random"),
        ("train.prompts=0", "train.prompts must be "),
        ("rollout.max_tokens=0", "rollout.max_tokens: "),
        ("mesh.data=3", "mesh.data"),
        ("algorithm.minibatches=3", "algorithm.minibatches"),
    ],
)
def test_a_plan_says_where_a_mistake_was_written(change, words, folder, capsys):
    assert main(["plan", "small.yaml", "--memory", "8GiB", change]) == codes.MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("error: command line: ") and words in error


# Where modules are found

SCRIPT = "import sys\nfrom grpo_jax.cli import main\nsys.exit(main())\n"


@pytest.fixture
def modules(folder):
    for name, size in (("here", 3), ("beside", 4), ("installed", 5)):
        (folder / name).mkdir()
        text = f"def questions(size: int = {size}): ...\n"
        for module in {"here": ("a",), "beside": ("a", "b"), "installed": ("a_of_path", "b")}[name]:
            (folder / name / f"{module}_module.py").write_text(text)
    (folder / "here" / "yaml.py").write_text("raise SystemExit('the folder hides a package')\n")
    (folder / "here" / "argparse.py").write_text("raise SystemExit('the folder hides the standard library')\n")
    (folder / "beside" / "c.yaml").write_text(CONFIG)
    (folder / "bin").mkdir()
    (folder / "bin" / "grpo-jax").write_text(SCRIPT)  # as pip writes it
    return folder


@pytest.mark.parametrize("program", [["-m", "grpo_jax"], ["bin/grpo-jax"]], ids=" ".join)
def test_modules_are_found_in_the_same_order_however_the_program_is_started(program, modules):
    program = [str(modules / each) if "/" in each else each for each in program]
    found = {}
    for module in ("a_module", "b_module", "a_of_path_module"):
        result = subprocess.run(
            [sys.executable, *program, "config", "../beside/c.yaml", f"task={{use: '{module}:questions'}}"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE), str(modules / "installed"), *sys.path[1:]])},
            cwd=modules / "here",
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        found[module] = re.search(r"size: (\d)", result.stdout)[1]
    assert found == {"a_module": "3", "b_module": "5", "a_of_path_module": "5"}


# Completion


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "grpo-jax.bash"
    command = [sys.executable, "-m", "grpo_jax", "--print-completion", "bash"]
    file.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return file


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], {"train"}),
        (["plan", "quickstart", "--mem"], {"--memory"}),
        (["train", "quick"], {"quickstart"}),
        (["train", "sm"], {"small.yaml"}),
        (["report", ""], {"runs/first", "runs/second"}),
        (["report", "runs/f"], {"runs/first"}),
        (["generate", "runs/s"], {"runs/second"}),
        (["tasks", "count"], {"countdown"}),
        (["objectives", "dap"], {"dapo"}),
        (["eval", "tiny", "--task", "arith"], {"arithmetic"}),
        (["bench", "ro"], {"rollout"}),
        (["bench", "rollout", "--dtype", "b"], {"bfloat16"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_shell_completes_commands_options_configs_and_runs(words, found, folder, script):
    for run in ("first", "second"):
        (folder / "runs" / run).mkdir(parents=True)
    line = " ".join(map(shlex.quote, ["grpo-jax", *words]))
    asked = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_grpo_jax"
    shown = f'{asked}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    result = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert {*result.stdout.split()} == found


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_the_commands(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and all(command in text for command in COMMANDS) and "quickstart" in text
