"""The pages lead somewhere: every link and anchor in the repository, and the site that is built from them."""

import html
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "tpu_scripts/**/*.md", ".github/**/*.md") for path in ROOT.glob(pattern)
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
IN_REPOSITORY = re.compile(
    rf"https?://\S*{re.escape(REPOSITORY.partition('github.com/')[2])}/(?:(?:blob|tree|raw)/)?main/([^\s)\"'#>]+)"
)
CODE = re.compile(r"^( *`{3,}).*?^\1 *$|(`+)[^`].*?\2", re.DOTALL | re.MULTILINE)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """The Markdown of a page or of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a code host makes them: a heading that comes again has a number."""
    seen: dict[str, int] = {}
    found = set()
    for title in re.findall(
        r"^#{1,6} +(.+?) *$",
        re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.DOTALL | re.MULTILINE),
        re.MULTILINE,
    ):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(slug if slug not in seen else f"{slug}-{seen[slug]}")
        seen[slug] = seen.get(slug, 0) + 1
    return found


def targets(text: str) -> list[str]:
    """Where the links and pictures of a text lead to, in Markdown or HTML."""
    text = CODE.sub("", text)
    return re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href|srcset)=[\"']([^\"'\s]+)", text)


def dead(page: Path) -> list[str]:
    """The links of a page within the repository that lead nowhere."""
    missing = []
    for target in targets(text_of(page)):
        here = IN_REPOSITORY.match(target)
        if re.match("[a-z]+:", target) and here is None:
            continue
        file, _, anchor = target.partition("#")
        path = ROOT / here[1] if here else page.parent / file if file else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            missing.append(target)
    return missing


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_every_link_of_a_page_leads_to_something(page):
    assert dead(page) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n\n```text\n# four\n[a](b.md)\n```\n"
        "[ok](#one-two-three) [x](#four) [y](no.md) ![z](no.svg)\n"
    )
    assert dead(page) == ["#four", "no.md", "no.svg"]
    page.write_text(
        f"<img src='no.png'> [here]({REPOSITORY}/blob/main/README.md) [gone]({REPOSITORY}/blob/main/gone.md)\n"
    )
    assert dead(page) == [f"{REPOSITORY}/blob/main/gone.md", "no.png"]


def test_every_page_is_in_the_contents():
    listed = re.findall(r"^[\w/]+$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert sorted(name for name in listed if "/" not in name) == sorted(
        page.stem for page in DOCS.glob("*.md") if page.stem != "index"
    )


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_head_of_a_config_says_what_to_expect(config):
    head = " ".join(re.match(r"(?:#.*\n)+", config.read_text())[0].replace("#", " ").split())
    assert re.search(r"laptop|v5e|v5p|GPU", head), "no hardware"
    assert re.search(r"\d (s|seconds|minutes|hours)\b|\d:\d\d\b|neither measured nor estimated", head), "no time"
    assert re.search(r"Measured on|has not been measured|No (TPU|card)", head), (
        "neither figures nor that there are none"
    )


# The site


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site: the one that .ci/run has built before, or else a new one."""
    built = os.environ.get("GRPO_JAX_SITE")
    if built:
        return Path(built)
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip('the site needs pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "--doctree-dir", folder / "doctrees"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, DOCS, folder / "html"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="session")
def index(site):
    """What the search of the site looks words up in."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def found(index: dict, query: str) -> set[str]:
    """The pages that have every word of a query, as the search of the site finds them."""
    from sphinx.search.en import SearchEnglish

    language, pages = SearchEnglish({}), None
    for word in language.split(query.lower()):
        if word in language.stopwords:
            continue
        stem, having = language.stem(word), set()
        for table in (index["terms"], index["titleterms"]):
            numbers = table.get(stem, [])
            having |= {numbers} if isinstance(numbers, int) else set(numbers)
        pages = having if pages is None else pages & having
    return {index["docnames"][number] for number in pages or ()}


@pytest.mark.slow
@pytest.mark.parametrize("query", ["out of memory", "reward is always zero", "resume", "kaggle"])
def test_the_search_finds_a_page_with_such_a_heading(index, query):
    titled = {
        index["docnames"][page] for title, at in index["alltitles"].items() if query in title.lower() for page, _ in at
    }
    assert titled & found(index, query)


@pytest.mark.slow
def test_the_search_finds_what_stands_there_and_nothing_else(index):
    assert "reference/settings" in found(index, "max_skipped")
    assert "recipes/quickstart" in found(index, "quickstart laptop")
    assert found(index, "zxqv") == set()


class Seen(HTMLParser):
    """The tags of a page, and what it loads."""

    def __init__(self):
        super().__init__()
        self.loaded, self.viewport = [], False

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.viewport |= tag == "meta" and given.get("name") == "viewport"
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") not in (
            "canonical",
            "prev",
            "next",
            "index",
            "search",
            "author",
            "license",
        ):
            self.loaded.append(given["href"])


@pytest.mark.slow
def test_a_page_needs_no_network_and_fits_a_narrow_screen(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        seen = Seen()
        seen.feed(page.read_text(encoding="utf-8"))
        assert seen.viewport, page
        assert [address for address in seen.loaded if re.match("(https?:)?//", address)] == [], page
    styles = "".join(path.read_text(encoding="utf-8") for path in (site / "_static").rglob("*.css"))
    assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles)
    assert re.search(r"img\s*\{[^}]*max-width:\s*100%", styles)


def read_page(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_config_command_and_public_name_has_its_place(site):
    from grpo_jax import __all__ as names
    from grpo_jax.cli import COMMANDS
    from grpo_jax.objectives import PRESETS

    assert {path.stem for path in (site / "recipes").glob("*.html")} == {path.stem for path in CONFIGS} | {"index"}
    commands, api, settings = (read_page(site, f"reference/{name}") for name in ("commands", "api", "settings"))
    assert [name for name in COMMANDS if f'id="grpo-jax-{name}"' not in commands] == []
    modules = {"objectives", "rewards", "tasks", "config"}
    assert [name for name in names if name not in modules and f'id="grpo_jax.{name}"' not in api] == []
    presets = [preset.__name__.replace("_", "-") for preset in PRESETS]
    assert [name for name in presets if f'id="objective-{name}"' not in settings] == []


@pytest.mark.slow
def test_the_settings_of_a_section_are_those_of_its_owner_with_their_defaults(site):
    from grpo_jax import Settings

    section = re.search(r'<section id="train">.*?</section>', read_page(site, "reference/settings"), re.DOTALL)[0]
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", section, re.DOTALL)]
    shown = {
        cells[0]: cells[2] for cells in ([re.sub("<.*?>", "", cell).strip() for cell in row] for row in rows if row)
    }
    known = inspect.signature(Settings).parameters
    assert list(shown) == list(known)
    written = {name: yaml.safe_load(default) for name, default in shown.items() if name not in ("steps", "trackers")}
    assert written == {name: known[name].default for name in written}
    assert shown["steps"] == "has to be given"


@pytest.mark.slow
def test_the_reference_shows_no_markup_of_docstrings_and_no_place_in_memory(site):
    for path in [*(site / "reference").glob("api*.html"), site / "reference" / "settings.html"]:
        article = re.search(r"<article.*</article>", path.read_text(encoding="utf-8"), re.DOTALL)[0]
        text = html.unescape(re.sub("<[^>]*>", "", re.sub(r"<(script|style).*?</\1>", "", article, flags=re.DOTALL)))
        assert re.findall(r".{20}(?:`|\\_|\\\*| at 0x|<function|<factory>|~\w+\.\w).{20}", text) == [], path
