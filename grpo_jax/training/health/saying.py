"""Says what goes wrong in a run while it goes on: each cause once, and again only after it had gone for a while."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.health import CHECKS, SHOWN_BY_ANSWERS, Check, Row, Seen, Setup
from grpo_jax.health.kept import WARNINGS, write_setup
from grpo_jax.objectives.coefficients import Stepwise
from grpo_jax.objectives.shaping import nothing_for_truncated
from grpo_jax.training.ending import writing
from grpo_jax.training.record import Record
from grpo_jax.training.session import Session

CALM = 20  # steps without a cause, after which it is said again when it comes back
REPLAYED = 100  # steps of a resumed run, in which causes were said before
ASKED, ANSWERED = 60, 160  # characters of a prompt and of an answer that are shown


class Health:
    """What has been said about a run. It reads the metrics and answers of a record, and changes nothing in training.

    A resumed run does not say again what its earlier steps show.
    """

    def __init__(self, setup: Setup, record: Record, say: Callable[[str], None]):
        self.setup, self.record, self.say = setup, record, say
        self.last_found: dict[Check, int] = {}  # the step in which a cause was last there
        history = record.history
        for end in range(max(1, len(history) - REPLAYED), len(history) + 1):
            self._new(history[:end])
        if record.writes:
            _keep_until(record.path / WARNINGS, _step_of(history))
            with writing("What is known of the run", record.path):
                write_setup(record.path, setup)

    def look(self) -> None:
        """Prints what has gone wrong up to the last step, and adds it to warnings.jsonl."""
        found = self._new(self.record.history)
        if not self.record.writes:
            return
        for check, text in found.items():
            step = _step_of(self.record.history)
            answers = two_answers(self.record.path, step) if check in SHOWN_BY_ANSWERS else []
            self.say("\n  ".join([f"warning: {text}", *answers]))
            row = {"step": step, "warning": check.__name__, "text": text, "answers": answers}
            with writing("A warning", self.record.path), (self.record.path / WARNINGS).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _new(self, history: Sequence[Row]) -> dict[Check, str]:
        """The causes that are there now, and were not in the last `CALM` steps."""
        seen, step = Seen(history, self.setup), _step_of(history)
        found: dict[Check, str] = {check: text for check in CHECKS if (text := check(seen)) is not None}
        new = {check for check in found if step - self.last_found.get(check, -CALM) >= CALM}
        self.last_found |= dict.fromkeys(found, step)
        return {check: text for check, text in found.items() if check in new}


def setup_of(session: Session) -> Setup:
    """What the checks need to know of a session."""
    algorithm, objective = session.algorithm, session.algorithm.objective
    mix = algorithm.mix
    adaptive = {name: given for name, given in objective.coefficients.items() if isinstance(given, Stepwise)}
    return Setup(
        session.settings.steps,
        tuple(name for name, weight in zip(mix.names, mix.weights_R, strict=True) if weight),
        algorithm.engine.responses,
        len(session.held_out.examples) if session.held_out is not None else 0,
        nothing_for_truncated in objective.shaping,
        objective.counted_kl is None and not objective.terms and not objective.distillation,
        {name: (given.most, given.watches) for name, given in adaptive.items()},
    )


def two_answers(path: Path, step: int) -> list[str]:
    """A line for each of two answers of a step, with their rewards: the best and the worst, or two that differ in text.

    Of several hosts' answers only the first host's are read, which it has written itself.
    """
    files = sorted((path / "completions").glob(f"step_{step:06d}*.jsonl"))
    lines = files[0].read_text(encoding="utf-8").split("\n") if files else []  # texts may have other line separators
    rows = [json.loads(line) for line in lines if line]
    if not rows:
        return []
    worst, best = min(rows, key=_total), max(rows, key=_total)
    if _total(worst) == _total(best):
        worst, best = rows[0], next((row for row in rows if row["completion"] != rows[0]["completion"]), rows[-1])
    return [_line(row) for row in (worst, best)]


def _total(row: Mapping[str, Any]) -> float:
    """The total reward of an answer; of one that an earlier version wrote, the sum of its parts."""
    parts = [row["reward"]] if "reward" in row else [v for name, v in row.items() if name.startswith("rewards/")]
    return sum(value for value in parts if value is not None and value == value)  # NaN is no score


def _line(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    parts = {name.removeprefix("rewards/"): value for name, value in row.items() if name.startswith("rewards/")}
    scores = ", ".join(
        f"{name} {value:.4g}" if value is not None and value == value else f"{name} without a score"
        for name, value in parts.items()
    )
    failed = f", and the error {_quoted(row['errors'][0], ANSWERED)}" if row.get("errors") else ""
    return f"to {_quoted(prompt, ASKED)} an answer ({scores}): {_quoted(row['completion'], ANSWERED)}{failed}"


def _quoted(text: str, length: int) -> str:
    """A text on one line, its middle left out if it is long. Half surrogates are escaped, as no terminal takes them."""
    if len(text) > length:
        text = f"{text[: length // 2]} ... {text[-length // 2 :]}"
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


def _step_of(history: Sequence[Row]) -> int:
    """The last step that has metrics; 0 before the first."""
    return int(history[-1]["step"]) if history else 0


def _keep_until(file: Path, step: int) -> None:
    """Drops the warnings of later steps, which a resumed run takes again, and lines that are not whole."""
    if not file.exists():
        return
    kept = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if _step(line) <= step]
    new = file.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    new.replace(file)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):  # torn when the machine stopped
        return float("inf")
