import inspect
import re
from pathlib import Path

import pytest

from grpo_jax import rewards, tasks
from grpo_jax.cli import main
from grpo_jax.config import read
from grpo_jax.rewards.numbers import read_quantity

PAGE = Path(__file__).parent.parent / "docs" / "verifiers.md"


def printed(capsys, *argv):
    assert main(argv) == 0
    return capsys.readouterr().out


def keys(text):
    """Each listed name with its keys, in order."""
    entries = re.findall(r"^(\w+): .*((?:\n    \w+: .*)*)", text, re.MULTILINE)
    return {name: re.findall(r"^    (\w+): ", below, re.MULTILINE) for name, below in entries}


def test_every_task_is_listed_with_its_parameters(capsys):
    makers = {name: getattr(tasks, name) for name in tasks.__all__ if inspect.isfunction(getattr(tasks, name))}
    assert keys(printed(capsys, "tasks")) == {
        name: list(inspect.signature(make).parameters) for name, make in makers.items()
    }


def test_every_reward_is_listed_with_what_it_can_be_given(capsys):
    listed = keys(printed(capsys, "rewards"))
    for name in ("Matches", "MathEqual", "PassesTests", "LanguageConsistency", "RepetitionPenalty"):
        assert listed[name] == list(inspect.signature(getattr(rewards, name)).parameters)
    for name in ("exact", "last_number", "boxed_number", "same_json", "reaches_target"):
        assert listed[name] == []
    assert not {"Mix", "Steps", "score", "needs", "Example"} & set(listed)


def test_defaults_are_written_as_in_a_config_and_comments_follow(capsys):
    text = printed(capsys, "rewards")
    assert '    sandbox: "bubblewrap"  # unsafe: none, so code can do whatever you can\n' in text
    assert "    partial: false  # " in text and "    language: null  # " in text
    assert "    pattern: (has to be given)\n" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("tasks", "countdown"), ["No two puzzles", "`task: {use: countdown, ...}`", "  largest_target: 100\n"]),
        (
            ("rewards", "exact"),
            ["a final full stop is ignored", "`rewards: [{use: exact, weight: 1.0, ...}]`", "  none\n"],
        ),
    ],
)
def test_one_name_is_shown_with_all_that_is_written_about_it(capsys, argv, words):
    text = printed(capsys, *argv)
    assert all(each in text for each in words)


def test_an_unknown_name_is_a_mistake_with_the_most_similar_one(capsys):
    assert main(["rewards", "exakt"]) == 2
    assert "there is no reward exakt, did you mean exact?" in capsys.readouterr().err


RULES = ("answers", "code", "expressions", "format", "structured", "symbolic", "text")  # modules that the page is about
GENERATED = ("arithmetic", "boxed_math", "countdown", "json_format", "letters")


def test_the_page_names_every_reward_by_rule_and_every_generated_task(capsys):
    page = PAGE.read_text(encoding="utf-8")
    names = [name for name in keys(printed(capsys, "rewards")) if getattr(rewards, name).__module__.endswith(RULES)]
    names += [name for name in keys(printed(capsys, "tasks")) if getattr(tasks, name).__module__.endswith(GENERATED)]
    assert len(names) > 15
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_config_of_the_page_is_read_and_its_rewards_are_built(tmp_path):
    path = tmp_path / "page.yaml"
    path.write_text(re.search("```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1])
    parts = [part.build() for part in read(str(path), []).rewards]
    assert parts == [rewards.boxed_number, rewards.RepetitionPenalty(4), rewards.LanguageConsistency("en")]


def test_the_table_of_the_page_tells_numbers_from_what_is_none():
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 7
    for written, meaning in rows:
        for text in re.findall("`([^`]*)`", written):
            if text != "12 000":  # which is read in a mark, and not in prose
                assert (read_quantity(text) is None) == meaning.startswith("no number"), text
