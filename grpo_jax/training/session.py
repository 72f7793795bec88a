"""What a run is made of, built and checked before anything compiles."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
from jax.sharding import Mesh

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout, check_hosts
from grpo_jax.devices.placing import place
from grpo_jax.devices.sharding import check_experts
from grpo_jax.environments import Bounded
from grpo_jax.evaluation.offered import rehearse_environment, with_environment
from grpo_jax.evaluation.questions import MAX_PROMPT_TOKENS, Questions, check_rewards
from grpo_jax.evaluation.settings import Evaluation
from grpo_jax.grpo import init
from grpo_jax.learner.finite import check_weights
from grpo_jax.learner.states import check_moments, state_shardings
from grpo_jax.learner.update import check_split
from grpo_jax.models import Model
from grpo_jax.objectives.checking import check_group, check_objective
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rewards import Example
from grpo_jax.rewards.mixing import LARGEST_REWARD
from grpo_jax.rollout.engine import longest_response
from grpo_jax.structs import TrainState
from grpo_jax.tasks import Task
from grpo_jax.training.long_prompts import LongPrompts, fitted
from grpo_jax.training.overview import copy_bytes
from grpo_jax.training.trackers import tensorboard
from grpo_jax.training.trackers.tracker import Tracker, Write, check_trackers

UNKNOWN_LENGTH = 16  # tokens, in place of the longest response of an engine that does not say it


@dataclass(frozen=True)
class Settings:
    """How long to train, on how much at once, and what to do between steps."""

    steps: int
    prompts: int = 16  # for each step, each with rollout.responses responses
    max_prompt_tokens: int = MAX_PROMPT_TOKENS
    long_prompts: LongPrompts = "refuse"  # those with more tokens: refuse, leave_out, or cut at their beginning
    seed: int = 0
    evaluate_every: int = 10  # steps between greedy answers to held-out prompts; 0 never
    evaluate_prompts: int = 64
    save_every: int = 50
    keep: int = 2  # newest checkpoints
    keep_every: int = 0  # checkpoints of steps that this divides are kept for ever; 0 none
    keep_best: str | None = None  # the checkpoint with the largest value of this metric is kept, e.g. eval/reward
    patience: int | None = None  # evaluations in a row without a better keep_best, after which it ends; null: never
    resample: int = 1  # rounds of sampling, at most, until a step's groups all differ in reward (DAPO's is 10)
    max_skipped: int = 3  # steps in a row with an update that is not finite, after which the run ends
    skip_spikes: float | None = None  # leave out gradients with a norm so many times the recent median; null: none
    retire: float | None = None  # mean reward from which a prompt is not asked again; null never (ScaleRL's is 0.9)
    watchdog_minutes: float = 60.0  # after which a phase (sampling, learning, ...) counts as stuck; 0 never
    token_groups: int = 1  # of a step, whose answers are written with their tokens and log-probs, for its report
    report_minutes: float = 5.0  # between refreshes of report.html, which is made at the end, too; 0 never
    trackers: tuple[Tracker | Write, ...] = (tensorboard(),)  # or wandb, trackio, my_file:function of (step, metrics)
    profile_steps: tuple[int, int] | None = None  # first and last step of a trace by JAX's profiler; null: none

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "max_prompt_tokens", "evaluate_prompts", "save_every", "keep", "max_skipped"):
            check_range(f"train.{name}", getattr(self, name), least=1, most=WHOLE)
        for name in ("evaluate_every", "keep_every"):
            check_range(f"train.{name}", getattr(self, name), least=0, most=WHOLE, note="(0 is never)")
        check_range("train.token_groups", self.token_groups, least=0, most=WHOLE, note="(0 writes none)")
        check_range("train.resample", self.resample, least=1, most=1000, note="(1 asks once)")
        check_range("train.seed", self.seed, least=0, below=2**32)
        if self.retire is not None:
            check_range("train.retire", self.retire, above=0, most=LARGEST_REWARD, note="(null is never)")
        if self.skip_spikes is not None:
            check_range("train.skip_spikes", self.skip_spikes, above=1, note="(null is never)")
        for name in ("watchdog_minutes", "report_minutes"):
            check_range(f"train.{name}", getattr(self, name), least=0, most=100_000, note="(0 is never)")
        if self.keep_best is not None and self.keep_best.startswith("eval/") and not self.evaluate_every:
            raise ValueError(
                f"train.keep_best is {self.keep_best}, which is measured when held-out prompts are answered, and"
                " train.evaluate_every is 0: that is never. Set it, or choose another metric."
            )
        if self.profile_steps is not None:
            _check_traced(self.profile_steps, self.steps)
        if self.patience is not None:
            check_range("train.patience", self.patience, least=1, most=WHOLE, note="(null is never)")
            if self.keep_best is None or not self.keep_best.startswith("eval/"):
                raise ValueError(
                    f"train.patience is {self.patience}: it counts evaluations in which train.keep_best is not better"
                    f" than before, and that is {self.keep_best}. Set it to eval/reward, or another metric of these."
                )


@dataclass(frozen=True)
class Session:
    """Everything that the steps of a run need, and nothing that changes while it runs."""

    settings: Settings
    model: Model
    mesh: Mesh
    algorithm: Algorithm
    questions: Questions
    held_out: Questions | None
    evaluation: Evaluation = field(default_factory=Evaluation)

    def facts(self) -> dict[str, str]:
        """What has to be the same on every host, by name."""
        held_out = self.held_out.examples if self.held_out else []
        return {
            "training data": "\n".join(map(repr, self.questions.examples)),
            "held-out data": "\n".join(map(repr, held_out)),
        }


def assemble(
    model: Model,
    task: Task,
    algorithm: Algorithm,
    settings: Settings,
    layout: Layout | None = None,
    evaluation: Evaluation | None = None,
) -> Session:
    """The session of these parts, once the checks that need more than one of them have passed."""
    check_trackers(settings.trackers)
    mesh = (layout or Layout()).mesh(copy_bytes=copy_bytes(model.policy))
    check_hosts(mesh)
    check_experts(model.policy.shapes, mesh)
    check_moments(algorithm.optimizer, mesh)
    engine = algorithm.engine
    check_split(algorithm, settings.prompts, engine.responses, mesh)
    offering, task, environment = with_environment(model, task)
    train, held_out_examples = _fitted(task, offering, settings)
    _check_environment(environment, algorithm, train)
    _check_sizes(algorithm, settings, len(train))
    scored = {"training": train if algorithm.objective.needs_rewards else (), "held-out": held_out_examples}
    for kind, examples in scored.items():
        check_rewards(algorithm, model, kind, examples)
    asked = environment if algorithm.objective.needs_rewards else None  # given answers are not asked for
    questions = Questions(train, offering, settings.max_prompt_tokens, asked)
    engine.check(model.policy, jax.tree.map(lambda a: a[: settings.prompts], questions.prompts))
    held_out = None
    if held_out_examples:
        held_out = Questions(held_out_examples, offering, settings.max_prompt_tokens, environment)
    evaluation = Evaluation() if evaluation is None else evaluation
    if held_out is not None:
        first = jax.tree.map(lambda a: a[:1], held_out.prompts)
        evaluation.check(engine, algorithm.mix, model.policy, first)
    return Session(settings, model, mesh, algorithm, questions, held_out, evaluation)


def _fitted(task: Task, model: Model, settings: Settings) -> tuple[Sequence[Example], Sequence[Example]]:
    """The examples to train on and those of each evaluation, once long prompts are dealt with."""
    limit, choice = settings.max_prompt_tokens, settings.long_prompts
    train = fitted(task.train, model, limit, choice, "training")
    held_out = fitted(task.held_out, model, limit, choice, "held-out") if settings.evaluate_every else ()
    return train, held_out[: settings.evaluate_prompts]


def _check_environment(environment: Bounded | None, algorithm: Algorithm, examples: Sequence[Example]) -> None:
    """Refuses an objective that asks for greedy answers in one turn, and an environment that cannot begin."""
    if environment is not None and algorithm.objective.greedy_baseline:
        raise ValueError(
            "This objective compares with greedy answers, which are of one turn, and the task has an environment:"
            " choose another objective."
        )
    rehearse_environment(environment, examples)


def _check_traced(traced: tuple[int, int], steps: int) -> None:
    """Refuses to trace steps that a run does not have."""
    first, last = traced
    if not 1 <= first <= last <= steps:
        raise ValueError(
            f"train.profile_steps names the first and the last step to trace, [first, last] with 1 <= first <= last <="
            f" train.steps ({steps}); got [{first}, {last}]."
        )


def _check_sizes(algorithm: Algorithm, settings: Settings, examples: int) -> None:
    """Refuses steps larger than the data, groups that nothing can be learned from, and functions that do not fit."""
    if settings.prompts > examples:
        raise ValueError(
            f"train.prompts must be at most the number of training examples, or a step would ask some of them twice;"
            f" got {settings.prompts} prompts and {examples} examples. Lower it, and raise rollout.responses instead."
        )
    G, T = algorithm.engine.responses, longest_response(algorithm.engine)
    if G is None:
        return
    if settings.resample > 1 and G == 1 and algorithm.objective.needs_rewards:
        raise ValueError(
            "train.resample samples until the responses to a prompt differ in reward, so it needs at least 2 of them;"
            " got 1. Raise rollout.responses, or leave out train.resample."
        )
    check_group(algorithm.objective, G)
    R = len(algorithm.mix.names)
    check_objective(algorithm.objective, settings.prompts, G, UNKNOWN_LENGTH if T is None else T, R)


def first_state(session: Session) -> TrainState:
    """The state before the first step, on the devices."""
    params = session.model.params(session.mesh)
    check_weights(params, "the model")
    if session.algorithm.teacher is not None:
        check_weights(session.algorithm.teacher[1], "the teacher")
    if session.algorithm.judge is not None:
        check_weights(session.algorithm.judge[1], "the judge")
    state = init(session.algorithm, params)
    return jax.tree.map(place, state, state_shardings(session.algorithm.optimizer, state, session.mesh))
