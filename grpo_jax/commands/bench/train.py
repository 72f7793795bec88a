"""`grpo-jax bench train` and `bench step`: how fast this machine learns, and how much of its arithmetic is useful."""

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.algorithm import Algorithm
from grpo_jax.commands.bench.command import TOLD, Subject, attention_cost, matrix_sizes, median_seconds, random_prompts
from grpo_jax.commands.bench.rollout import build_sampler
from grpo_jax.commands.bench.roof import matmul_rate
from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import place_prompts
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.grpo import init, step
from grpo_jax.learner import learn
from grpo_jax.learner.update import check_split
from grpo_jax.models import Shape
from grpo_jax.objectives import credit, scored_of, verifiable
from grpo_jax.optimizers import adamw
from grpo_jax.rewards import Example
from grpo_jax.structs import Rollouts, Scored, TrainState


def check(arguments: argparse.Namespace, subject: Subject) -> None:
    """Refuses more positions than the model has, and prompts that the devices cannot share."""
    check_split(build_algorithm(arguments, subject), arguments.prompts, arguments.responses, mesh_of(subject.params))
    length = arguments.prompt_tokens + arguments.response_tokens
    if length > subject.policy.max_positions:
        raise ValueError(
            f"{arguments.prompt_tokens} + {arguments.response_tokens} tokens need {length} positions;"
            f" the model has {subject.policy.max_positions}."
        )


def measure(arguments: argparse.Namespace, subject: Subject) -> tuple[dict[str, float], str]:
    """The figures, and a table of them for people. The matrix product is measured before and after."""
    before = matmul_rate(subject.dtype)
    TOLD.info("matrix product %.0f GFLOP/s; compiling and learning ...", before / 1e9)
    algorithm = build_algorithm(arguments, subject)
    state = init(algorithm, subject.params)
    mesh = mesh_of(subject.params)
    if mesh is not None:
        state = jax.device_put(state, weight_shardings(state, mesh))
    time_one = time_steps if arguments.what == "step" else time_updates
    figures = time_one(arguments, algorithm, state, subject)
    matmul = (before + matmul_rate(subject.dtype)) / 2 * jax.device_count()
    figures |= {"matmul_flop_per_s": matmul, "peak_bytes": float(peak_bytes())}
    if arguments.what == "train":
        figures["mfu"] = figures["useful_flop"] / figures["train_step_s"] / matmul
    return figures, table(arguments, figures)


def build_algorithm(arguments: argparse.Namespace, subject: Subject) -> Algorithm:
    """The default objective and AdamW; the rewards of `bench step` are random.

    Without --mean-tokens no response of a benchmark ends. The default objective gives truncated responses no reward and
    would learn nothing, so its shaping is left out.
    """
    random = np.random.default_rng(0)

    def reward(example: Example, response: str) -> float:
        return float(random.random())

    sampler = build_sampler(arguments, subject.shape)
    optimizer = adamw(learning_rate=1e-12, warmup_steps=0)  # every run learns the same, so none compiles a new size
    objective = replace(verifiable(), shaping=())
    return Algorithm(
        subject.policy, sampler, str, reward, objective, optimizer, responses_at_once=arguments.responses_at_once
    )


def random_answers(arguments: argparse.Namespace, subject: Subject, algorithm: Algorithm) -> tuple[Rollouts, Scored]:
    """Rollouts of random tokens, with random rewards: of full length, or of random lengths with `--mean-tokens`."""
    P, G, T = arguments.prompts, arguments.responses, arguments.response_tokens
    random = np.random.default_rng(0)
    length_PG = np.full((P, G), T)
    if arguments.mean_tokens is not None:
        length_PG = np.minimum(random.geometric(1 / arguments.mean_tokens, (P, G)), T)
    valid_PGT = np.arange(T)[None, None] < length_PG[:, :, None]
    prompts = random_prompts(arguments, subject.shape)
    arrays = (
        random.integers(0, subject.shape.vocabulary, (P, G, T)).astype(np.int32),
        valid_PGT,
        valid_PGT,
        np.full((P, G, T), -10.0, np.float32),
        np.zeros((P, G, T), np.float32),
        np.ones((P, G), bool),
        random.normal(size=(P, G)).astype(np.float32),
    )
    mesh = mesh_of(prompts)
    *parts, rewards_PG = arrays if mesh is None else place_prompts(arrays, mesh)
    parts, rewards_PG = [jnp.asarray(a) for a in parts], jnp.asarray(rewards_PG)
    rollouts = Rollouts(prompts, *parts, distribution=build_sampler(arguments, subject.shape).distribution)
    return rollouts, scored_of(rewards_PG[:, :, None], jnp.ones(1), rollouts)


