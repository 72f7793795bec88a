"""`grpo-jax train`: a config file in, a run directory out."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from grpo_jax import grpo
from grpo_jax.algorithm import Algorithm
from grpo_jax.config import Config, ConfigError, render
from grpo_jax.devices.cache import keep_programs
from grpo_jax.devices.mesh import check_hosts, prompt_parts
from grpo_jax.devices.sharding import (
    everywhere,
    from_hosts,
    host_places,
    place,
    place_prompts,
    shares_of,
    weight_shardings,
)
from grpo_jax.grpo import begin, check_split, chosen_tokens
from grpo_jax.hosts import ending, meeting, store
from grpo_jax.metrics import describe_rewards
from grpo_jax.models import Model
from grpo_jax.rewards import Mix, score
from grpo_jax.rollout import Sampler, programs
from grpo_jax.structs import Params, Policy, Prompts, TrainState, bucket
from grpo_jax.tasks import Example, Task
from grpo_jax.training.asking import ask
from grpo_jax.training.checkpoint import Checkpoints
from grpo_jax.training.overview import copy_bytes
from grpo_jax.training.overview import table as layout_table
from grpo_jax.training.progress import Progress
from grpo_jax.training.record import Record

PLAIN = (ConfigError, FileNotFoundError)  # errors of which the command line shows the sentence alone


@dataclass(frozen=True)
class Train:
    """How long to train, on how much at once, and what to do between steps."""

    steps: int
    prompts: int = 16  # for each step, each with rollout.responses responses
    max_prompt_tokens: int = 512
    seed: int = 0
    evaluate_every: int = 10  # steps between greedy answers to held-out prompts; 0 never
    evaluate_prompts: int = 64
    save_every: int = 50
    keep: int = 2  # checkpoints
    resample: int = 1  # rounds of sampling, at most, until a step's groups all differ in reward (DAPO's is 10)
    retire: float | None = None  # mean reward from which a prompt is not asked again; null never (ScaleRL's is 0.9)

    def __post_init__(self) -> None:
        least = {"steps": 1, "prompts": 1, "evaluate_every": 0, "evaluate_prompts": 1, "keep": 1, "resample": 1}
        for name, bound in (least | {"save_every": 1}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"train.{name} must be at least {bound}; got {getattr(self, name)}.")


class Questions:
    """Examples with their prompts encoded once, padded for each batch only as far as it needs."""

    def __init__(self, examples: Sequence[Example], model: Model, max_tokens: int):
        self.examples = examples
        self.prompts = model.tokenizer.encode_all([example.prompt for example in examples], max_tokens)

    def choose(self, indices: Sequence[int]) -> tuple[Prompts, list[Example]]:
        """The prompts and examples at these places."""
        indices = list(indices)
        valid_PL = self.prompts.valid_PL[indices]
        length = min(bucket(int(valid_PL.sum(axis=1).max())), valid_PL.shape[1])
        prompts = Prompts(self.prompts.tokens_PL[indices, -length:], valid_PL[:, -length:])
        return prompts, [self.examples[index] for index in indices]


@dataclass(frozen=True)
class Session:
    """Everything a run needs, built and checked before anything compiles."""

    settings: Train
    model: Model
    mesh: jax.sharding.Mesh
    algorithm: Algorithm
    questions: Questions
    exam: Questions | None  # held-out prompts


@ending.together(*PLAIN)
def run(arguments: argparse.Namespace) -> int:
    """Trains as the config says; the exit code. On several hosts, all of them run this at once."""
    try:
        session, state, checkpoints, record, stop = prepare(arguments.config, arguments.resume)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    with closing(record), closing(checkpoints):
        try:
            done = learn(session, state, checkpoints, record, stop)
        except KeyboardInterrupt:
            saved = checkpoints.latest
            advice = "nothing is saved yet" if saved is None else f"step {saved} is saved: go on from it with --resume"
            print(f"\nstopped; {advice}", file=sys.stderr)
            return 130
    return 0 if done else ending.RESUMABLE


def prepare(config: Config, resume: bool) -> tuple[Session, TrainState, Checkpoints, Record, ending.Stop]:
    """What the steps need. The hosts agree that they run the same before anything large is on a device."""
    runs = config.run.build()
    meeting.join()
    stop = ending.Stop()
    same = {"config": render(config), "version of the code": meeting.code_version(), "choice of --resume": str(resume)}
    meeting.agree(same)
    keep_programs()
    path = Path(store.decide(lambda: str(runs.latest()))) if resume else None
    session = assemble(config)
    meeting.agree(data(session) | {"code in its current folder": meeting.own_code()})
    meeting.agree({"mesh": str(session.mesh.shape)}, "Set mesh.data, mesh.fsdp and mesh.tensor.")
    state = load_state(session)
    path = path or Path(store.decide(lambda: str(runs.create())))
    meeting.share(path)
    checkpoints = Checkpoints(path / "checkpoints", session.settings.keep)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state)
    record = Record(path, int(state.step), store.is_first())
    way_out = f"They do not see the same {path} yet, or not any more: start all of them again, with --resume."
    meeting.agree({"history of the run": repr((record.history, record.retired))}, way_out)
    if store.is_first():
        (path / "config.yaml").write_text(render(config))
    return session, state, checkpoints, record, stop


def data(session: Session) -> dict[str, str]:
    """The examples, which have to be the same on every host."""
    held_out = session.exam.examples if session.exam else []
    return {
        "training data": "\n".join(map(repr, session.questions.examples)),
        "held-out data": "\n".join(map(repr, held_out)),
    }


def assemble(config: Config) -> Session:
    """The objects a config names, and the checks that need more than one of them."""
    settings: Train = config.train.build()
    task: Task = config.task.build()
    model: Model = config.model.build()
    mesh = config.mesh.build().mesh(copy_bytes=copy_bytes(model.policy))
    check_hosts(mesh)
    sample = config.rollout.build(ends=model.tokenizer.end_ids, decode=model.tokenizer.decode)
    algorithm: Algorithm = config.algorithm.build(
        policy=model.policy,
        sample=sample,
        decode=model.tokenizer.decode,
        reward=Mix(tuple((call.build(), call.weight) for call in config.rewards)) if config.rewards else task.reward,
        objective=config.objective.build(),
        optimizer=config.optimizer.build(),
        sample_greedy=greedy(sample) if isinstance(sample, Sampler) else None,
        teacher=load_teacher(config, model, mesh),
    )
    check_split(algorithm, settings.prompts)
    check_shares(algorithm, settings.prompts, mesh)
    questions = Questions(task.train, model, settings.max_prompt_tokens)
    check_sampler(algorithm, jax.tree.map(lambda a: a[: settings.prompts], questions.prompts))
    score(algorithm.reward, task.train[:1], [[""]])  # a reward that does not fit the data fails now, not in an hour
    count = min(settings.evaluate_prompts, len(task.held_out)) if settings.evaluate_every else 0
    exam = Questions(task.held_out[:count], model, settings.max_prompt_tokens) if count else None
    return Session(settings, model, mesh, algorithm, questions, exam)


def greedy(sampler: Sampler) -> Sampler:
    """The same sampler, giving the one likeliest answer."""
    return replace(sampler, temperature=0.0, responses=1)


def load_teacher(config: Config, model: Model, mesh: jax.sharding.Mesh) -> tuple[Policy, Params] | None:
    """The model that an objective with distillation follows. It has to have the student's tokens."""
    if config.teacher is None:
        return None
    teacher: Model = config.teacher.build()
    if teacher.shape.vocabulary != model.shape.vocabulary:
        raise ValueError(
            f"The teacher has {teacher.shape.vocabulary} tokens and the model {model.shape.vocabulary}: a teacher's"
            " log-probs are of the same tokens. Take one of the model's family."
        )
    return teacher.policy, teacher.params(mesh)


