"""The page about metrics explains every number that a run may write, and none that no run writes.

Names come from two sides: from the source, where functions that give metrics have them as keys, and from real runs.
"""

import ast
import dataclasses
import re
from pathlib import Path

import jax
import pytest

import grpo_jax as gj
from grpo_jax.objectives.coefficients import Proportional
from grpo_jax.objectives.kl import KL, k3
from grpo_jax.rewards import Rubric

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^- ((?:`[^`]+`(?:, )?)+) \(([^)]+)\): ", re.MULTILINE)
GIVES = re.compile(r"Metrics|Evaluated|dict\[str, (Float\[)?Array|dict\[str, float")
ELSEWHERE = ("commands", "report", "health", "config")  # whose numbers are not those of a step
NOT_METRICS = {"advantages"}  # of `wrong_tokens`, which counts what is not finite in a batch
RUBRIC = """
[[criteria]]
name = "kind"
text = "Is it kind?"
"""


def pattern(name: str) -> re.Pattern[str]:
    """What a name of the page or of the source stands for: NAME, K and * are any text."""
    return re.compile(re.sub(r"[A-Z]+|\\\*", ".+", re.escape(name)))


def example(name: str) -> str:
    """A name that could be in a run."""
    return re.sub(r"[A-Z]+|\*", "x", name)


def names_on_the_page() -> list[str]:
    return [name for entry, _ in ENTRY.findall(PAGE) for name in re.findall(r"`([^`]+)`", entry)]


def key_text(key: ast.expr | None, constants: dict[str, str]) -> str | None:
    """A key as text, with * for what is put in."""
    if isinstance(key, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "*" for part in key.values)
    if isinstance(key, ast.Name):
        return constants.get(key.id)
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


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
    found = set()
    for path in sorted((ROOT / "grpo_jax").rglob("*.py")):
        where = path.relative_to(ROOT / "grpo_jax")
        if where.parts[0] in ELSEWHERE:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name) and isinstance(node.value.value, str)
        }
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.returns is not None]
        giving = [function for function in functions if GIVES.search(ast.unparse(function.returns))]
        texts = {key_text(key, constants) for function in giving for key in keys_in(function)}
        names = {text for text in texts if text is not None and re.fullmatch(r"[a-z_@/*]+", text)}
        prefix = "eval/" if where.parts[0] == "evaluation" else ""
        found |= {name if name.startswith("eval/") else prefix + name for name in names}
    return {name for name in found if not re.fullmatch(r"(eval/|time/)?\*", name)} - NOT_METRICS


def test_every_name_in_the_source_is_on_the_page():
    known = [pattern(name) for name in names_on_the_page()]
    source = names_in_the_source()
    assert {"reward", "rewards/*/mean", "eval/pass@*", "load_balancing_loss", "nonfinite_logprobs"} <= source
    assert [name for name in sorted(source) if not any(each.fullmatch(example(name)) for each in known)] == []


def test_every_entry_has_a_unit():
    assert re.findall(r"^- `[^\n]*", PAGE, re.MULTILINE) == [
        PAGE[match.start() : PAGE.index("\n", match.start())] for match in ENTRY.finditer(PAGE)
    ]


class HalfJudge:
    """A judge that has a verdict on every second answer."""

    def check(self, sheet):
        """Takes every sheet."""

    def judge(self, sheets):
        return [[len(sheet.response) % 2 if n % 2 else None] for n, sheet in enumerate(sheets)]


def names_of(path: Path) -> set[str]:
    return {name for row in gj.RunDirectory(path).metrics() for name in row}


@pytest.fixture(scope="module")
def names_of_runs(tmp_path_factory) -> set[str]:
    """What two runs write: one on rewards with nearly everything that adds a metric, and one on given answers."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rubric.toml").write_text(RUBRIC)
    model, task = gj.tiny(remat="none"), gj.tasks.arithmetic(largest=9, train=20, held_out=4)
    follows = KL(Proportional(target=1e-3), k3)
    algorithm = gj.Algorithm(
        policy=model.policy,
        sample=gj.Sampler(model.tokenizer.end_ids, responses=4, max_tokens=4),
        decode=model.tokenizer.decode,
        reward=gj.Mix(((task.reward, 1.0), (Rubric(str(folder / "rubric.toml"), judge=HalfJudge()), 0.5))),
        objective=dataclasses.replace(gj.objectives.dapo(), kl=follows, distillation=0.5),
        optimizer=gj.adamw(1e-3),
        teacher=(model.policy, model.params(gj.Layout().mesh(jax.devices()[:1]))),
    )
    one = gj.Layout(data=1, fsdp=1, tensor=8)
    settings = gj.Settings(steps=2, prompts=4, evaluate_every=2, evaluate_prompts=4, retire=0.9, report_minutes=0)
    how = {"layout": one, "evaluation": gj.Evaluation(responses=4)}
    first = gj.train(model, task, algorithm, settings, run=gj.Run("rewards", str(folder)), **how)
    plain = dataclasses.replace(algorithm, objective=gj.objectives.dapo(), teacher=None)
    second = gj.sft(model, task, plain, settings, run=gj.Run("given", str(folder)), layout=one)
    return names_of(first.path) | names_of(second.path)


@pytest.mark.slow
def test_every_name_in_a_run_is_on_the_page(names_of_runs):
    known = [pattern(name) for name in names_on_the_page()]
    assert {"kl", "coefficient/kl", "teacher_kl", "retired_prompts", "eval/maj@4", "tokens"} <= names_of_runs
    assert [name for name in sorted(names_of_runs) if not any(each.fullmatch(name) for each in known)] == []


@pytest.mark.slow
def test_every_name_on_the_page_is_in_a_run_or_in_the_source(names_of_runs):
    exact = [pattern(name) for name in names_in_the_source() if not name.endswith("/*")]
    unknown = [
        name
        for name in names_on_the_page()
        if not any(pattern(name).fullmatch(each) for each in names_of_runs)
        and not any(each.fullmatch(example(name)) for each in exact)
    ]
    assert unknown == []
