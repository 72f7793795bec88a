import json
import re
import time
from pathlib import Path

import pytest

from grpo_jax.config import read
from grpo_jax.rewards import Example
from grpo_jax.rewards.rubrics import Asked, Rubric, Sheet
from grpo_jax.rewards.rubrics.reading import read_column, read_criteria
from grpo_jax.rewards.rubrics.rules import Within
from grpo_jax.rewards.rubrics.wording import Wording, plain
from grpo_jax.training.resuming import _told

TRAVEL = """
instructions = "You judge answers to travellers."

[[criteria]]
name = "places"
text = "Does it name places to eat in {city}?"
weight = 2
rule = {any_of = "{places}", at_least = 2}

[[criteria]]
name = "city"
text = "Does it stay in {city}?"
gate = true
rule = {only = "{places}", among = ["Namba", "Tenma", "Shibuya", "Ueno"]}

[[criteria]]
name = "elsewhere"
text = "Does it speak of Tokyo?"
negative = true
weight = 0.5
rule = {any_of = ["Tokyo"]}
"""
OSAKA = Example("Where?", columns={"city": "Osaka", "places": ["Namba", "Tenma"]}, source="rows.jsonl:3")


class Echo:
    """A judge that says 1 for answers with the word good, 0 for others, and nothing for those with the word odd."""

    def __init__(self):
        self.seen = []

    def check(self, sheet: Sheet) -> None:
        if "impossible" in sheet.prompt:
            raise ValueError("it cannot be asked")

    def judge(self, sheets):
        self.seen += sheets
        return [[None if "odd" in s.response else float("good" in s.response) for _ in s.criteria] for s in sheets]


