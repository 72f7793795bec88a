"""The page about metrics explains every number that a run may write, and none that no run writes.

Names come from two sides: from the source, where functions that give metrics have them as keys, and from the trainings
of other tests, which ask for what is `unexplained` in theirs.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^- ((?:`[^`]+`(?:, )?)+) \(([^)]+)\): ", re.MULTILINE)
GIVES = re.compile(r"Metrics|Evaluated|dict\[str, ((Float\[)?Array|np\.ndarray|float)")  # what a function returns
ELSEWHERE = ("commands", "report", "health", "config", "models")  # whose numbers are not those of a step
NOT_METRICS = {"advantages", "others"}  # keys of what counts numbers that are not finite, and of a gradient by layer
OTHERWISE = {"step", "time/sampling", "time/scoring", "time/learning"}  # the number of the line; phases of grpo.py


def pattern(name: str) -> re.Pattern[str]:
    """What a name of the page or of the source stands for: NAME, K and * are any text."""
    return re.compile(re.sub(r"[A-Z]+|\\\*", ".+", re.escape(name)))


def example(name: str) -> str:
    """A name that could be in a run."""
    return re.sub(r"[A-Z]+|\*", "x", name)


def names_on_the_page() -> list[str]:
    return [name for entry, _ in ENTRY.findall(PAGE) for name in re.findall(r"`([^`]+)`", entry)]


def unexplained(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The names of metrics that the page lacks."""
    known = [pattern(name) for name in names_on_the_page()]
    names = {name for row in rows for name in row}
    assert names
    return [name for name in sorted(names) if not any(each.fullmatch(name) for each in known)]


def constants_in(body: Iterable[ast.stmt]) -> dict[str, str]:
    """The texts that are given a name there."""
    return {
        target.id: node.value.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def key_text(key: ast.AST | None, constants: Mapping[str, str]) -> str:
    """A key as text, with * for what is not known here; empty if it is no text."""
    if isinstance(key, ast.JoinedStr):
        return "".join(key_text(part, constants) or "*" for part in key.values)
    if isinstance(key, ast.FormattedValue):
        return key_text(key.value, constants)
    if isinstance(key, ast.Name):
        return constants.get(key.id, "")
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else ""


def keys_in(function: ast.FunctionDef) -> list[ast.expr | None]:
    """The keys of all dicts that a function writes down."""
    keys: list[ast.expr | None] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            keys += node.keys
        elif isinstance(node, ast.DictComp):
            keys.append(node.key)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys.append(node.slice)
    return keys


def names_in_the_source() -> set[str]:
    """What functions that return metrics have as keys, without those of which only the beginning is known."""
    found = set()
    for path in sorted((ROOT / "grpo_jax").rglob("*.py")):
        part = path.relative_to(ROOT / "grpo_jax").parts[0]
        if part in ELSEWHERE:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if (
                isinstance(function, ast.FunctionDef)
                and function.returns
                and GIVES.search(ast.unparse(function.returns))
            ):
                constants = constants_in(tree.body) | constants_in(function.body)
                names = {key_text(key, constants) for key in keys_in(function)}
                names = {name for name in names if re.fullmatch(r"[a-z_@/*0-9]+", name)}
                found |= {f"eval/{name.removeprefix('eval/')}" if part == "evaluation" else name for name in names}
    return {name for name in found if not re.fullmatch(r"(eval/|time/)?\*", name)} - NOT_METRICS


def test_every_name_in_the_source_is_on_the_page():
    source = names_in_the_source()
    ratios = {f"sampling/importance_sampling_ratio/{which}" for which in ("min", "p01", "mean", "p99", "max")}
    assert {"reward", "rewards/*/mean", "eval/pass@*", "load_balancing_loss", "nonfinite_logprobs"} | ratios <= source
    assert unexplained([dict.fromkeys(map(example, source))]) == []


def test_every_name_on_the_page_is_in_the_source():
    known = [pattern(name) for name in names_in_the_source() | OTHERWISE]
    unknown = [name for name in names_on_the_page() if not any(each.fullmatch(example(name)) for each in known)]
    assert unknown == [] and len(names_on_the_page()) > 50


def test_every_entry_has_a_unit_and_says_what_is_normal():
    entries = re.findall(r"^- `.*?(?=\n- |\n\n)", PAGE, re.DOTALL | re.MULTILINE)
    assert len(entries) > 40
    assert [entry for entry in entries if not ENTRY.match(entry) or "**Normal" not in entry] == []
