"""Answers that a run has kept, for `grpo-jax sft`: rejection sampling, best of n, RAFT (arXiv:2304.06767)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rewards.answers import exact
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.saved.directory import RunDirectory
from grpo_jax.tasks.task import Task


def kept(
    run: str,  # directory of a run, whose answers of training are read
    least: float = 1.0,  # reward, from which on an answer is taken
    best: int | None = 1,  # answers to each prompt, those with the highest reward and of them the last; null: all
    of_steps: tuple[int, int] | None = None,  # first and last step whose answers are read; null: all steps
) -> Task:
    """The prompts of a run with its own best answers. An answer that was cut off is none, and equal ones count once.

    It has no held-out prompts: name it in the section `answers` of a config whose task has some.
    """
    check_range("answers.least", least)
    if best is not None:
        check_range("answers.best", best, least=1, most=WHOLE)
    rows = list(_rows(Path(run).expanduser(), of_steps))
    good = [row for row in rows if row["reward"] >= least and not row.get("truncated") and row["completion"].strip()]
    if not good:
        highest, cut = max((row["reward"] for row in rows), default=0.0), sum(row["reward"] >= least for row in rows)
        way = "Lower answers.least, or read other steps (answers.of_steps)."
        if cut:
            way = f"{cut} that earned it were cut off: make the answers of a run longer (rollout.max_tokens)."
        raise ValueError(
            f"{run} has no answer with a reward of at least {least:g} that was not cut off: of the {len(rows)} with a"
            f" reward the highest earned {highest:g}. {way}"
        )
    prompts: dict[str, list[Mapping[str, Any]]] = {}
    for row in good:
        prompts.setdefault(json.dumps(row["prompt"]), []).append(row)
    taken = [row for group in prompts.values() for row in _different(group)[:best]]
    return Task(tuple(map(_example, taken)), (), Mix(((exact, 1.0),)))


def _rows(path: Path, steps: tuple[int, int] | None) -> Iterator[dict[str, Any]]:
    """The answers of a run that have a reward, with the step of each."""
    if not path.is_dir():
        raise FileNotFoundError(f"answers.run is {path}, and there is no such folder: give the directory of a run.")
    run = RunDirectory(path)
    found = run.answer_steps()
    first, last = (0, WHOLE) if steps is None else steps
    chosen = [step for step in found if first <= step <= last]
    if not found:
        raise ValueError(f"{path} has no answers that were sampled. Name a run of grpo-jax train in answers.run.")
    if not chosen:
        there = f"it has those of steps {found[0]} to {found[-1]}"
        raise ValueError(f"{path} has no answers of the steps that answers.of_steps names: {there}.")
    for step in chosen:
        for row in run.answers(step):
            if isinstance(row.get("reward"), int | float) and isinstance(row.get("completion"), str):
                yield row | {"step": step, "source": f"{path}, step {step}"}


def _different(group: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The answers to a prompt, each text once, the highest reward first and of equal ones the last step."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in sorted(group[::-1], key=lambda row: (row["reward"], row["step"]), reverse=True):
        found.setdefault(row["completion"].strip(), row)
    return list(found.values())


def _example(row: Mapping[str, Any]) -> Example:
    """A prompt with the answer that was kept; what rewards compared it with is the column `answer`."""
    columns = {name: row[name] for name in ("answer", "reward", "step") if name in row}
    return Example(row["prompt"], row["completion"], columns, row["source"])
