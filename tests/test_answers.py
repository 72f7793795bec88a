"""Numbers as people and models write them: each is read as what it is, or not at all."""

from fractions import Fraction

import pytest

from grpo_jax.rewards import Example, check_examples, exact, last_number
from grpo_jax.rewards.answers import MAX_SCANNED, final_number
from grpo_jax.rewards.numbers import read_number, read_quantity


def scored(gold, response):
    return last_number(Example("q", gold), response)


NUMBERS = {
    # thousands and decimals
    "1,234,567.5": "2469135/2",
    "12{,}000": "12000",
    r"10,\!000": "10000",
    r"12\,000": "12000",
    "12\u202f000": "12000",
    "12\u00a0000,5": "24001/2",
    "12 000": "12000",
    "1'000": "1000",
    "1.234,56": "30864/25",
    ".5": "1/2",
    "007": "7",
    # signs
    "\u22125": "-5",
    "\u20135": "-5",
    "-$5": "-5",
    "$-5": "-5",
    "-0": "0",
    # fractions and mixed numbers
    "2/4": "1/2",
    "3 / 4": "3/4",
    r"\frac12": "1/2",
    r"\frac1{23}": "1/23",
    r"\frac{-1}{2}": "-1/2",
    r"-\dfrac{1}{2}": "-1/2",
    r"2\frac{1}{2}": "5/2",
    r"-2\tfrac12": "-5/2",
    "2 1/2": "5/2",
    "2\u00bd": "5/2",
    "2 \u00bd": "5/2",
    "\u2212\u00bd": "-1/2",
    "\u00bd": "1/2",
    # powers of ten
    "1e5": "100000",
    "1.5E+3": "1500",
    r"3 \times 10^{-2}": "3/100",
    "3\u00d710\u2075": "300000",
    "2x10^5": "200000",
    "2 X 10^5": "200000",
    "10^{6}": "1000000",
    "10\u207b\u00b3": "1/1000",
    # what carries no value
    "50%": "50",
    r"12\%": "12",
    r"\$1,500.00": "1500",
    "12 \u20ac": "12",
    "US$12": "12",
    "$12.$": "12",
    r"\(12\)": "12",
    r"\mathbf{12}": "12",
    "**12**": "12",
}

QUANTITIES = {
    r"12 \text{ cm}^2": "12",
    "12 cm\u00b2": "12",
    r"9 \mathrm{~cm}^{2}": "9",
    r"9~\text{m}": "9",
    "5 m/s^2": "5",
    "5 N\u00b7m": "5",
    r"18\ \text{ square units}": "18",
    r"90^\circ": "90",
    "20\u00b0C": "20",
    "12\u4e2a": "12",
    "3 cups of flour": "3",
    "x = 12": "12",
    r"\text{Area} = 12": "12",
    "The final answer is 12.": "12",
    "3 million dollars": "3000000",
    r"1.5 \text{ million}": "1500000",
    "2 hundred thousand": "200000",
}

NO_NUMBERS = [
    # other mathematics
    r"\sqrt{49}",
    r"4\sqrt{2}",
    r"2\pi",
    "2\u03c0",
    "3x",
    "5 m",
    "12 \U0001d465",
    "2^10",
    "5\u00b2",
    "5 squared",
    "12!",
    "(12)",
    "|12|",
    r"\{12\}",
    "1010_2",
    "2 + 3",
    "5 - 3",
    r"2 \cdot 3",
    "\u00b15",
    r"\pm 5",
    r"\approx 12",
    "~12",
    "0.333...",
    r"0.\overline{3}",
    r"\frac{\pi}{2}",
    r"\sqrt{x} = 12",
    "3x = 12",
    "sin x = 0.5",
    # several numbers
    "1, 2, 3",
    "1,2",
    "12 or 13",
    r"12 \text{ or } 13",
    "1:30",
    "1/2/2024",
    "1.2.3",
    "1 2",
    "12 and a half",
    "3 quarters",
    "3 dozen",
    "12 of them",
    # no value, or more than one
    "3,5",
    "0,125",
    "1.234,567",
    "1,00,000",
    "1,00",
    "7..",
    "--5",
    "1/0",
    r"\frac{1}{0}",
    r"\frac123",
    r"2\frac{3}{2}",
    "1e",
    "1e5.5",
    "1e4000",
    "1_000",
    "inf",
    "nan",
    "",
    "1" * 101,
    # other digits, and letters that are numbers
    "\u0663",
    "12\u0663",
    "\uff11\uff12",
    "12\u4e07",
    "\u216b",
]


@pytest.mark.parametrize(("text", "value"), NUMBERS.items(), ids=ascii)
def test_a_number_is_read_exactly(text, value):
    assert read_number(text) == Fraction(value)
    assert read_quantity(text) == Fraction(value)
    assert exact(Example("q", value), text) == 1.0


