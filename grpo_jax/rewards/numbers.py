r"""Reads a number as people and models write it, exactly: every value is a fraction of whole numbers.

A text is read whole or not at all, because a reader that skips what it does not know makes another number of it. Known
are whole numbers and decimals, thousands (1,000, 1 000, 1'000, 12{,}000), fractions (3/4, \frac{3}{4}, \frac34), mixed
numbers (2 1/2, 2\frac12), powers of ten (1e5, 3 \times 10^{-2}, 10^6), signs of currency and percent. Both signs carry
no value: 50% is 50, not one half. Not numbers are roots, other powers, products, lists, ranges, other digits than 0 to
9, and what has two meanings: 3,5 is a decimal in one country and a list in another.
"""

import re
import unicodedata
from fractions import Fraction

MAX_NUMBER = 100  # characters; a longer run of digits is not an answer, and is slow to compare
MAX_QUANTITY = 200  # characters of a number with its unit

_MINUS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
_SLASH = dict.fromkeys(map(ord, "\u2044\u2215"), "/")
_NARROW = dict.fromkeys(map(ord, "\u00a0\u2007\u2008\u2009\u200a\u205f"), "\u202f")
_CHARACTERS = _MINUS | _SLASH | _NARROW
_FRACTIONS = {sign: unicodedata.normalize("NFKC", sign).replace("\u2044", "/") for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_VULGAR = re.compile(rf"(^|[-+\s$(\[{{*=])?([{''.join(_FRACTIONS)}])")  # after group 1 it needs no space before it
_LATEX = (
    (",\\!", ","),
    ("{,}", ","),
    ("\\!", ""),
    ("\\,", "\u202f"),
    ("\\;", " "),
    ("\\:", " "),
    ("\\ ", " "),
    ("\\$", "$"),
    ("\\%", "%"),
    ("\\displaystyle", ""),
)
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = str.maketrans(_SUPERSCRIPTS, "0123456789+-")

# Thousands start with 1 to 9, or else 0,125 would be 125. [0-9], because \d also matches the digits of other scripts.
_GROUPED = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?"
_SPACED = r"[1-9][0-9]{0,2}(?:(?:[ \u202f][0-9]{3})+|(?:['\u2019][0-9]{3})+)(?:\.[0-9]+)?"
_EUROPEAN = r"[1-9][0-9]{0,2}(?:[. \u202f][0-9]{3})+,(?![0-9]{3}(?![0-9]))[0-9]+"
_DECIMAL = rf"(?:{_EUROPEAN}|(?:{_GROUPED}|{_SPACED})(?![0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_FRAC = (
    r"\\[dtc]?frac(?:\s*\{\s*(?P<over>[-+]?DECIMAL)\s*\}|\s*(?P<over1>[0-9]))"
    r"(?:\s*\{\s*(?P<under>[-+]?DECIMAL)\s*\}|\s*(?P<under1>[0-9])(?![0-9]))"
).replace("DECIMAL", _DECIMAL)
_EXPONENT = r"\^\s*(?:\{\s*(?P<NAMEbraced>[-+]?[0-9]{1,3})\s*\}|(?P<NAMEbare>[-+]?[0-9]{1,3})(?![0-9]))"
_TIMES = r"\s*(?:\\times|\\cdot|[\u00d7\u00b7\u22c5*xX])\s*"
_MAGNITUDE = (
    rf"(?:(?:(?P<whole>[0-9]+)\s*)?{_FRAC}"
    rf"|(?:(?P<plus>[0-9]+)\s+(?=[1-9][0-9]?\s?/))?(?P<above>{_DECIMAL})\s?/\s?(?P<below>{_DECIMAL})"
    rf"|10{_EXPONENT.replace('NAME', 'alone_')}"
    rf"|(?P<decimal>{_DECIMAL})"
    rf"(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9])|{_TIMES}10{_EXPONENT.replace('NAME', 'times_')})?)"
)
_CURRENCY = r"(?:US)?[$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd]"
NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:{_CURRENCY}\s*)?(?P<inner>[-+]?)\s*{_MAGNITUDE}(?:\s*[%\u20ac\u00a3\u00a5\u20b9])?"
)

