"""What a run is made of, built and checked before anything compiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout, check_hosts
from grpo_jax.devices.placing import place
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.grpo import init
from grpo_jax.learner.update import check_split
from grpo_jax.models import Model
from grpo_jax.rewards import Example, score
from grpo_jax.structs import Prompts, TrainState, bucket
from grpo_jax.tasks import Task
from grpo_jax.training.overview import copy_bytes


@dataclass(frozen=True)
class Settings:
    """How long to train, on how much at once, and what to do between steps."""

    steps: int
    prompts: int = 16  # for each step, each with rollout.responses responses
    max_prompt_tokens: int = 512
    seed: int = 0
    evaluate_every: int = 10  # steps between greedy answers to held-out prompts; 0 never
    evaluate_prompts: int = 64
    save_every: int = 50
    keep: int = 2  # newest checkpoints
    keep_every: int = 0  # checkpoints of steps that this divides are kept for ever; 0 none
    keep_best: str | None = None  # the checkpoint with the largest value of this metric is kept, e.g. eval/reward
    resample: int = 1  # rounds of sampling, at most, until a step's groups all differ in reward (DAPO's is 10)
    retire: float | None = None  # mean reward from which a prompt is not asked again; null never (ScaleRL's is 0.9)

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "prompts": 1,
            "evaluate_every": 0,
            "evaluate_prompts": 1,
            "keep": 1,
            "resample": 1,
            "keep_every": 0,
        }
        for name, bound in (least | {"save_every": 1}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"train.{name} must be at least {bound}; got {getattr(self, name)}.")


class Questions:
    """Examples with their prompts encoded once, padded for each batch only as far as it needs."""

    def __init__(self, examples: Sequence[Example], model: Model, max_tokens: int):
        self.examples = examples
        self.prompts = model.tokenizer.encode_all([example.prompt for example in examples], max_tokens)

    def choose(self, indices: Sequence[int]) -> tuple[Prompts, list[Example]]:
        """The prompts and examples at these indices."""
        indices = list(indices)
        valid_PL = self.prompts.valid_PL[indices]
        length = min(bucket(int(valid_PL.sum(axis=1).max())), valid_PL.shape[1])
        prompts = Prompts(self.prompts.tokens_PL[indices, -length:], valid_PL[:, -length:])
        return prompts, [self.examples[index] for index in indices]


@dataclass(frozen=True)
class Session:
    """Everything that the steps of a run need, and nothing that changes while it runs."""

    settings: Settings
    model: Model
    mesh: Mesh
    algorithm: Algorithm
    questions: Questions
    held_out: Questions | None

    def facts(self) -> dict[str, str]:
        """What has to be the same on every host, by name."""
        held_out = self.held_out.examples if self.held_out else []
        return {
            "training data": "\n".join(map(repr, self.questions.examples)),
            "held-out data": "\n".join(map(repr, held_out)),
        }


def assemble(
    model: Model, task: Task, algorithm: Algorithm, settings: Settings, layout: Layout | None = None
) -> Session:
    """The session of these parts, once the checks that need more than one of them have passed."""
    mesh = (layout or Layout()).mesh(copy_bytes=copy_bytes(model.policy))
    check_hosts(mesh)
    engine = algorithm.engine
    check_split(algorithm, settings.prompts, engine.responses, mesh)
    questions = Questions(task.train, model, settings.max_prompt_tokens)
    engine.check(model.policy, jax.tree.map(lambda a: a[: settings.prompts], questions.prompts))
    score(algorithm.reward, task.train[:1], [[""]])  # a reward that does not fit the data fails now, not in an hour
    count = min(settings.evaluate_prompts, len(task.held_out)) if settings.evaluate_every else 0
    held_out = Questions(task.held_out[:count], model, settings.max_prompt_tokens) if count else None
    return Session(settings, model, mesh, algorithm, questions, held_out)


def first_state(session: Session) -> TrainState:
    """The state before the first step, on the devices."""
    state = init(session.algorithm, session.model.params(session.mesh))
    return jax.tree.map(place, state, weight_shardings(state, session.mesh))