def written(tmp_path, text, name="rubric.toml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def rule(tmp_path, line, response, **columns):
    """The value that a rule, written in TOML, gives a response."""
    text = f'[[criteria]]\nname = "a"\ntext = "?"\nrule = {line}\n'
    reward = Rubric(written(tmp_path, text))
    return reward([Example("?", columns=columns)], [[response]])[0][0]["a"]


# Criteria as they are written


def test_a_rubric_gives_each_criterion_a_part_with_its_weight(tmp_path):
    reward = Rubric(written(tmp_path, TRAVEL))
    assert reward.criteria == ("places", "city", "elsewhere")
    assert reward.weights == {"places": 2.0, "elsewhere": -0.5}
    assert reward.gates == {"city"}
    responses = ["Go to Namba.", "Go to Namba, then Tenma, as in Tokyo.", "Go to Shibuya, not to Namba.", ""]
    assert reward([OSAKA], [responses]) == [
        [
            {"places": 0.5, "city": 1.0, "elsewhere": 0.0},
            {"places": 1.0, "city": 1.0, "elsewhere": 1.0},
            {"places": 0.0, "city": 0.0, "elsewhere": 0.0},
            {"places": 0.0, "city": 1.0, "elsewhere": 0.0},
        ]
    ]


YAML = """
instructions: Be fair.
criteria:
  - name: tone
    text: How polite is it?
    answers: [no, partly, yes]
  - name: safe
    text: >
      Is it
      safe?
    gate: true
    rule: {none_of: [Tokyo, ["New York", NYC]]}
"""


def test_toml_yaml_and_json_say_the_same(tmp_path):
    toml = """instructions = "Be fair."
[[criteria]]
name = "tone"
text = "How polite is it?"
answers = ["no", "partly", "yes"]
[[criteria]]
name = "safe"
text = "Is it safe?\\n"
gate = true
[criteria.rule]
none_of = ["Tokyo", ["New York", "NYC"]]
"""
    items = [
        {"name": "tone", "text": "How polite is it?", "answers": ["no", "partly", "yes"]},
        {"name": "safe", "text": "Is it safe?\n", "gate": True, "rule": {"none_of": ["Tokyo", ["New York", "NYC"]]}},
    ]
    found = [
        read_criteria(tmp_path / name)
        for name, text in {
            "a.toml": toml,
            "a.yaml": YAML,
            "a.json": json.dumps({"instructions": "Be fair.", "criteria": items}),
        }.items()
        if (tmp_path / name).write_text(text)
    ]
    plain_items = [[(i.name, i.text, i.answers, i.gate, i.rule) for i in each.items] for each in found]
    assert plain_items[0] == plain_items[1] == plain_items[2]
    assert {each.instructions for each in found} == {"Be fair."}
    assert found[1].items[0].answers == ("no", "partly", "yes")  # and not False and True
    assert found[0].items[1].place.endswith("a.toml:6") and found[1].items[1].place.endswith("a.yaml:7")


GOOD = '[[criteria]]\nname = "a"\ntext = "?"\n'
MISTAKES = {
    "weigth": (GOOD + "weigth = 2\n", "4: a criterion has no weigth, did you mean weight?"),
    "twice": (GOOD + "\n" + GOOD, "5: a is the name of the criterion at"),
    "no text": ('[[criteria]]\nname = "a"\n', "1: a criterion needs a text"),
    "empty name": ('[[criteria]]\nname = ""\ntext = "?"\n', "2: a criterion needs a name"),
    "odd name": ('[[criteria]]\nname = "a/b"\ntext = "?"\n', "2: a criterion's name is made of letters"),
    "weight": (GOOD + 'weight = "2"\n', "4: weight is a number above 0"),
    "below": (GOOD + "weight = -1\n", "4: weight is a number above 0 and at most 1e+06; got -1; write negative = true"),
    "nan": (GOOD + "weight = nan\n", "4: weight is a number above 0"),
    "truth": (GOOD + "weight = true\n", "4: weight is a number above 0"),
    "one answer": (GOOD + 'answers = ["yes"]\n', "4: answers are at least two"),
    "same answers": (GOOD + 'answers = ["yes", "Yes"]\n', "4: answers are different"),
    "switch": (GOOD + 'gate = "yes"\n', "4: gate is true or false; got 'yes'"),
    "both": (GOOD + "gate = true\nnegative = true\n", "5: a cannot be both a gate and negative"),
    "gate weight": (GOOD + "gate = true\nweight = 2\n", "5: a is a gate"),
    "only gates": (GOOD + "gate = true\n", "1: all criteria are gates"),
    "rule": (GOOD + "rule = 3\n", "4: a rule is a table"),
    "unknown rule": (GOOD + 'rule = {any_off = ["x"]}\n', "4: a rule has exactly one of"),
    "two rules": (GOOD + 'rule = {any_of = ["x"], none_of = ["y"]}\n', "got any_of and none_of"),
    "rule option": (GOOD + 'rule = {any_of = ["x"], at_last = 2}\n', "did you mean at_least?"),
    "rule type": (GOOD + 'rule = {any_of = ["x"], at_least = 1.5}\n', "4: at_least is a whole number; got 1.5"),
    "rule range": (GOOD + "rule = {words = [9, 3]}\n", "4: words is a smallest and a largest number"),
    "rule pattern": (GOOD + 'rule = {pattern = "("}\n', "4: pattern needs a regular expression"),
    "rule form": (GOOD + 'rule = {form = "jsn"}\n', "did you mean json?"),
    "rule language": (GOOD + 'rule = {language = "english"}\n', "4: language must be one of en"),
    "rule missing": (GOOD + 'rule = {only = ["x"]}\n', "needs among, too"),
    "empty list": (GOOD + "rule = {any_of = []}\n", "4: any_of is an empty list"),
    "at most": (GOOD + 'rule = {any_of = ["x"], at_least = 3, at_most = 2}\n', "4: at_least must be 1 or more"),
    "at least": (GOOD + 'rule = {any_of = ["x"], at_least = 3}\n', "4: at_least is 3, and any_of has 1 to mention"),
    "answers of a rule": (GOOD + 'rule = {any_of = ["x"]}\nanswers = ["a", "b"]\n', "5: a is judged by its rule"),
    "text in text": (
        '[[criteria]]\nname = "a"\ntext = """\nweight = 3\n[[criteria]]\n"""\nweight = "x"\n',
        "7: weight",
    ),
    "no toml": ("[[criteria]\n", "1: this is not TOML"),
    "nothing": ("", "1: a rubric needs at least one criterion"),
    "other": ("criterion = 3\n", "1: a rubric has no criterion, did you mean criteria?"),
    "empty": ("criteria = []\n", "1: a rubric needs at least one criterion"),
}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (None, "which is null in this example"),
        (["Namba", None], "got None in it"),
        ({"Namba": 1}, "got {'Namba': 1} in it"),
        (True, "got True in it"),
    ],
    ids=str,
)
def test_a_column_that_no_rule_can_look_for_is_refused_by_name(tmp_path, places, words):
    with pytest.raises(ValueError, match="places") as caught:
        rule(tmp_path, '{any_of = "{places}"}', "Namba", places=places)
    assert words in str(caught.value)


