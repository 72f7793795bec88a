"""Links of pages, which are written for the repository, made to lead somewhere on the site as well.

A link to a page leads to that page. A link to another file leads to the page of the site that is made from it, such as
the recipe of a config, or else to the file on the code host. A link to nothing is left as it is: then the build fails
with the name of the page.
"""

import functools
import os.path
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIES = {  # files outside of docs/ that are pages of the site
    "CHANGELOG.md": "docs/reference/changelog.md",
    "CONTRIBUTING.md": "docs/reference/contributing.md",
    "SECURITY.md": "docs/reference/security.md",
}
IN_PLACE = COPIES | {  # what else has a page on the site that says the same
    "configs": "docs/recipes/index.md",
    "grpo_jax/__init__.py": "docs/reference/api.rst",
    "grpo_jax/cli.py": "docs/reference/commands.md",
    "grpo_jax/config/sections.py": "docs/reference/settings.md",
}
LINK = re.compile(  # code is matched first, and so left alone
    r"^(?P<fence> *`{3,}).*?^(?P=fence) *$|(?P<code>`+)[^`].*?(?P=code)|\]\((?P<target>[^)\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
MADE = ("recipes/", "reference/")  # folders of docs/ whose pages are written at each build
ELSEWHERE = re.compile(r"#|[a-z]+:")  # on the same page, or on another server


@functools.cache
def repository() -> str:
    """The address of the project on its code host."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def adapt(app, docname: str, source: list[str]) -> None:
    """Replaces the links of a page that Sphinx is about to read. Those of generated pages start from the root."""
    page = f"docs/{docname}.md"
    source[0] = adapted(source[0], page, "" if docname.startswith(MADE) else os.path.dirname(page))


def adapted(text: str, page: str, folder: str) -> str:
    """The text of a page whose links are relative to a folder of the repository."""

    def replace(match: re.Match) -> str:
        target = match["target"]
        return match[0] if target is None or ELSEWHERE.match(target) else f"]({_on_site(target, page, folder)})"

    return LINK.sub(replace, text)


def _on_site(target: str, page: str, folder: str) -> str:
    """Where a link of a page leads to on the site."""
    written, mark, anchor = target.partition("#")
    file = os.path.normpath(os.path.join(folder, written))
    path = ROOT / file
    file = IN_PLACE.get(file, file)
    if file.startswith("configs/") and file.endswith(".yaml"):
        file = f"docs/recipes/{path.stem}.md"
    if file.startswith("docs/") and file.endswith((".md", ".rst", ".svg", ".png")):
        return os.path.relpath(file, os.path.dirname(page)) + mark + anchor
    if not path.exists():
        return target
    return f"{repository()}/{'tree' if path.is_dir() else 'blob'}/main/{file}{mark}{anchor}"
