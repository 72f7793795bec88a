"""The table that `grpo-jax eval` prints."""

from collections.abc import Sequence

from grpo_jax.commands import printing
from grpo_jax.evaluation.intervals import Interval
from grpo_jax.evaluation.result import Change, Evaluated
from grpo_jax.evaluation.settings import Evaluation
from grpo_jax.rollout import Engine

LENGTH, TRUNCATED, UNSCORED = "length in tokens", "cut off", "without a score"


def heading(name: str, evaluation: Evaluation, engine: Engine, found: Evaluated) -> str:
    """What was asked, and how it was answered."""
    prompts = len(found.prompts)
    warmth = "" if evaluation.temperature is None else f" at temperature {evaluation.temperature:g}"
    several = f"{evaluation.responses} sampled answers to each{warmth}, seed {evaluation.seed}"
    how = "one greedy answer to each" if evaluation.is_greedy else several
    if evaluation.is_greedy and engine.greedy() is None:
        how = f"{found.responses} answer{'s' if found.responses > 1 else ''} to each, as the engine gives them"
    return f"{name}: {prompts} held-out prompts, {how}; {100 * evaluation.confidence:g} % intervals over prompts"


def table(
    columns: Sequence[str], found: Sequence[Evaluated], changed: dict[str, Change] | None, width: int | None
) -> str:
    """A line for each metric, a column for each model, and what changed between the two."""
    cells = [["", *columns, *(["difference"] if changed is not None else [])]]
    for name in found[-1].of_prompts:
        row = [name, *(_number(each[name], each.intervals.get(name)) for each in found)]
        cells.append(row + ([_change(changed[name])] if changed is not None else []))
    cells.append([LENGTH, *(f"{each['length']:.1f}" for each in found)])
    cells.append([TRUNCATED, *(f"{each['truncated']:.0%}" for each in found)])
    if any(each["unscored"] for each in found):
        cells.append([UNSCORED, *(f"{each['unscored']:g} answers" for each in found)])
    return "\n".join([printing.table(cells, width), *_notes(found[-1])])


def _notes(found: Evaluated) -> list[str]:
    notes = [f"{name} is left out: {why}" for name, why in found.left_out.items()]
    if any(name not in found.intervals for name in found.of_prompts):
        notes.append("no interval: all prompts have the same number, or there is only one")
    return notes


def _number(mean: float, interval: Interval | None) -> str:
    ends = "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    return f"{mean:.3f}{ends}"


def _change(change: Change) -> str:
    ends = "" if change.interval is None else f" ({change.interval.low:+.3f} to {change.interval.high:+.3f})"
    return f"{change.mean:+.3f}{ends}"