def test_a_column_may_hold_numbers_spellings_and_fewer_items_than_are_asked_for(tmp_path):
    assert rule(tmp_path, '{any_of = "{rooms}"}', "in room 12", rooms=[12, 13]) == 1
    assert rule(tmp_path, '{any_of = "{places}", at_least = 2}', "Nanba", places=[["Namba", "Nanba"]]) == 1
    assert rule(tmp_path, '{any_of = "{places}"}', "Nanba", places=[]) == 0


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_rubric_has_its_line_and_the_way_out(name, tmp_path):
    text, expected = MISTAKES[name]
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        Rubric(path, judge=Echo())
    assert expected in str(caught.value) and str(caught.value).startswith(path), str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("criteria:\n  - {name: a, text: b, name: c}\n", ":2: name is given twice"),
        ("criteria:\n  - &x {name: a, text: b}\n  - *x\n", ":2: anchors, aliases and tags"),
        ("criteria:\n  - !!python/object:os.system {}\n", ":2: anchors, aliases and tags"),
        ("criteria:\n - name: a\n   text: [b]\n", ":3: text is a text; got a list of 1"),
        ("criteria: [\n", ": this is not YAML"),
        ("- a\n", ":1: a criterion is a table"),
        ("7\n", ":1: a rubric is a list of criteria"),
    ],
)
def test_a_mistake_in_yaml_has_its_line(text, expected, tmp_path):
    with pytest.raises(ValueError, match=r"rubric\.yaml") as caught:
        Rubric(written(tmp_path, text, "rubric.yaml"), judge=Echo())
    assert expected in str(caught.value), str(caught.value)


