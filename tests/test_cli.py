import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from grpo_jax import __version__
from grpo_jax.cli import parse
from grpo_jax.commands import objectives, presets, printing
from grpo_jax.config import ConfigError, find_config, parameters

HEAVY = {"jax", "flax", "transformers", "datasets"}
PROGRAM = "import sys; from grpo_jax.cli import main; status = main(); print(*sys.modules); sys.exit(status)"


def grpo_jax(*arguments: str, program: tuple[str, ...] = ("-m", "grpo_jax")) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("task:\n  use: arithmetic\ntrain:\n  steps: 10\n")
    return str(path)


def test_help_imports_neither_jax_nor_yaml():
    program = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from grpo_jax.cli import main; main()"
    result = grpo_jax("--help", program=("-c", program))
    assert result.returncode == 0 and "train the model of a config" in result.stdout
    assert {*HEAVY, "yaml"}.isdisjoint(result.stdout.split())


def test_a_mistake_in_a_config_is_one_line_and_comes_before_jax(config):
    result = grpo_jax("train", config, "train.stepz=1", program=("-c", PROGRAM))
    assert result.stderr == "error: command line: train.stepz: unknown key, did you mean train.steps?\n"
    assert result.returncode == 2
    assert HEAVY.isdisjoint(result.stdout.split())


def test_a_config_that_is_not_there_is_one_line(tmp_path):
    result = grpo_jax("config", str(tmp_path / "none.yaml"))
    assert result.stderr == f"error: there is no config file {tmp_path}/none.yaml\n"
    assert result.returncode == 2


def test_config_shows_every_default(config):
    result = grpo_jax("config", config, "train.steps=3")
    assert result.returncode == 0
    assert "  steps: 3  # command line\n" in result.stdout
    assert "  use: arithmetic  # " in result.stdout
    assert "mesh:  # grpo_jax.devices.mesh:Layout\n" in result.stdout


def test_a_module_in_the_current_folder_can_be_used(config, tmp_path):
    (tmp_path / "mine.py").write_text("def questions(size: int = 3): ...\n")
    result = subprocess.run(
        [sys.executable, "-P", "-m", "grpo_jax", "config", config, "task.use=mine:questions"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "  size: 3  # default\n" in result.stdout


def test_overrides_may_follow_an_option():
    arguments = parse(["train", "some.yaml", "run.name=a", "--resume", "train.steps=3"])
    assert (arguments.config, arguments.overrides, arguments.resume) == (
        "some.yaml",
        ["run.name=a", "train.steps=3"],
        True,
    )


@pytest.mark.parametrize(
    "argv", [["train", "some.yaml", "--resum"], ["generate", "tiny", "hello", "more"], ["trian"], []]
)
def test_a_mistake_in_an_option_shows_the_usage(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(argv)
    assert stopped.value.code == 2
    assert "usage: grpo-jax" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["trian", "some.yaml"], "did you mean train?"),
        (["Train", "some.yaml"], "did you mean train?"),
        (["bench", "trani"], "did you mean train?"),
        (["train", "some.yaml", "--resum"], "did you mean --resume?"),
        (["generate", "tiny", "hello", "--temprature", "1"], "did you mean --temperature?"),
        (["train", "some.yaml", "--train.steps=3"], "an override has no dashes: train.steps=3"),
        (["train", "some.yaml", "--train.steps", "3"], "an override has no dashes: train.steps=VALUE"),
    ],
)
def test_a_mistyped_command_or_option_is_answered_with_the_one_that_was_meant(argv, advice, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(argv)
    assert stopped.value.code == 2 and advice in capsys.readouterr().err


def test_a_config_is_found_by_its_name_in_the_current_folder_first(tmp_path, monkeypatch):
    checkout = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == find_config("quickstart.yaml") == checkout
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").touch()
    assert find_config("quickstart") == Path("configs", "quickstart.yaml")
    (tmp_path / "quickstart.yaml").touch()
    assert find_config("quickstart") == Path("quickstart.yaml")
    with pytest.raises(
        FileNotFoundError, match=r"no config file quikstart, did you mean quickstart \(quickstart.yaml\)"
    ):
        find_config("quikstart")


@pytest.mark.faults
@pytest.mark.parametrize("command", [["config", "quickstart"], ["--help"]], ids=" ".join)
def test_a_reader_that_stops_early_ends_the_command_quietly(command):
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "grpo_jax", *command], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert result.stderr == "" and result.returncode in (0, 141)  # argparse itself ignores that its help is not read


def test_the_table_of_objectives_fits_a_terminal_and_tells_all_choices():
    rows = [presets.COLUMNS, *map(presets.cells, presets.PRESETS)]
    whole = printing.table(rows, 1000)
    assert whole == printing.table(rows, None) and whole.count("\n") == len(rows) - 1
    narrow = printing.table(rows, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    words = set(re.findall(r"[\w.()]+", narrow))
    assert all(word in words for word in re.findall(r"[\w.()]+", whole.partition("\n")[2]))


def test_options_that_are_settings_of_the_library_have_its_choices_and_defaults(capsys):
    load = parameters("grpo_jax.models:load")
    for remat in typing.get_args(load["remat"].type):
        assert parse(["bench", "train", "--remat", remat]).remat == remat
    with pytest.raises(SystemExit):
        parse(["bench", "train", "--dtype", "auto"])
    assert "bfloat16" in capsys.readouterr().err
    assert parse(["bench", "train"]).remat == "products"  # with which the figures of docs/training.md were measured
    sampler, options = parameters("grpo_jax.rollout:Sampler"), parse(["generate", "tiny", "hello"])
    assert [options.max_tokens, options.top_k, options.top_p] == [
        sampler[name].default for name in ("max_tokens", "top_k", "top_p")
    ]


def test_help_of_a_command_imports_no_jax():
    program = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from grpo_jax.cli import main; main()"
    for command in ("bench", "generate"):
        result = grpo_jax(command, "--help", program=("-c", program))
        assert result.returncode == 0 and HEAVY.isdisjoint(result.stdout.split())


def test_the_version_is_that_of_the_package():
    assert grpo_jax("--version").stdout == f"{__version__}\n"


def test_the_page_of_objectives_has_the_table_that_the_command_prints(capsys):
    page = (Path(__file__).parent.parent / "docs" / "objectives.md").read_text(encoding="utf-8")
    objectives.run(parse(["objectives", "--markdown"]))
    assert capsys.readouterr().out in page


def test_one_objective_is_shown_with_its_formula_source_and_settings(capsys):
    objectives.run(parse(["objectives", "dapo"]))
    shown = capsys.readouterr().out
    for text in (
        "arXiv:2503.14476",
        "clip(r, 1 - clip_low, 1 + clip_high)",
        "clip_high: 0.28",
        "ClippedRatio(0.2, 0.28)",
    ):
        assert text in shown


def test_an_unknown_objective_is_refused_with_the_most_similar_name():
    with pytest.raises(ConfigError, match="did you mean dr_grpo"):
        objectives.run(parse(["objectives", "drgrpo"]))
