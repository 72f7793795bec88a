"""Writes the pages that are made from their owners: recipes, commands, settings, the API, and copies of three files."""

import shutil
from pathlib import Path

from generators import api, commands, links, recipes, settings


def write(docs: Path) -> None:
    """Writes all pages into docs/recipes and docs/reference. A page that is the same as before is not touched."""
    wanted = {f"recipes/{name}.md": text for name, text in recipes.pages().items()}
    wanted |= {"reference/commands.md": commands.page(), "reference/settings.md": settings.page()}
    wanted |= {f"reference/{name}.rst": text for name, text in api.pages().items()}
    for file, copy in links.COPIES.items():
        wanted[copy.removeprefix("docs/")] = (links.ROOT / file).read_text(encoding="utf-8")
    _remove_others(docs, wanted)
    for name, text in wanted.items():
        path = docs / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _remove_others(docs: Path, wanted: dict[str, str]) -> None:
    """Removes pages of a build before, such as that of a config which is gone."""
    for folder in ("recipes", "reference"):
        for path in (docs / folder).glob("*"):
            if str(path.relative_to(docs)) not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