def test_a_file_that_is_no_rubric_is_told_by_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"rubric\.txt: a rubric is a file that ends in \.toml"):
        Rubric(written(tmp_path, GOOD, "rubric.txt"), judge=Echo())
    with pytest.raises(FileNotFoundError, match=r"away\.toml"):
        Rubric(str(tmp_path / "away.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        Rubric(str(tmp_path / "bytes.toml"))
    with pytest.raises(ValueError, match="path of a file with criteria, or a column"):
        Rubric()


def test_a_criterion_that_nobody_can_judge_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rubric\.toml:1: criterion a has no rule, and there is no judge"):
        Rubric(written(tmp_path, GOOD))


def test_a_column_that_is_not_there_is_told_for_the_example(tmp_path):
    reward = Rubric(written(tmp_path, TRAVEL))
    reward.check(OSAKA)
    with pytest.raises(ValueError, match=r"rubric\.toml:4: places: the rubric speaks of \{places\}.* has city"):
        reward.check(Example("Where?", columns={"city": "Osaka"}))


# The page about rubrics

PAGE = (Path(__file__).parents[1] / "docs" / "rubrics.md").read_text()


def test_the_rubric_of_the_page_is_read_as_the_page_says(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    found = read_criteria(Path(written(tmp_path, block)))
    places, tone, stays, evades = found.items
    assert found.instructions == "You judge answers to travellers."
    assert (places.name, places.weight, places.answers) == ("places", 2.0, ("no", "yes"))
    assert (tone.weight, tone.rule, tone.answers) == (1.0, None, ("unfriendly", "neutral", "friendly"))
    assert stays.gate and evades.negative and evades.signed_weight == -1.0
    columns = {"city": "Osaka", "places": ["Namba", "Tenma"], "elsewhere": ["Namba", "Ueno"]}
    reward = Rubric(written(tmp_path, block), judge=Echo())
    values = reward([Example("Where?", columns=columns)], [["Namba is good.", "I'm sorry, Ueno."]])
    assert [each["places"] for each in values[0]] == [0.5, 0.0]
    assert [each["tone"] for each in values[0]] == [1.0, 0.0]
    assert [each["stays"] for each in values[0]] == [1.0, 0.0]
    assert [each["evades"] for each in values[0]] == [0.0, 1.0]


def test_the_configs_of_the_page_are_read(tmp_path, monkeypatch):
    base = "task: {use: arithmetic}\ntrain: {steps: 1}\nmodel: {name: none}\n"
    configs = []
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)):
        (tmp_path / f"{number}.yaml").write_text(base + block)
        configs.append(read(tmp_path / f"{number}.yaml"))
    shared, in_process, behind = configs
    assert shared.rewards[0].call.arguments["path"] == "travel.toml" and shared.objective.target.endswith(":rubric")
    assert in_process.judge.target == "grpo_jax.judges:model"
    monkeypatch.setenv("OPENAI_API_KEY", "no key")
    judge = behind.judge.build()
    assert (judge.url, judge.model, judge.options) == ("https://api.openai.com/v1", "gpt-5-mini", {})


# Judges


def test_a_judge_is_asked_once_for_equal_answers_and_not_for_rules(tmp_path):
    judge = Echo()
    text = TRAVEL + '[[criteria]]\nname = "kind"\ntext = "Is it kind to people in {city}?"\n'
    reward = Rubric(written(tmp_path, text), judge=judge)
    values = reward([OSAKA], [["good", "odd", "good", "bad"]])[0]
    assert [each["kind"] for each in values] == [1.0, None, 1.0, 0.0]
    asked = (Asked("kind", "Is it kind to people in Osaka?", ("no", "yes")),)
    told = "You judge answers to travellers."
    assert judge.seen == [Sheet(told, "Where?", response, asked) for response in ("good", "odd", "bad")]


def test_each_example_may_bring_its_own_criteria(tmp_path):
    own = [
        {"name": "right", "text": "Is it {answer}?", "weight": 3, "rule": {"any_of": "{answer}"}},
        {"name": "kind", "text": "Is it kind?"},
        {"name": "rude", "text": "Is it rude?", "negative": True, "weight": 2, "rule": {"any_of": ["fool"]}},
        {"name": "short", "text": "Is it short?", "gate": True, "rule": {"words": [1, 4]}},
    ]
    reward = Rubric(column="points", judge=Echo())
    one = Example("Q", columns={"answer": "Namba", "points": own})
    two = Example("Q", columns={"answer": "Ueno", "points": json.dumps(own[:1])}, source="rows.jsonl:2")
    assert reward.criteria == ("points",) and reward.weights == {} and reward.gates == frozenset()
    values = reward(
        [one, two], [["Namba good", "Namba", "fool", "odd Namba", "Namba is a good place for it"], ["Ueno"] * 5]
    )
    # of 4 points: 3 + 1, 3, 0 - 2 (not below 0), no verdict, and 4 of 4 times 4 words of 7
    assert [each["points"] for each in values[0]] == [1.0, 0.75, 0.0, None, pytest.approx(4 / 7)]
    assert {each["points"] for each in values[1]} == {1.0}
    for column in ("[", {"name": "x"}, 3, [], None):
        with pytest.raises(ValueError, match=r"points"):
            reward.check(Example("Q", columns={"points": column}, source="rows.jsonl:9"))


def test_the_check_of_a_rubric_asks_the_judge_whether_it_can_be_asked():
    reward = Rubric(column="points", judge=Echo())
    points = {"points": [{"name": "kind", "text": "Is it kind?"}]}
    reward.check(Example("possible", columns=points))
    with pytest.raises(ValueError, match="it cannot be asked"):
        reward.check(Example("impossible", columns=points))


# What a text mentions

SAYS = [
    "Namba",
    "Go to Namba.",
    "**Namba** is great.",
    "_Namba_",
    "Namba's stalls",
    "visit NAMBA",
    "\uff2e\uff41\uff4d\uff42\uff41",
    "Na\u00admba",
    "Not only Namba but also Tenma.",
    "Do not miss Namba!",
    "You can't go wrong with Namba.",
    "Don't skip Namba.",
    "Why not Namba?",
    "No trip is complete without Namba.",
    "Avoid Umeda, go to Namba.",
    "Not Umeda, but Namba.",
    "Instead of Umeda, go to Namba.",
    "There is no better place than Namba.",
    "Namba is not expensive.",
    "Avoid the crowds in Namba by going early.",
    "Namba, not Umeda.",
    "Places to go:\n- Umeda\n- Namba",
    "Places to avoid:\n- Umeda\n\nGo to Namba.",
    "Don\u2019t go to Umeda. Namba is better.",
    "Look no further than Namba.",
]
DENIES = [
    "not in Namba",
    "Do not go to Namba.",
    "Don\u2019t go to Namba",
    "Avoid Namba.",
    "Namba is not the place.",
    "Namba isn't good.",
    "Skip Umeda and Namba.",
    "Go to Umeda, not Namba.",
    "Umeda instead of Namba",
    "Umeda rather than Namba",
    "anywhere except Namba",
    "Places to avoid:\n- Umeda\n- Namba\n",
    "Avoid: Namba",
    "Namba? No.",
    "Namba: avoid it",
    "Neither Umeda nor Namba",
    "It is false that Namba is good.",
    "Namba is closed.",
    "Do\nnot go to\nNamba",
    "**Not** in **Namba**",
    "I would not recommend Namba.",
    "Namba (not recommended)",
]


@pytest.mark.parametrize("text", SAYS)
def test_a_place_that_is_named_is_mentioned(text):
    assert Wording(text).mentions(["Namba"]).stands


@pytest.mark.parametrize("text", [*DENIES, "Nambaya", "kitanamba", "Nam ba", ""])
def test_a_place_that_is_denied_or_only_part_of_a_word_is_not_mentioned(text):
    found = Wording(text).mentions(["Namba"])
    assert found.affirmed == 0 and found.denied == (text in DENIES)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("D\u014dtonbori at night", "Dotonbori"),
        ("大阪の難波でたこ焼き", "難波"),
        ("die STRASSE", "Straße"),
        ("street\u00a0food", "street food"),
        ("street-food", "street food"),
        ("two stalls", "stall"),
        ("in Москве", "москве"),
        ("O\u2019Connell Street", "O'Connell Street"),
    ],
)
def test_a_phrase_is_found_however_it_is_typed(text, phrase):
    assert Wording(text).mentions([phrase]).stands


