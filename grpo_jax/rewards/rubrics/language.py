"""In which language a text is written, as far as scripts and the most common words tell it."""

import re
import unicodedata
from collections import Counter

# The commonest words of languages in Latin letters, as `plain` writes them. A word may be of several.
COMMON = {
    "en": "the and of to in is that it for was on are with as at be this have from or by not but they you which",
    "de": "der die das und ist nicht ein eine zu den mit von auf im sich auch dem des es ich sie wir aber bei wird",
    "fr": "le la les et est une des du que qui dans pour pas sur avec ce il elle au sont mais nous vous ou plus cette",
    "es": "el la los las y es una que en por con para del se no al lo su mas como pero hay muy este esta son donde",
    "it": "il lo la gli e che di un una per non con sono del della nel anche ma piu come questo questa dei alla molto",
    "pt": "o a os as e que de do da em um uma para com nao por mais como mas dos das no na se muito este esta sao",
    "nl": "de het een en van is dat niet op te zijn voor met aan ook door maar bij om naar wordt er dit deze veel",
}
WORDS = {language: frozenset(words.split()) for language, words in COMMON.items()}
SCRIPTS = {
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "zh": ("CJK",),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
LANGUAGES = (*WORDS, *SCRIPTS)


def is_written_in(text: str, language: str) -> float:
    """How much of a text is written in a language: the share of its letters, and nothing if another language that
    shares them has more of its common words there. `text` is as `plain` writes it.
    """
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    total = sum(scripts.values())
    if total == 0:
        return 0.0
    own = SCRIPTS.get(language, ("LATIN",))
    if language == "ja" and not scripts["HIRAGANA"] + scripts["KATAKANA"]:
        return 0.0
    if language == "zh" and scripts["HIRAGANA"] + scripts["KATAKANA"]:
        return 0.0
    if language in WORDS and language not in _likeliest(text):
        return 0.0
    if language in ("ru", "uk") and bool(re.search("[іїєґ]", text)) != (language == "uk"):
        return 0.0
    return sum(scripts[script] for script in own) / total


def _likeliest(text: str) -> list[str]:
    """The languages of which the text has the most common words."""
    words = re.findall(r"[^\W\d_]+", text)
    counts = {language: sum(word in common for word in words) for language, common in WORDS.items()}
    return [language for language, count in counts.items() if count == max(counts.values())]