@pytest.mark.parametrize(("text", "value"), QUANTITIES.items(), ids=ascii)
def test_a_quantity_is_a_number_with_its_unit(text, value):
    assert read_quantity(text) == Fraction(value)
    assert read_number(text) is None


@pytest.mark.parametrize("text", NO_NUMBERS, ids=ascii)
def test_what_is_no_single_number_is_not_read_as_a_part_of_it(text):
    assert read_quantity(text) is None
    assert read_number(text) is None
    for marked in (rf"\boxed{{{text}}}", f"#### {text}", f"<answer>{text}</answer>"):
        assert final_number(marked) is None


@pytest.mark.parametrize("text", [*NUMBERS, *QUANTITIES], ids=ascii)
def test_every_mark_of_an_answer_is_read_alike(text):
    value = read_quantity(text)
    for marked in (rf"so 3 \boxed{{{text}}} of 7", f"3\n#### {text}\n7", f"3 <answer>\n{text}\n</answer> 7"):
        assert final_number(marked) == value


def test_powers_too_large_for_a_float_are_exact():
    assert read_number("1e400") == 10**400
    assert scored("1e400", "1e401") == 0.0
    assert scored("1e-400", "0") == 0.0


@pytest.mark.parametrize(
    ("gold", "response", "reward"),
    [
        ("5/2", r"Thus \boxed{2\frac{1}{2}}.", 1.0),
        ("21/2", r"Thus \boxed{2\frac{1}{2}}.", 0.0),
        ("1/2", r"\boxed{\frac12}", 1.0),
        ("12", r"\boxed{\frac12}", 0.0),
        ("12", r"The area is \boxed{12 \text{ cm}^2}.", 1.0),
        ("2", r"The area is \boxed{12 \text{ cm}^2}.", 0.0),
        ("49", r"\boxed{\sqrt{49}}", 0.0),
        ("2", r"\boxed{4\sqrt{2}}", 0.0),
        ("3", r"\boxed{1, 2, 3}", 0.0),
        ("5", r"\boxed {5}, as of 2024", 1.0),
        ("5", r"\boxed 5 as of 2024", 1.0),
        ("5", r"\fboxed{5}", 1.0),
        ("12", r"\boxed{\text{The answer is }\boxed{12}}", 1.0),
        ("12", r"\boxed{12}, written in \boxed{} as asked, or \boxed if you like", 1.0),
        ("460", r"\boxed{\text{The answer is 460}}", 1.0),
        ("28", r"\boxed{28 \text{ percent}}", 1.0),
        ("5", r"$x = \boxed{3}$ or $\boxed{5}$", 0.0),
        ("5", r"\boxed{3}, \boxed{5}", 0.0),
        ("5", r"\boxed{3}. No, it is \boxed{5}", 1.0),
        ("5", r"\boxed{5} \boxed{5}", 1.0),
        ("10/3", r"\boxed{4 10/3}", 0.0),
        ("1", r"\boxed{\{1\}}", 0.0),
        ("12", r"\boxed{12\}", 0.0),  # the brace is escaped, so the box is never closed
        ("12", "<answer>12</answer>, and not 13", 1.0),
        ("12", "<answer>12", 0.0),  # cut off, perhaps in the middle of 123
        ("12", r"<answer>\boxed{12}</answer>", 1.0),
        ("12", "<answer>#### 12</answer>", 1.0),
        ("12", "12\n#### 12 or 13", 0.0),
        ("12", "#### 3 #### 12", 1.0),
        ("12", "#### **12**", 1.0),
        ("12", "####\n12", 1.0),
        ("12", "#### Step 1\n3\n#### 12\n#### Check\n3 * 4", 1.0),
        ("2", "1\n#### pi/2", 0.0),
        ("13", "##### 12\n13", 1.0),
    ],
)
def test_what_a_response_marks_is_read_whole_or_not_at_all(gold, response, reward):
    assert scored(gold, response) == reward


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("so 12 cm^2.", "12"),
        ("so 12 m\u00b2.", "12"),
        (r"is $12 \text{ cm}^2$.", "12"),
        ("it takes 2 1/2 cups", "5/2"),
        (r"that is 2\frac{1}{2}.", "5/2"),
        (r"and so \mathbf{x = 12}.", "12"),
        (r"about \approx 12.", "12"),
        ("12 million people", "12000000"),
        (r"a mass of 3 \times 10^5 kg", "300000"),
        ("1e400", str(10**400)),
        ("12\u202f000 units", "12000"),
        ("1.234,56 \u20ac", "30864/25"),
        ("\u7b54\u6848\u662f12\u3002", "12"),
        ("5 g of H2O", "5"),
        ("f(12)", "12"),
        ("...7", "7"),
        ("on the 7th", "7"),
        (r"= 4\sqrt{2}.", None),
        (r"it is \sqrt 2", None),
        (r"is \frac12 x", "1/2"),
        (r"so 2\pi", None),
        ("it is 3 x^2", None),
        ("2^10", None),
        ("a total of 12 000", None),  # one number, or two
        ("3,5", None),
        ("at 12:30", None),
        ("12/4/2", None),
        ("so 4 10/3", None),
        ("**Answer:** 4.", "4"),
        ("Final Answer: **73**", "73"),
        ("472/10,000", "59/1250"),
        ("1e4000", None),
        ("that is \u00bd.", "1/2"),
        ("add 2 \u00bd cups", "5/2"),
        ("so x = \u2212\u00bd", "-1/2"),
        ("so x = - 5", "-5"),
        ("- 5", "5"),  # an item of a list
        ("a \u2212 5", "5"),
        ("\u00bd\u00bd", None),
        (r"hence \frac 1 2", "1/2"),
        (r"hence \frac {1} {2}.", "1/2"),
        ("an area of 5 m2", "5"),
        ("10**3", None),
        ("4, that is \u0664", None),
        ("12 kg of CO2", "12"),
        ("CO2", None),
        ("5 of PM2.5", "5"),
        ("so 7 for x_1", "7"),
        ("it costs USD42", "42"),
        ("it costs US$42", "42"),
        ("Rs50", "50"),
        ("-(-3)", None),
        ("that is -(3)", None),
        ("so 2(3)", None),
        (r"so 4 \times (-3)", None),
        (r"is -\left(3\right)", None),
        ("the answer is (3).", "3"),
        ("(a) 3 (b) 4", "4"),
        ("12\u0664", None),
    ],
)
def test_the_last_number_of_a_text_is_read_with_all_that_belongs_to_it(response, value):
    assert final_number(response) == (None if value is None else Fraction(value))