@pytest.mark.parametrize(("text", "phrase"), [("кота", "кот"), ("й", "и"), ("busses", "bu"), ("naïveté", "naive")])
def test_a_part_of_a_word_of_any_script_is_no_mention(text, phrase):
    assert not Wording(text).mentions([phrase]).affirmed


def test_hostile_texts_are_read_in_a_moment():
    begun = time.process_time()
    for text in (
        "not " * 5000,
        "a, " * 6000,
        "no: " * 5000,
        "Namba " * 3300,
        "(" * 20000,
        "\n- " * 6000,
        "not Namba: " * 1800,
        "!" * 19_999 + "x",
    ):
        Wording(text).mentions(["Namba"])
    assert time.process_time() - begun < 5


# Rules


def test_rules_for_what_is_mentioned(tmp_path):
    places = {"places": ["Namba", ["Tenma", "Tenjinbashi"]], "all": ["York", "Leeds", "New York"]}
    assert rule(tmp_path, '{all_of = "{places}"}', "Tenjinbashi and not Namba", **places) == 0.5
    assert rule(tmp_path, '{all_of = ["{places}", "night"]}', "Namba, Tenma at night", **places) == 1.0
    assert rule(tmp_path, '{any_of = "{places}", at_most = 1}', "Namba, Tenma", **places) == 0.0
    assert rule(tmp_path, '{any_of = "in {all.0}"}', "x", **{"all.0": "York"}) == 0.0
    assert rule(tmp_path, '{none_of = ["Tokyo"]}', "This is not Tokyo.") == 1.0
    assert rule(tmp_path, '{none_of = ["Tokyo"]}', "As in Tokyo.") == 0.0
    assert rule(tmp_path, '{only = ["New York"], among = "{all}"}', "Eat in New York.", **places) == 1.0
    assert rule(tmp_path, '{only = ["New York"], among = "{all}"}', "Eat in New York and York.", **places) == 0.0
    assert rule(tmp_path, '{consistent = "{places}"}', "Go to Namba. Never go to Namba.", **places) == 0.0
    assert rule(tmp_path, '{consistent = "{places}"}', "Go to Namba. Never go to Tenma.", **places) == 1.0
    assert rule(tmp_path, '{any_of = ["Namba"]}', "Go to Namba. Never go to Namba.") == 0.0


