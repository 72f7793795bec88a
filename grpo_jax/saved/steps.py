"""Which of the saved steps of a run can be trusted."""

import logging
from dataclasses import dataclass
from pathlib import Path

from grpo_jax.saved.directory import RunDirectory
from grpo_jax.saved.manifest import MANIFEST, Verdict, steps_in, verify

CHECKPOINTS = "checkpoints"  # the folder of a run directory with a folder for each saved step


@dataclass(frozen=True)
class Candidate:
    """The newest step that may be restored (None: there is none), and why each newer one may not.

    A step that is not `sealed` has no manifest, because an early version of this package saved it.
    """

    step: int | None
    skipped: dict[int, str]
    sealed: bool = True
    extra: tuple[str, ...] = ()


def find_candidate(directory: Path, early: bool, below: int | None = None) -> Candidate:
    """The newest step that can be verified, of those before `below`. `early`: a run of a version without manifests."""
    skipped: dict[int, str] = {}
    for step in reversed(steps_in(directory)):
        if below is not None and step >= below:
            continue
        verdict = verify(directory / str(step))
        if verdict.status == "verified":
            return Candidate(step, skipped, extra=verdict.extra)
        if early and verdict.status == "unfinished" and verdict.size:
            return Candidate(step, skipped, sealed=False)
        skipped[step] = _words(verdict)
    return Candidate(None, skipped)


def _words(verdict: Verdict) -> str:
    failed = "failed verification" if verdict.status == "damaged" else "was not saved whole"
    return f"step {verdict.step} {failed} ({verdict.reason})"


def is_early(run: Path) -> bool:
    """Whether an early version wrote a run: it kept neither what the run was made of, nor sums of its files."""
    folder = run / CHECKPOINTS
    kept = "facts" in RunDirectory(run).identity()
    return not kept and not any((folder / str(step) / MANIFEST).exists() for step in steps_in(folder))


def choose_step(run: Path, step: int | None = None) -> int:
    """The newest step of a run that can be verified, or the named one. Warns of newer steps that cannot be used."""
    if step is not None:
        return _checked(run, step)
    found = find_candidate(run / CHECKPOINTS, is_early(run))
    if found.step is None and found.skipped:
        raise ValueError(
            f"No checkpoint in {run / CHECKPOINTS} can be used: {'; '.join(found.skipped.values())}. Put a copy of a"
            " whole one there, or name another run."
        )
    if found.step is None:
        raise FileNotFoundError(
            f"{run} has no checkpoint, so it has no weights. Train it until it has saved one (train.save_every), or"
            " name another run or a model."
        )
    for reason in found.skipped.values():
        logging.getLogger("grpo_jax").warning("warning: %s: %s, using step %d", run, reason, found.step)
    return found.step


def _checked(run: Path, step: int) -> int:
    """The step, if it is there and whole."""
    known = steps_in(run / CHECKPOINTS)
    if step not in known:
        there = f"its steps are {', '.join(map(str, known))}" if known else "it has no checkpoint"
        raise FileNotFoundError(f"{run} has no step {step}: {there}. Name one of them as {run}@STEP, or another run.")
    verdict = verify(run / CHECKPOINTS / str(step))
    if verdict.status == "verified" or (is_early(run) and verdict.status == "unfinished" and verdict.size):
        return step
    raise ValueError(
        f"{run / CHECKPOINTS}: {_words(verdict)}. Put a copy of a whole one there, or name another step, as"
        f" `grpo-jax checkpoint verify {run}` lists them."
    )