_TEXT = r"\\(?:text(?:rm|bf|it|sf|up|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*"
_WRAPPED = re.compile(
    rf"{_TEXT}\{{([^{{}}]*)\}}|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*|`(.*)`|\{{([^{{}}]*)\}}", re.DOTALL
)
_SET = re.compile(rf"{_TEXT}\{{([^{{}}]*)\}}")
_NAME = rf"(?:{_TEXT}\{{[A-Za-z ]*\}}|[A-Za-z](?![A-Za-z])|[A-Za-z]{{2,}}(?: [A-Za-z]{{2,}}){{0,4}})"
_LEFT = re.compile(
    r"(?:(?:the )?(?:final )?answer(?: is)?[ :=]"
    rf"|(?!(?:sin|cos|tan|log|ln|exp|sqrt|lim|min|max)\b){_NAME}(?:_\{{?[A-Za-z0-9]\}}?)?\s*=)\s*",
    re.IGNORECASE,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"[\s\x01]+({'|'.join(_SCALES)})\b\x02?", re.IGNORECASE)
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\u00b0|\\degree)\s*[CF]?")
_LETTER = r"[^\W\d_]"
_POWER = r"(?:\s*\^\s*(?:\{\s*-?[1-9]\s*\}|-?[1-9]))?"
_ATOM = rf"(?:\x01[^\x01\x02]*\x02|{_LETTER}+\.?|\u00a2){_POWER}"
_UNIT = re.compile(rf"\s*{_ATOM}(?:\s*(?:/|-|\\cdot|\u00b7|\s)\s*{_ATOM})*\.?\s*")
_WORD = re.compile(rf"\x01[^\x01\x02]*\x02|{_LETTER}+(?:[/\u00b7]{_LETTER}+)*")
NOT_UNITS = frozenset(  # words after a number that change it, or add another one
    "and or to times plus minus over by than squared cubed point half halves third thirds quarter quarters fourth"
    " fourths fifth fifths sixth sixths eighth eighths tenth tenths hundredth hundredths thousandth thousandths dozen"
    " dozens score pi sqrt root mod choose factorial if not nor infinity inf nan hundreds thousands millions billions"
    " trillions bn mn".split()
)


def read_number(text: str) -> Fraction | None:
    """The number that a text consists of, or None if it is anything else. A final full stop is ignored."""
    if len(text) > MAX_QUANTITY:
        return None
    match = NUMBER.fullmatch(_unwrapped(plain(text)))
    return value_of(match) if match else None


def read_quantity(text: str) -> Fraction | None:
    r"""The number of a text that is a number and perhaps its unit, as in `12 \text{ cm}^2`, `x = 12` or `3 million`.

    None if the text is anything else, or has two numbers.
    """
    if len(text) > MAX_QUANTITY:
        return None
    text = _unwrapped(plain(text))
    left = _LEFT.match(text)
    text = _unwrapped(text[left.end() :]) if left else text
    match = NUMBER.match(text)
    if match is None:
        return None
    scale, rest = _scaled(_SET.sub("\x01\\1\x02", text[match.end() :]))
    number = value_of(match)
    return number * scale if number is not None and _is_unit(rest) else None


def plain(text: str) -> str:
    """The text with the minus signs, spaces, fractions and powers of typography and LaTeX in plain characters."""
    text = _VULGAR.sub(_fraction_of_sign, text.translate(_CHARACTERS))
    if "\\" in text or "{,}" in text:
        for fancy, simple in _LATEX:
            text = text.replace(fancy, simple)
    return _RAISED.sub(lambda found: f"^{{{found[0].translate(_LOWERED)}}}", text)


