"""Which of the saved steps of a run can be trusted."""

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
