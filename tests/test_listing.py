import inspect
import json
import re
from pathlib import Path

import pytest

from grpo_jax import objectives, rewards, tasks
from grpo_jax.cli import main
from grpo_jax.config import SECTIONS, Default, find_config, listing, read
from grpo_jax.config.loading import load
from grpo_jax.config.sections import MAPPINGS, PARTS, TRACKERS
from grpo_jax.rewards.numbers import read_quantity

PAGE = Path(__file__).parent.parent / "docs" / "verifiers.md"


def printed(capsys, *argv):
    assert main(argv) == 0
    return capsys.readouterr().out


def keys(capsys, *argv):
    """Each listed name with its keys, in order."""
    found = json.loads(printed(capsys, *argv, "--json"))
    return {choice["name"]: [key["name"] for key in choice["keys"]] for choice in found["choices"]}


def test_every_task_is_listed_with_its_parameters(capsys):
    makers = {name: getattr(tasks, name) for name in tasks.__all__ if inspect.isfunction(getattr(tasks, name))}
    assert keys(capsys, "tasks") == {name: list(inspect.signature(make).parameters) for name, make in makers.items()}


def test_every_objective_is_listed_with_its_settings(capsys):
    assert keys(capsys, "objectives") == {
        preset.__name__: list(inspect.signature(preset).parameters) for preset in objectives.PRESETS
    }


def test_every_reward_is_listed_with_what_it_can_be_given(capsys):
    listed = keys(capsys, "rewards")
    for name in ("Matches", "MathEqual", "PassesTests", "LanguageConsistency", "RepetitionPenalty"):
        assert listed[name] == list(inspect.signature(getattr(rewards, name)).parameters)
    for name in ("exact", "last_number", "boxed_number", "same_json", "reaches_target"):
        assert listed[name] == []
    assert not {"Mix", "Steps", "score", "needs", "Example"} & set(listed)


@pytest.mark.parametrize("command", ["tasks", "rewards", "objectives"])
def test_names_are_listed_with_a_line_each(capsys, command):
    lines = printed(capsys, command).splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(keys(capsys, command))
    assert all(line.partition(": ")[2] for line in lines)


def test_defaults_are_written_as_in_a_config_and_comments_follow(capsys):
    text = printed(capsys, "rewards", "PassesTests")
    assert '  sandbox: "bubblewrap"  # unsafe: none, so code can do whatever you can\n' in text
    assert "  partial: false  # " in text and "  language: null  # " in printed(
        capsys, "rewards", "LanguageConsistency"
    )
    assert "  pattern: (has to be given)" in printed(capsys, "rewards", "Matches")
    assert "  weight: 1.0  # of the reward in the sum; 0 records it alone\n" in text


def owners():
    """Each choice of each section, with the object that a config would call."""
    for found in listing.settings():
        place = next(iter(found.places))
        mapping = MAPPINGS.get(("grpo_jax.models:load", place.rpartition(".")[2]))
        section = mapping or SECTIONS.get(place) or PARTS.get(place.rpartition(".")[2], TRACKERS)
        for choice in found.choices:
            yield place, section, choice, load(f"{section.namespace}:{choice.name}")


def test_every_setting_is_listed_with_the_default_that_python_sees():
    count = 0
    for place, section, choice, owner in owners():
        known = inspect.signature(owner).parameters
        for key in choice.keys:
            default = known[key.name].default
            assert (key.default is Default.REQUIRED) == (default is inspect.Parameter.empty), (place, choice.name, key)
            if not isinstance(key.default, Default) and "factory" not in repr(default):
                assert key.default == default or key.default == list(default), (place, choice.name, key)
            count += 1
        left_out = {*known} - {key.name for key in choice.keys} - {*section.supplied, *section.takes, "options"}
        assert not left_out, (place, choice.name)
    assert count > 350


def test_every_part_of_an_objective_is_listed_where_it_stands():
    places = {place for found in listing.settings() for place in found.places}
    assert {*SECTIONS, "model.lora", "train.trackers", "objective.kl.reference", "objective.terms.mask"} <= places
    assert {place.rpartition(".")[2] for place in places if place.startswith("objective.")} == set(PARTS)


def test_all_settings_are_printed_as_text_and_as_json(capsys):
    found = json.loads(printed(capsys, "config", "--all", "--json"))
    text = printed(capsys, "config", "--all")
    for section in found:
        assert all(f"{place}:  # {about}" in text for place, about in section["places"].items())
        assert all(f"{key['name']}: " in text for choice in section["choices"] for key in choice["keys"])
    assert '    moments: "float32"  # ' in text and "  steps: (has to be given)\n" in text


def test_a_config_as_json_is_read_as_the_same_config(capsys, tmp_path):
    (tmp_path / "as.yaml").write_text(printed(capsys, "config", "travel", "--json"))
    assert read(tmp_path / "as.yaml") == read(find_config("travel"))


def test_a_config_shows_what_adapters_are_with_their_defaults(capsys):
    text = printed(capsys, "config", "quickstart", "model.lora={rank: 8}")
    assert re.search(r"  lora: \{rank: 8\}  # command line \(.*; here \{rank: 8, alpha: 32, targets: all\}\)\n", text)


@pytest.mark.parametrize("argv", [["config"], ["config", "quickstart", "--all"]])
def test_a_config_or_all_settings_are_shown(argv, capsys):
    assert main(argv) == 2
    assert "--all" in capsys.readouterr().err


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
    names = [name for name in keys(capsys, "rewards") if getattr(rewards, name).__module__.endswith(RULES)]
    names += [name for name in keys(capsys, "tasks") if getattr(tasks, name).__module__.endswith(GENERATED)]
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