def _fraction_of_sign(found: re.Match[str]) -> str:
    """A sign such as ½ as 1/2, apart from a digit before it."""
    return (" " if found[1] is None else found[1]) + _FRACTIONS[found[2]]


def value_of(match: re.Match[str]) -> Fraction | None:
    """The number that `NUMBER` matched; None for two signs, no denominator, a mixed number that is none, or a size that
    no answer has.
    """
    found = match.groupdict()
    if (found["sign"] and found["inner"]) or len(match[0]) > MAX_NUMBER:
        return None
    size = _magnitude({name: text for name, text in found.items() if text is not None})
    return -size if size is not None and "-" in (found["sign"], found["inner"]) else size


def _magnitude(found: dict[str, str]) -> Fraction | None:
    if "decimal" in found:
        exponents = [found[name] for name in ("exponent", "times_braced", "times_bare") if name in found]
        return _decimal(found["decimal"]) * Fraction(10) ** int(*exponents)
    if "above" in found:
        return _fraction(found.get("plus"), found["above"], found["below"])
    if "over" in found or "over1" in found:
        over, under = (found[name] if name in found else found[f"{name}1"] for name in ("over", "under"))
        return _fraction(found.get("whole"), over, under)
    return Fraction(10) ** int(found["alone_braced"] if "alone_braced" in found else found["alone_bare"])


def _fraction(whole: str | None, over: str, under: str) -> Fraction | None:
    above, below = _decimal(over), _decimal(under)
    if below == 0:
        return None
    if whole is None:
        return above / below
    proper = 0 <= above < below and over.isdecimal() and under.isdecimal()
    return int(whole) + above / below if proper else None


def _decimal(text: str) -> Fraction:
    if re.fullmatch(_EUROPEAN, text):
        text = text.replace(".", "").replace(",", ".")
    return Fraction(re.sub(r"[, \u202f'\u2019]", "", text))


def _unwrapped(text: str) -> str:
    """The text without a final full stop, and without what only sets it: dollars, braces, bold, a font."""
    for _ in range(4):
        text = text.strip().strip("$").strip().removesuffix(".").strip().strip("$").strip()
        found = _WRAPPED.fullmatch(text)
        if found is None:
            return text
        text = next(group for group in found.groups() if group is not None)
    return text


def _scaled(rest: str) -> tuple[int, str]:
    """The factor of `million` and the like, and what follows it. \x01 and \x02 stand around text within LaTeX."""
    scale, rest = 1, rest.replace("\x01", " \x01").replace("~", " ").rstrip()
    while found := _SCALE.match(rest):
        scale, rest = scale * 10 ** _SCALES[found[1].lower()], rest[found.end() :]
    return scale, f"\x01{rest}" if "\x02" in rest.partition("\x01")[0] else rest


def _is_unit(rest: str) -> bool:
    """Whether what follows a number is nothing, or a unit, which changes nothing about it."""
    rest = " ".join(rest.replace("\x01\x02", "").split())
    if not rest or _DEGREES.fullmatch(rest):
        return True
    words = _WORD.findall(rest)
    return bool(_UNIT.fullmatch(rest)) and words[:1] != ["of"] and all(map(_names_unit, words))


def _names_unit(word: str) -> bool:
    """Whether a word may be part of a unit. A single letter is a variable, unless it is set as text or follows /."""
    inner = word.strip("\x01\x02").lower()
    letters = "".join(re.findall(_LETTER, inner))
    if not letters or set(inner) - set(letters) - set(" .-/\u00b7\u00b0()^23"):
        return False
    if any(unicodedata.numeric(letter, None) is not None or _is_symbol(letter) for letter in letters):
        return False
    return (len(word) > 1 or not word.isascii()) and NOT_UNITS.isdisjoint(re.findall(rf"{_LETTER}+", inner))


def _is_symbol(letter: str) -> bool:
    """Whether a letter is one of mathematics: Greek, or of the mathematical alphabets."""
    return "\u0370" <= letter <= "\u03ff" or "\U0001d400" <= letter <= "\U0001d7ff"
