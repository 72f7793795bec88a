"""One page of HTML about one run or several: no script, no address, every text of a run escaped."""

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from grpo_jax import __version__
from grpo_jax.report.answers import Chapter, chapters
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
    return _render(
        "run.html",
        title=found.name,
        headline=headline(found),
        diagnoses=now,
        earlier=earlier(found, now),
        pictures=_pictures(curves(found)),
        others=_pictures(others(found), first="other"),
        chapters=_bounded(chapters(found)),
        settings=written(found),
        has_metrics=len(found.history) > 0,
        problems=found.problems,
    )


def _bounded(found: Sequence[Chapter], most: int = 6_000_000) -> list[Chapter]:
    """The chapters that fit into so many characters, in their order."""
    kept, used = [], 0
    for chapter in found:
        cards = [card for question in chapter.questions for card in question.cards]
        used += sum(len(card.text) + 600 + 100 * len(card.tokens) for card in cards)
        used += sum(len(text) for question in chapter.questions for _, text in question.prompt)
        if used <= most:
            kept.append(chapter)
    return kept


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
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, suffix=".new", delete=False) as new:
        new.write(text)
    path = Path(new.name)
    path.chmod(0o644)
    path.replace(file)
