import itertools

import pytest

from grpo_jax.rewards import (
    Example,
    LanguageConsistency,
    RepetitionPenalty,
    alike,
    boxed_number,
    check_examples,
    follows_schema,
    same_json,
)

ENGLISH = Example("What is the capital of France?", "Paris")


def test_the_penalty_is_the_share_of_sequences_that_occurred_before():
    penalty = RepetitionPenalty(words=2)
    assert penalty(ENGLISH, "a b c d") == 0.0
    assert penalty(ENGLISH, "a b a b a b") == -3 / 5  # ab ba ab ba ab
    assert penalty(ENGLISH, "A b, a B.") == -1 / 3
    assert RepetitionPenalty(words=2, most=0.5)(ENGLISH, "la la la la la") == -3 / 8
    for short in ("", "a", "..."):
        assert penalty(ENGLISH, short) == 0.0


def test_repetition_is_seen_without_spaces_too():
    assert RepetitionPenalty()(ENGLISH, "\u662f\u7684\u5427" * 10) == -25 / 28
    assert RepetitionPenalty()(ENGLISH, "\u662f\u7684\u5427\u597d\u4e86") == 0.0


@pytest.mark.parametrize("wrong", [{"words": 0}, {"most": -1.0}])
def test_a_penalty_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="must be at least"):
        RepetitionPenalty(**wrong)


@pytest.mark.parametrize(
    ("language", "response", "share"),
    [
        ("en", "It is Paris.", 1.0),
        ("en", "\u042d\u0442\u043e Paris", 5 / 8),
        ("ru", "\u042d\u0442\u043e Paris", 3 / 8),
        ("zh", "\u7b54\u6848\u662f $x = \\text{two}$ \\boxed{x}", 1.0),  # formulas do not count
        ("zh", "```python\nprint(1)\n```\u7b54\u6848", 1.0),
        ("zh", "<think>\u7b54</think>\u6848", 1.0),
        ("ja", "\u6771\u4eac\u3067\u3059", 1.0),
        ("zh", "\u6771\u4eac\u3067\u3059", 0.5),
        ("ko", "\uc11c\uc6b8", 1.0),
        ("en", "\uff30\uff41\uff52\uff49\uff53", 1.0),  # full width
        ("en", "12", 1.0),
        ("en", "", 0.0),
        ("en", " \n", 0.0),
    ],
)
def test_consistency_is_the_share_of_letters_of_the_languages_script(language, response, share):
    assert LanguageConsistency(language)(ENGLISH, response) == pytest.approx(share)


def test_without_a_language_it_is_that_of_the_prompt():
    japanese = Example(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "\u6771\u4eac\u3068\u306f"}]
    )
    consistent = LanguageConsistency()
    assert consistent(japanese, "\u90fd\u5e02\u3067\u3059") == 1.0
    assert consistent(japanese, "A city") == 0.0
    assert consistent(ENGLISH, "Es ist Paris.") == 1.0  # the same script
    with pytest.raises(ValueError, match="finds no letters in the prompt"):
        check_examples(consistent, [Example("1 + 1 = ?")], "training")
    with pytest.raises(ValueError, match=r"language must be one of ar, .*got 'english'"):
        LanguageConsistency("english")


def test_alike_is_how_much_of_both_is_the_same():
    assert alike(ENGLISH, " Paris\n") == 1.0
    assert alike(ENGLISH, "Pari") == pytest.approx(8 / 9)
    assert alike(ENGLISH, "") == 0.0
    assert alike(ENGLISH, "Paris" * 100_000) == 0.0
    with pytest.raises(ValueError, match="has none"):
        check_examples(alike, [Example("q", " ")], "training")


GOLD = Example("q", '{"a": 1, "b": [true, null], "c": {"d": "x"}}')


@pytest.mark.parametrize(
    ("response", "same", "shaped"),
    [
        ('{"c": {"d": "x"}, "b": [true, null], "a": 1.0}', 1.0, 1.0),
        ('{"a": 2, "b": [null, false, true], "c": {"d": ""}}', 0.0, 1.0),
        ('{"a": true, "b": [true, null], "c": {"d": "x"}}', 0.0, 0.0),  # to Python, true is 1
        ('{"a": 1, "b": [1, null], "c": {"d": "x"}}', 0.0, 0.0),
        ('{"a": "1", "b": [true, null], "c": {"d": "x"}}', 0.0, 0.0),
        ('{"a": 1, "a": 1, "b": [true, null], "c": {"d": "x"}}', 0.0, 0.0),
        ('{"a": 1, "b": [true, null], "c": {"d": "x"}, "e": 1}', 0.0, 0.0),
        ('{"a": NaN, "b": [true, null], "c": {"d": "x"}}', 0.0, 0.0),
        ('{"a": 1e400, "b": [true, null], "c": {"d": "x"}}', 0.0, 0.0),
        ("{'a': 1}", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("[" * 15_000, 0.0, 0.0),
        ("[" * 40 + "]" * 40, 0.0, 0.0),
        ("[" * 900 + "]" * 900, 0.0, 0.0),
        ('{"a": ' * 600 + "1" + "}" * 600, 0.0, 0.0),
        ('{"a": ' + "1" * 15_000, 0.0, 0.0),
        (" " * 30_000, 0.0, 0.0),
    ],
)
def test_json_is_compared_by_value_and_by_shape(response, same, shaped):
    assert (same_json(GOLD, response), follows_schema(GOLD, response)) == (same, shaped)


@pytest.mark.parametrize("reward", [same_json, follows_schema])
def test_gold_that_is_no_json_is_refused(reward):
    for gold in ("", "{'a': 1}", "NaN", '{"a": 1, "a": 2}'):
        with pytest.raises(ValueError, match=r"rows\.jsonl:2: reward .* must be JSON"):
            check_examples(reward, [Example("q", gold, source="rows.jsonl:2")], "training")


def test_only_a_box_counts_as_a_boxed_number():
    for gold, response in itertools.product(
        ["1/2", r"so \boxed{\frac12}"], [r"It is \boxed{0.5}.", r"\boxed{\frac{2}{4}}"]
    ):
        assert boxed_number(Example("q", gold), response) == 1.0
    for response in ("0.5", "#### 0.5", "<answer>0.5</answer>", r"\boxed{0.5", r"\boxed{0.5} \boxed{1}", r"\boxed{}"):
        assert boxed_number(Example("q", "1/2"), response) == 0.0