# Twenty answers that a reader which skips, rounds or evaluates would take for the gold.
HOSTILE = [
    ("1/3", "0.3333333333333333"),
    ("0.1", "0.1000000000000000055511151231257827"),
    ("9007199254740993", "9007199254740992"),  # equal as floats
    ("1", "0.99999999999999999999"),
    ("1e400", "inf"),
    ("0", "1e-400"),
    ("0", r"\boxed{0.5, 0}"),
    ("2", r"\boxed{\log_2 4}"),
    ("4", r"\boxed{2^2}"),
    ("120", r"\boxed{5!}"),
    ("10", r"\boxed{\binom{5}{2}}"),
    ("3", r"\boxed{(1, 3)}"),
    ("3", r"\boxed{[0, 3)}"),
    ("3", r"\boxed{x \ge 3}"),
    ("2", r"\boxed{x = 1 \text{ or } x = 2}"),
    ("12", r"\boxed{1}\boxed{2}"),
    ("12", r"\boxed{\phantom{1}12}"),
    ("12", "1\u200b2"),
    ("12", "\\boxed{12 % 13\n}"),
    ("12", "#### 10 #### 11 #### 12 #### 13"),
    ("7", "1 2 3 4 5 6 7 8 9"),
    ("7", "".join(f"<answer>{n}</answer>" for n in range(10))),
    ("7", "7" * 300),
    ("7", "\u0667"),
]


@pytest.mark.parametrize(("gold", "response"), HOSTILE, ids=ascii)
def test_a_hostile_answer_earns_nothing(gold, response):
    assert scored(gold, response) == 0.0
    assert exact(Example("q", gold), response) == 0.0


@pytest.mark.parametrize(
    "piece",
    [
        *r"\text{|\boxed{\|12 |1 1/2 |10^|x10^|**|a1 |x^2 |1:|e-1|{1}|$|\|<answer>".split("|"),
        *("#### a\n", "\n1", "1\u202f", "\u00bd", "\u00b2", "\x01", "\u0663"),
    ],
)
def test_a_million_characters_of_anything_are_no_answer(piece):
    assert scored("7", piece * (1_000_000 // len(piece))) == 0.0
    assert read_quantity("7 " + piece * 60) is None or not piece.strip("$\\*\x01")


def test_only_the_end_of_a_response_is_searched_for_a_mark():
    assert scored("7", r"\boxed{7}" + " " * MAX_SCANNED) == 0.0
    assert scored("7", r"\boxed{7}" + " " * 100) == 1.0


@pytest.mark.faults
@pytest.mark.parametrize("gold", ["NaN", "inf", r"\sqrt{2}", "1, 2", "3,5", "2\u03c0", "1" * 101, "\u0663"])
def test_gold_that_is_no_number_is_refused_with_its_place(gold):
    fine, useless = Example("q", "12 cm"), Example("q", gold, source="rows.jsonl:3")
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: reward last_number cannot score any response to it"):
        check_examples(last_number, [fine, useless], "training")
