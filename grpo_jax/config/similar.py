"""The ends of messages about unknown names: the most similar known name, or all of them."""

import difflib
from collections.abc import Iterable

LONGEST = 80  # characters that are compared; no name of ours is longer


def plain(name: str) -> str:
    """A name without what is often mistaken in one: its case, and `-` for `_`."""
    return name.strip().casefold().replace("-", "_")


def closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar, whatever its case and whether it is written with `-` or `_`."""
    known = {plain(each): each for each in sorted(names)}
    close = difflib.get_close_matches(plain(name[:LONGEST]), known, n=1, cutoff=cutoff)
    return known[close[0]] if close else None


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known name, or else all known names."""
    names = sorted(names)
    close = closest(name, names)
    if close is not None:
        return f", did you mean {close}?"
    return f"; there {'are' if len(names) > 1 else 'is'} {', '.join(names)}" if names else ""
