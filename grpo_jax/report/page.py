"""One page of HTML about one run or several: no script, no address, every text of a run escaped."""

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from grpo_jax import __version__
from grpo_jax.report.answers import Chapter, Question, chapters
from grpo_jax.report.comparing import compared, rows_of_sides, sides_of
from grpo_jax.report.curves import Curve, curves, others
from grpo_jax.report.diagnosis import diagnoses, earlier
from grpo_jax.report.drawing import COLOURS, draw
from grpo_jax.report.headline import headline
from grpo_jax.report.reading import Found, read_run
from grpo_jax.report.settings import written
from grpo_jax.report.text import clean
from grpo_jax.saved.directory import REPORT

SETTING = re.compile(r"\b(?:optimizer|objective|rollout|algorithm|train|task|model|mesh|rewards)\.\w+(?:=[\w.]+)?")

ABANDONED = 3600.0  # seconds, after which nobody writes a page any more


@dataclass(frozen=True)
class Picture:
    """A curve with its drawing."""

    curve: Curve
    svg: str  # safe: it holds no text of the run

    @property
    def legend(self) -> Sequence[tuple[int, str]]:
        """The number of each line's colour, and its label."""
        return [(index % COLOURS, line.label) for index, line in enumerate(self.curve.lines)]


def write_report(run: str | Path, out: Path | None = None) -> Path:
    """Writes `report.html` into a run directory, or the file `out`, and returns its path."""
    path = Path(run)
    file = path / REPORT if out is None else out
    _write(file, page_of(read_run(path)))
    return file


def write_comparison(runs: Sequence[str | Path], file: Path) -> Path:
    """Writes a page that compares several runs, and returns its path."""
    found = [read_run(Path(run)) for run in runs]
    sides = sides_of(found)
    _write(
        file,
        _render(
            "comparison.html",
            title=" and ".join(side.label for side in sides[:3]) + (" and others" if len(sides) > 3 else ""),
            sides=sides,
            rows=rows_of_sides(sides),
            pictures=_pictures(compared(sides)),
            problems=[f"{each.name}: {problem}" for each in found for problem in each.problems],
        ),
    )
    return file


def page_of(found: Found) -> str:
    """The page about one run."""
    now = diagnoses(found)
    shown, left_out = bounded(chapters(found))
    return _render(
        "run.html",
        title=found.name,
        headline=headline(found),
        diagnoses=now,
        earlier=earlier(found, now),
        pictures=_pictures(curves(found)),
        others=_pictures(others(found), first="other"),
        chapters=shown,
        settings=written(found),
        has_metrics=len(found.history) > 0,
        problems=[*found.problems, *left_out],
    )


def bounded(found: Sequence[Chapter], most: int = 6_000_000) -> tuple[list[Chapter], list[str]]:
    """The chapters that fit into so many characters, in their order, and sentences on what is left out for that.

    Colours go first, then answers; those of the first and of the last step stay longest.
    """
    middle = [index for index, chapter in enumerate(found) if chapter.is_of_step][1:-1]
    order = [*(index for index in range(len(found)) if index not in middle), *middle]
    plain = {
        index: replace(found[index], questions=[_plain(each) for each in found[index].questions]) for index in order
    }
    used, kept = sum(map(_size, plain.values())), dict(plain)
    for index in order:
        if used + (colours := _size(found[index]) - _size(plain[index])) <= most:
            kept[index], used = found[index], used + colours
    for index in reversed(order):
        if used > most:
            used -= _size(kept.pop(index))
    dropped = [f"{chapter.title!r} is left out" for index, chapter in enumerate(found) if index not in kept]
    bare = sum(chapter != found[index] for index, chapter in kept.items())
    dropped += [f"the tokens of {bare} chapter(s) of answers have no colours"] if bare else []
    return [kept[index] for index in sorted(kept)], [f"{each}: the page would be too large" for each in dropped]


def _plain(question: Question) -> Question:
    """The question with answers whose tokens are not coloured."""
    return replace(question, cards=[card.without_tokens() for card in question.cards])


def _size(chapter: Chapter) -> int:
    """About how many characters a chapter takes on the page."""
    cards = [card for question in chapter.questions for card in question.cards]
    prompts = sum(len(text) for question in chapter.questions for _, text in question.prompt)
    return prompts + sum(len(card.text) + 600 + sum(100 + len(token.text) for token in card.tokens) for card in cards)


def _pictures(drawn: Sequence[Curve], first: str = "curve") -> list[Picture]:
    return [Picture(curve, draw(curve, f"{first}-{index}")) for index, curve in enumerate(drawn)]


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["settings_marked"] = _marked
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return environment.get_template(template).render(made=now, version=__version__, **values)


def _shown(value: Any) -> Any:
    """What stands on the page for a value: of a text, no character that a browser would not show."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _marked(text: str) -> Markup:
    """The text, escaped, with the names of settings as code, and with arrows that no end of a line divides."""
    text = text.replace("->", "→")
    pieces, end = [], 0
    for match in SETTING.finditer(text):
        pieces += [escape(clean(text[end : match.start()])), Markup("<code>{}</code>").format(match[0])]
        end = match.end()
    return Markup("").join([*pieces, escape(clean(text[end:]))])


def _write(file: Path, text: str) -> None:
    """Replaces a file at once, so that a browser never reads half of one."""
    for old in file.parent.glob(f"{file.name}.*.new"):  # of a process that was killed
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > ABANDONED:
                old.unlink()
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    except BaseException:  # half a page on a full disk would keep it full
        new.unlink(missing_ok=True)
        raise
