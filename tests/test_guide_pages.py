"""Pages for people: the messages that they quote are those of the code, their figures those of the configs."""

import ast
import re
from pathlib import Path

import pytest

from grpo_jax.config import read, render
from grpo_jax.config.building import built
from grpo_jax.judges import Judge

ROOT = Path(__file__).parent.parent
PROBLEMS, JUDGES, CHIP = (
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("problems.md", "judges.md", "small_chip.md")
)
HOLE = "\0"  # what a message puts in


class Texts(ast.NodeVisitor):
    """All texts of a module, in their order; parts that are written one after the other are one text."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.append(re.sub(r"%[sdg]", HOLE, node.value))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
        self.found.append("".join(parts))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """The texts of each module of the package."""
    modules = []
    for path in sorted((ROOT / "grpo_jax").rglob("*.py")):
        texts = Texts()
        texts.visit(ast.parse(path.read_text(encoding="utf-8")))
        modules.append("\n".join(texts.found))
    return modules


def quoted(page: str) -> list[str]:
    """The lines in boxes of text, and what a table of texts has in its first column."""
    boxes = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    table = page[page.index("| text | what to do |") :]
    return [line for box in boxes for line in box.splitlines()] + re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def test_every_message_that_the_page_of_problems_quotes_is_in_the_source(sources):
    quotes = quoted(PROBLEMS)
    assert len(quotes) > 40
    for quote in quotes:
        chunks = [chunk.strip() for chunk in quote.split("...") if chunk.strip()]
        assert sum(map(len, chunks)) > 15, quote
        wanted = re.compile(".*?".join(map(re.escape, chunks)), re.DOTALL)
        assert any(wanted.search(source) for source in sources), quote


def test_the_tables_of_one_small_chip_have_the_figures_of_the_configs():
    cells = re.findall(r"^\|[^|]*\| `([\w.-]+\.yaml)` \| ([\d.]+), ([\d.]+) \|([^|]*)\|$", CHIP, re.MULTILINE)
    assert len(cells) == 13 == len(set(cells))
    for name, sampling, learning, seconds in cells:
        head = (ROOT / "configs" / name).read_text(encoding="utf-8").partition("\nrun:")[0].replace("\n#", "")
        memory = "22.00" if name.endswith("gpu.yaml") else "15.75"
        assert f"sampling {sampling} GiB, learning {learning} GiB, of {memory} GiB" in head, name
        estimated = re.search(r"estimates (\d+) s for a step", head)
        assert seconds.strip() == (f"{estimated[1]} s" if estimated else ""), name


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the page about judges writes, in the current folder."""
    head = r"^```(?:toml|yaml)\n# ([\w.]+)(?:, the rest as in ([\w.]+))?\n"
    for name, base, text in re.findall(rf"{head}(.*?)^```", JUDGES, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(f"base: {base}\n{text}" if base else text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_configs_of_the_page_about_judges_are_read_and_their_rubrics_ask_what_has_no_rule(files, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    guide, judged, remote = (read(files / name) for name in ("guide.yaml", "judged.yaml", "remote.yaml"))
    assert guide.judge is None and [item.build().criteria for item in guide.rewards] == [("places", "length", "prose")]
    judge = built(remote.judge, Judge)
    assert (judge.key, judge.model) == ("secret-of-the-test", "gpt-5-mini") and "secret" not in render(remote)
    for config in (judged, remote):
        (rubric,) = (item.build(judge=judge) for item in config.rewards)
        assert [item.name for item in rubric.read.items if item.rule is None] == ["helpful"]


@pytest.mark.slow
def test_the_python_of_the_page_about_judges_says_how_often_a_judge_agrees(files, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", JUDGES, re.DOTALL)
    block = block.replace("HuggingFaceTB/SmolLM2-1.7B-Instruct", "tiny")
    exec(compile(block, "docs/judges.md", "exec"), names := {"__name__": "page"})
    values_PG = names["values_PGR"][:, :, 0]
    assert values_PG.shape == (2, 2) and ((values_PG > 0) & (values_PG < 1)).all()
    assert capsys.readouterr().out == f"agrees in {(values_PG[:, 0] > values_PG[:, 1]).mean()}\n"
