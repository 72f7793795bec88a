"""Evaluations during a run: held-out prompts are answered, the answers kept, and a run without progress ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax.devices.placing import everywhere, place_prompts
from grpo_jax.evaluation.answering import evaluate_questions
from grpo_jax.hosts import store
from grpo_jax.learner.update import logprobs_of
from grpo_jax.rollout.given import Answered
from grpo_jax.structs import Params
from grpo_jax.training.ending import writing
from grpo_jax.training.progress import Progress
from grpo_jax.training.record import Record
from grpo_jax.training.session import Session, Settings

LOSS = "eval/loss"


def evaluate_held_out(
    session: Session, record: Record, params: Params, progress: Progress, done: int
) -> dict[str, float]:
    """What answers to held-out prompts earn after `done` steps, as metrics; nothing where there are no such prompts."""
    if session.held_out is None:
        return {}
    found = evaluate_questions(session.algorithm, session.held_out, params, done, progress.phase, session.evaluation)
    with writing("The held-out answers", record.path):
        record.held_out(done, found.answers, store.host_index(), store.host_count())
    names = session.algorithm.mix.names
    listed = ", ".join(f"{name} {found[f'rewards/{name}/mean']:.3f}" for name in names)
    several = [name for name in found.of_prompts if "@" in name and found.responses > 1]
    passed = "".join(f", {name} {found[name]:.3f}" for name in several)
    count = len(session.held_out.examples)
    metrics = {f"eval/{name}": value for name, value in found.items()}
    if not session.algorithm.objective.needs_rewards:
        with progress.phase("evaluating"):
            metrics |= loss_of_given(session, params)
        passed += f", loss {metrics[LOSS]:.3f}" if LOSS in metrics else ""
    progress.finish("evaluating", f"{count} held-out prompts: reward {found['reward']:.3f} ({listed}){passed}")
    return metrics


def loss_of_given(session: Session, params: Params) -> dict[str, float]:
    """The mean negative log-likelihood of held-out answers, in nats a token; nothing where no answers are given.

    As many are computed at once as a step learns from, so that they fit; some a second time, which do not count.
    """
    questions, size, algorithm = session.held_out, session.settings.prompts, session.algorithm
    if questions is None:
        return {}
    given = [index for index, example in enumerate(questions.examples) if isinstance(example, Answered)]
    total, tokens = 0.0, 0
    for start in range(0, len(given), size):
        counted = min(size, len(given) - start)
        prompts, examples = questions.choose([given[(start + n) % len(given)] for n in range(size)])
        prompts = place_prompts(prompts, session.mesh)
        rollouts = algorithm.engine(algorithm.policy, params, prompts, jax.random.key(0), examples)
        logprobs_PGT = everywhere(logprobs_of(algorithm, algorithm.policy, params, rollouts))
        total -= float(logprobs_PGT[:counted].sum(dtype=np.float64))
        tokens += int(everywhere(rollouts.action_PGT)[:counted].sum())
    return {LOSS: total / tokens} if tokens else {}


def without_gain(name: str, history: Sequence[Mapping[str, Any]]) -> int:
    """How many evaluations there were since the one with the largest value of a metric, that before the first step
    included. One without a number has not gained.
    """
    values = [row[name] for row in history if name in row]
    known = [value for value in values if value is not None]
    return len(values) - 1 - values.index(max(known)) if known else 0


def is_spent(settings: Settings, record: Record) -> bool:
    """Whether so many evaluations in a row were not better than before that the run ends."""
    if settings.patience is None or settings.keep_best is None:
        return False
    return without_gain(settings.keep_best, record.history) >= settings.patience


def why_spent(name: str, record: Record) -> str:
    """A line that says which step stays the best by a metric."""
    count, measured = without_gain(name, record.history), [row for row in record.history if row.get(name) is not None]
    best = max(measured, key=lambda row: row[name])
    return (
        f"{count} evaluations in a row were not better than {name} {best[name]:.3f} of step {best['step']}: the run"
        " ends here, as train.patience says"
    )
