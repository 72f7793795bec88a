"""Texts of a run, which may hold anything: made safe to show, and short."""

from itertools import chain

CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "␡"}
CONTROLS |= dict.fromkeys(range(0x80, 0xA0), "�")
# Marks that turn the direction of all text that follows, and codes that are no characters.
CONTROLS |= dict.fromkeys(chain(range(0x202A, 0x202F), range(0x2066, 0x206A), (0xFFFE, 0xFFFF)), "�")


def clean(text: str) -> str:
    """The text with a visible sign for each control character, and one for halves of surrogate pairs."""
    return text.translate(CONTROLS).encode("utf-8", "replace").decode("utf-8")


def shortened(text: str, most: int) -> str:
    """The text, cleaned; of a long one the beginning and the end, and how much is left out."""
    if len(text) <= most:
        return clean(text)
    half = most // 2
    return f"{clean(text[:half])}\n[... {len(text) - 2 * half:,} characters left out ...]\n{clean(text[-half:])}"