def time_updates(
    arguments: argparse.Namespace, algorithm: Algorithm, state: TrainState, subject: Subject
) -> dict[str, float]:
    """The median times of `--repeat` updates after the first, which compiles."""
    batch = credit(algorithm.objective, *random_answers(arguments, subject, algorithm), jax.random.key(0))
    states = [state]
    padding = []

    def once(_: int) -> None:
        states[0], metrics = jax.block_until_ready(learn(algorithm, states[0], batch))
        padding.append(float(metrics["padding_frac"]))

    compile_s, train_step_s = first_and_median(once, arguments.repeat)
    length_PG = np.asarray(batch.rollouts.valid_PGT).sum(axis=2)
    tokens = arguments.prompts * arguments.prompt_tokens + int(length_PG.sum())
    return {
        "train_step_s": train_step_s,
        "train_tokens_per_s": tokens / train_step_s,
        "tokens": float(tokens),
        "useful_flop": useful_flop(subject.shape, arguments, length_PG),
        "padding_frac": padding[0],
        "compile_s": compile_s,
    }


def time_steps(
    arguments: argparse.Namespace, algorithm: Algorithm, state: TrainState, subject: Subject
) -> dict[str, float]:
    """The median times of `--repeat` whole steps (sampling, scoring, learning) after the first, which compiles."""
    prompts = random_prompts(arguments, subject.shape)
    examples = [Example("", "")] * arguments.prompts
    states = [state]
    measured: dict[str, Any] = {}

    def whole(_: int) -> None:
        states[0], metrics = step(algorithm, states[0], prompts, examples, jax.random.key(0))
        measured.update(metrics)

    compile_s, step_s = first_and_median(whole, arguments.repeat)
    tokens = arguments.prompts * arguments.responses * float(measured["completions/mean_length"])
    return {"step_s": step_s, "step_tokens_per_s": tokens / step_s, "tokens": tokens, "compile_s": compile_s}


def first_and_median(work: Callable[[int], None], repeat: int) -> tuple[float, float]:
    """The median time of some calls, and before it the time that the first call, which compiles, takes beyond that."""
    begun = time.perf_counter()
    work(0)
    first = time.perf_counter() - begun
    median = median_seconds(work, repeat)
    return first - median, median


def useful_flop(shape: Shape, arguments: argparse.Namespace, length_PG: np.ndarray) -> float:
    """FLOP of one forward and backward pass with nothing computed twice: 6 for each weight and token, 3 times
    attention. The head sees response tokens only, and a prompt is read once for its group.
    """
    body, head = matrix_sizes(shape)
    L, prompts, tokens = arguments.prompt_tokens, arguments.prompts, float(length_PG.sum())
    pairs = prompts * L * L / 2 + float((length_PG * (L + length_PG / 2)).sum())
    return 6 * (body * (prompts * L + tokens) + head * tokens) + 3 * attention_cost(shape) * pairs


def peak_bytes() -> int:
    """The peak memory of one device; on a CPU, that of this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats) and all("peak_bytes_in_use" in stat for stat in stats):
        return max(stat["peak_bytes_in_use"] for stat in stats)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(arguments: argparse.Namespace, figures: dict[str, float]) -> str:
    """The figures as a table for people."""
    memory = f"memory    {figures['peak_bytes'] / 1e9:8.1f} GB at most\ncompiling {figures['compile_s']:8.1f} s"
    if arguments.what == "step":
        return f"step      {figures['step_s']:8.2f} s   {figures['step_tokens_per_s']:.0f} new tokens/s\n{memory}"
    return (
        f"learning  {figures['train_step_s']:8.2f} s   {figures['train_tokens_per_s']:.0f} tokens/s\n"
        f"useful    {figures['useful_flop'] / figures['train_step_s'] / 1e9:8.0f} GFLOP/s   {figures['mfu']:.2f} of the"
        f" matrix product's {figures['matmul_flop_per_s'] / 1e9:.0f}\n"
        f"padding   {figures['padding_frac']:8.2f} of the positions\n{memory}"
    )