def check_shares(algorithm: Algorithm, prompts: int, mesh: jax.sharding.Mesh) -> None:
    """Refuses steps, and parts of steps, that the devices could not share evenly."""
    sampler, parts, each = algorithm.sample, prompt_parts(mesh), prompts // algorithm.minibatches
    shares = shares_of(prompts, sampler.responses if isinstance(sampler, Sampler) else 1, mesh)
    at_once = each if algorithm.microbatch is None else algorithm.microbatch
    least = parts // math.gcd(parts, shares)
    if at_once % least:
        nearest = sorted({max(at_once // least, 1) * least, (at_once // least + 1) * least})
        raise ValueError(
            f"The devices learn from prompts in {parts} equal parts, so a microbatch or minibatch must be a multiple of"
            f" {least} prompts; got {at_once}. Choose {' or '.join(map(str, nearest))}."
        )


def check_sampler(algorithm: Algorithm, prompts: Prompts) -> None:
    """Refuses a native sampler that could not be learned from; other engines look after themselves."""
    sampler = algorithm.sample
    if not isinstance(sampler, Sampler):
        return
    check_split(algorithm, len(prompts.tokens_PL), sampler.responses)
    sampler.check_room(algorithm.policy, prompts)
    if sampler.temperature == 0:
        raise ValueError("rollout.temperature 0 gives every response of a group the same tokens: use one above 0.")


def load_state(session: Session) -> TrainState:
    """The state before the first step, on the devices."""
    state = begin(session.algorithm, session.model.params(session.mesh))
    return jax.tree.map(place, state, weight_shardings(state, session.mesh))


@ending.together(*PLAIN)  # an error ends this host before it closes the checkpoints, which would wait for the others
def learn(session: Session, state: TrainState, checkpoints: Checkpoints, record: Record, stop: ending.Stop) -> bool:
    """Steps until all are done, with evaluations and checkpoints between them; whether they are, or it had to stop."""
    settings, done, retired = session.settings, int(state.step), set(record.retired)
    progress = Progress(settings.steps, done, store.is_first())
    progress.say(introduction(session, state, record.path))
    if session.exam is not None and not record.history:
        record.metrics(0, evaluate(session, state.params, progress, 0))
    stop.heed_interrupts()
    for index in range(done, settings.steps):
        if used_up(session, retired):
            break
        state, metrics = take_step(session, state, index, retired, record, progress)
        last = index + 1 == settings.steps or used_up(session, retired)
        stopped = stop.after_step() and not last
        if last or (settings.evaluate_every and (index + 1) % settings.evaluate_every == 0):
            metrics |= evaluate(session, state.params, progress, index + 1)
        record.metrics(index + 1, metrics)
        if last or stopped or (index + 1) % settings.save_every == 0:
            with progress.phase("saving"):
                checkpoints.save(index + 1, state)
                if last or stopped:
                    checkpoints.wait()
            how = "saved" if last or stopped else "in the background, saving"
            progress.finish("saving", f"{how} step {index + 1}")
        if stopped:
            progress.say("told to stop: go on with --resume")
            return False
    if used_up(session, retired):
        progress.say(f"{len(retired)} prompts are solved: too few are left for a step, so this is the end")
    progress.say(conclusion(record, progress))
    return True


def take_step(
    session: Session, state: TrainState, index: int, retired: set[int], record: Record, progress: Progress
) -> tuple[TrainState, dict[str, float]]:
    """The state after asking and learning, and what was measured. Its answers are written down, and the prompts that
    are solved join the `retired`.
    """
    settings, algorithm = session.settings, session.algorithm
    answers, _, means = ask(session, state, index, retired, progress)
    key = jax.random.fold_in(jax.random.key(settings.seed), index)
    state, measured = grpo.learn(algorithm, state, answers, key, progress)
    metrics = {name: float(value) for name, value in measured.items()}
    metrics |= {"learning_rate": learning_rate(state), "sampling/programs": programs()}
    if settings.retire is not None:
        solved = [place for place, mean in means.items() if mean >= settings.retire]
        retired |= set(solved)
        record.retire(index + 1, solved)
        metrics["retired_prompts"] = len(retired)
    rows = list(answer_rows(algorithm.reward, *progress.answered))
    record.completions(index + 1, rows, store.own() if store.number() > 1 else None)
    return state, metrics | progress.finish_step(metrics)


def used_up(session: Session, retired: set[int]) -> bool:
    """Whether so many prompts have been retired that the others do not fill a step."""
    return bool(retired) and len(session.questions.examples) - len(retired) < session.settings.prompts


def evaluate(session: Session, params: Params, progress: Progress, done: int) -> dict[str, float]:
    """The mean rewards of greedy answers to held-out prompts; nothing where there are none."""
    if session.exam is None:
        return {}
    count, parts = len(session.exam.examples), prompt_parts(session.mesh)
    filled = math.ceil(count / parts) * parts  # the devices share prompts evenly: the first are asked again
    prompts, examples = session.exam.choose([place % count for place in range(filled)])
    sample = session.algorithm.sample
    if isinstance(sample, Sampler):  # another engine answers as it does in training
        sample = greedy(sample).with_room(session.model.policy, prompts, parts)
    with progress.phase("evaluating"):
        prompts = place_prompts(prompts, session.mesh)
        rollouts = jax.block_until_ready(sample(session.model.policy, params, prompts, jax.random.key(0)))
    tokens, mix = chosen_tokens(rollouts), session.algorithm.reward
    responses = [[session.model.tokenizer.decode(ids) for ids in group] for group in tokens]
    own = [examples[place] for place in host_places(session.mesh, len(examples))]
    rewards_pGR = score(mix, own, responses, tokens, done)
    described = describe_rewards(everywhere(from_hosts(rewards_pGR, session.mesh))[:count], mix)
    means = {name: value for name, value in described.items() if name == "reward" or name.endswith("/mean")}
    listed = ", ".join(f"{name} {means[f'rewards/{name}/mean']:.3f}" for name in mix.names)
    progress.finish("evaluating", f"{count} held-out prompts: reward {means['reward']:.3f} ({listed})")
    return {f"eval/{name}": value for name, value in means.items()}


def answer_rows(mix: Mix, examples: Sequence[Example], responses, rewards_PGR, advantages) -> Iterator[dict[str, Any]]:
    """One row for each answer: what was asked and said, every reward, and the advantage it got."""
    advantages = np.asarray(advantages)
    for p, example in enumerate(examples):
        for g, response in enumerate(responses[p]):
            parts = {f"rewards/{name}": rewards_PGR[p, g, r].item() for r, name in enumerate(mix.names)}
            row = {"prompt": example.prompt, "answer": example.answer, "completion": response}
            yield row | parts | {"advantage": advantages[p, g].tolist()}


def learning_rate(state: TrainState) -> float:
    """The rate of the last optimiser step; NaN for an optimiser that does not tell."""
    found = (value for _, value in optax.tree_utils.tree_get_all_with_path(state.opt_state, "learning_rate"))
    return next((float(value) for value in found if isinstance(value, jax.Array)), float("nan"))


def introduction(session: Session, state: TrainState, path: Path) -> str:
    """What is about to happen, in numbers."""
    settings, algorithm = session.settings, session.algorithm
    size = sum(array.size for array in jax.tree.leaves(state.params))
    kl = algorithm.objective.kl if algorithm.objective.needs_reference else None
    sampler = algorithm.sample
    responses = sampler.responses if isinstance(sampler, Sampler) else 1
    return (
        f"{size / 1e6:.1f} M parameters on {session.mesh.size} {session.mesh.devices.flat[0].platform} device(s);"
        f" {len(session.questions.examples)} training prompts,"
        f" {len(session.exam.examples) if session.exam else 'no'} held-out ones\n"
        f"{settings.prompts} prompts a step, {algorithm.minibatches} optimiser step(s) each;"
        f" {'no reference policy, as there is no KL term' if kl is None else f'KL coefficient {kl.coefficient}'}\n"
        f"{layout_table(session.mesh, jax.process_count(), algorithm.policy, state, settings.prompts, responses)}\n"
        f"{'resuming at' if int(state.step) else 'from'} step {int(state.step)} to {settings.steps}, into {path}"
    )


def conclusion(record: Record, progress: Progress) -> str:
    """First against last, and where everything is."""
    rewards, held_out = (
        [row[name] for row in record.history if row.get(name) is not None] for name in ("reward", "eval/reward")
    )
    few = min(3, len(rewards))
    first, last = (np.mean(part) for part in (rewards[:few], rewards[-few:]))
    text = f"reward {first:.3f} -> {last:.3f} (mean of the first and of the last {few} steps)"
    if len(held_out) > 1:
        text += f"; held-out reward {held_out[0]:.3f} -> {held_out[-1]:.3f}"
    return f"{text}\ndone in {progress.elapsed()}; metrics, answers and checkpoints are in {record.path}"