def test_rules_for_length_and_form(tmp_path):
    assert [rule(tmp_path, "{words = [2, 4]}", text) for text in ("", "one", "it's two", "1 2 3 4 5 6 7 8")] == [
        0,
        0.5,
        1,
        0.5,
    ]
    assert [rule(tmp_path, "{sentences = [1, 2]}", text) for text in ("", "One.", "One. Two! Three? Four.")] == [
        0,
        1,
        0.5,
    ]
    assert [rule(tmp_path, '{form = "json"}', text) for text in ('{"a": 1}', "NaN", "{'a': 1}", "")] == [1, 0, 0, 0]
    assert [rule(tmp_path, '{form = "list"}', text) for text in ("- a\n- b", "1. a\n2. b", "- a")] == [1, 1, 0]
    assert [rule(tmp_path, '{form = "plain"}', text) for text in ("a * b", "**a**", "# A", "")] == [1, 0, 0, 0]
    assert [rule(tmp_path, '{form = "complete"}', text) for text in ("Yes.", '"Yes!"', "and", "", ".", "...")] == [
        1,
        1,
        0,
        0,
        0,
        0,
    ]
    prose = ["Go to Namba in the evening and eat there.", "Namba, Tenma, takoyaki, evening, okonomiyaki, ramen", "Go"]
    assert [rule(tmp_path, '{form = "prose"}', text) for text in prose] == [1, 0, 0]
    assert [rule(tmp_path, '{pattern = "^{city}!{1,2}$"}', text, city="a.b") for text in ("a.b!!", "axb!")] == [1, 0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The market is open in the evening."),
        ("de", "Der Markt ist am Abend geöffnet, und die Leute sind nett."),
        ("fr", "Le marché est ouvert le soir et les gens sont gentils."),
        ("es", "El mercado está abierto por la noche y la gente es amable."),
        ("ja", "市場は夜に開いています。"),
        ("ru", "Рынок открыт вечером."),
        ("ar", "السوق مفتوح في المساء"),
    ],
)
def test_a_text_is_in_its_language_and_in_no_other(language, text, tmp_path):
    others = [other for other in ("en", "de", "fr", "es", "ja", "zh", "ru", "uk", "ar") if other != language]
    assert rule(tmp_path, f'{{language = "{language}"}}', text) > 0.9
    assert [rule(tmp_path, f'{{language = "{other}"}}', text) for other in others] == [0.0] * len(others)
    assert rule(tmp_path, f'{{language = "{language}"}}', "12 + 3!") == 0.0


def test_what_is_not_in_the_document_is_found():
    test = Within("{document}").bound(
        {"document": "The Harbour Museum opens at 9:30 and costs 4,50 euros. Anna leads it."}
    )
    assert test("It opens at 9:30, says Anna. The tour costs 4,50.") == 1.0
    assert test("It opens at 10 and Peter leads it.") == 0.0
    assert test("It is in the Harbour of Lisbon.") == 0.5
    assert test("") == test("nothing to find") == 1.0


def test_a_rule_gives_the_same_number_each_time_and_folds_letters():
    assert plain("\uff24\u014dtonbori\u200b  \u2019S") == "dotonbori 's"
    assert read_column([{"name": "a", "text": "?"}], "x").items[0].place == "x"


def test_a_run_is_told_what_a_rubric_says_and_not_where_it_stands(tmp_path):
    def told(folder: str, text: str) -> dict[str, str]:
        path = tmp_path / folder / "r.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return dict(_told("rewards[0]", Rubric(str(path))))

    text = '[[criteria]]\nname = "a"\ntext = "A?"\nrule = {any_of = ["a"]}\n'
    assert told("one", text) == told("two", text) == told("one", f"# a comment\n{text}")
    assert told("one", text) != told("one", text.replace('["a"]', '["b"]'))
    assert told("one", text) != told("one", f"{text}weight = 2.0\n")
