"""`grpo-jax bench rollout`: how fast this machine samples, next to what its arithmetic and memory would allow."""

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import jax
import numpy as np

from grpo_jax.commands.bench.command import TOLD, Subject, attention_cost, matrix_sizes, median_seconds, random_prompts
from grpo_jax.commands.bench.roof import matmul_rate, memory_rate
from grpo_jax.devices.mesh import mesh_of
from grpo_jax.learner.update import microbatch_logprobs
from grpo_jax.models import Shape
from grpo_jax.rollout import Sampler, programs, stages
from grpo_jax.rollout.sizes import prefix_length
from grpo_jax.structs import Params, Policy, Prompts, Rollouts


@dataclass(frozen=True)
class Roof:
    """The shortest time that arithmetic and memory bandwidth allow for the two phases of a rollout."""

    prefill_s: float
    decode_s: float


def check(arguments: argparse.Namespace, subject: Subject) -> None:
    """Refuses more positions than the model has, and more cache than there is memory."""
    build_sampler(arguments, subject.shape).check_room(subject.policy, random_prompts(arguments, subject.shape))


def measure(arguments: argparse.Namespace, subject: Subject) -> tuple[dict[str, float], str]:
    """The figures, and a table of them for people."""
    shape, dtype = subject.shape, subject.dtype
    matmul, memory = matmul_rate(dtype) * jax.device_count(), memory_rate() * jax.device_count()
    rates = f"matrix product {matmul / 1e9:.0f} GFLOP/s, memory {memory / 1e9:.1f} GB/s"
    TOLD.info("%s; compiling and sampling ...", rates)
    prompts, sampler = random_prompts(arguments, shape), build_sampler(arguments, shape)
    figures = time_rollouts(arguments, sampler, subject.policy, subject.params, prompts)
    roof = find_roof(shape, arguments, figures["tokens"], dtype, matmul, memory)
    figures |= {
        "roof_tokens_per_s": figures["tokens"] / (roof.prefill_s + roof.decode_s),
        "matmul_flop_per_s": matmul,
        "memory_bytes_per_s": memory,
    }
    figures["roof_fraction"] = figures["rollout_tokens_per_s"] / figures["roof_tokens_per_s"]
    return figures, table(figures, roof)


def build_sampler(arguments: argparse.Namespace, shape: Shape) -> Sampler:
    """A sampler whose responses all have full length, as no token ends them. With `--mean-tokens` they end at random,
    after so many tokens on average, as one token in so many ends them.
    """
    T, mean, V = arguments.response_tokens, arguments.mean_tokens, shape.vocabulary
    ends = [V] if mean is None else np.random.default_rng(0).permutation(V)[: max(1, V // mean)].tolist()
    return Sampler(tuple(ends), responses=arguments.responses, max_tokens=T, int8_cache=arguments.int8_cache)


def time_rollouts(
    arguments: argparse.Namespace, sampler: Sampler, policy: Policy, params: Params, prompts: Prompts
) -> dict[str, float]:
    """The median times of `--repeat` rollouts. Each has run once before, so nothing is compiled meanwhile."""
    begun, mesh = time.perf_counter(), mesh_of(prompts)
    tokens = []

    def rollout(key: int) -> None:
        rollouts = jax.block_until_ready(sampler(policy, params, prompts, jax.random.key(key)))
        tokens.append(int(np.asarray(rollouts.action_PGT).sum()))

    def prefill(key: int) -> None:
        P, L = prompts.tokens_PL.shape
        key_PG = jax.random.split(jax.random.key(key), (P, sampler.responses))
        shape = (prefix_length(L), sampler.responses, 1)
        last_PD, *_ = stages.read(policy, params, prompts, shape, sampler.int8_cache, mesh)
        served = policy.serve(params)
        rows = stages.begin(policy, sampler.distribution, served, None, last_PD, key_PG, 1, 1, mesh)
        jax.block_until_ready(rows)

    rollout(1)
    first = time.perf_counter() - begun
    prefill(0)
    prefill_s = median_seconds(prefill, arguments.repeat)
    if arguments.mean_tokens is not None:  # other lengths need other programs
        median_seconds(rollout, arguments.repeat)
    tokens.clear()
    rollout_s = median_seconds(rollout, arguments.repeat)
    figures = {"rollout_s": rollout_s, "prefill_s": prefill_s, "decode_s": rollout_s - prefill_s}
    if arguments.mean_tokens is not None:
        TOLD.info("for comparison, decoding every row to the last position in a full cache ...")
        figures["to_the_cap_s"] = prefill_s + to_the_cap(sampler, policy, params, prompts, arguments.repeat)
    if sampler.int8_cache:
        figures |= logprob_gap(policy, params, sampler(policy, params, prompts, jax.random.key(0)))
    count = statistics.fmean(tokens)
    return figures | {
        "tokens": count,
        "rollout_tokens_per_s": count / rollout_s,
        "compile_s": first - rollout_s,
        "programs": programs(),
    }


def logprob_gap(policy: Policy, params: Params, rollouts: Rollouts) -> dict[str, float]:
    """How far the sampler's log-probs are from those that training computes, in nats."""
    exact_PGT = microbatch_logprobs(policy, params, rollouts, None)
    gap = np.abs(np.asarray(exact_PGT - rollouts.logprobs_PGT))[np.asarray(rollouts.action_PGT)]
    return {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max())}


def to_the_cap(sampler: Sampler, policy: Policy, params: Params, prompts: Prompts, repeat: int) -> float:
    """The seconds of decoding without stages: every row for `max_tokens` steps, in a cache of that length."""
    (P, L), mesh = prompts.tokens_PL.shape, mesh_of(prompts)
    T, distribution = sampler.max_tokens, replace(sampler.distribution, min_tokens=sampler.max_tokens)
    served, key_PG = policy.serve(params), jax.random.split(jax.random.key(0), (P, sampler.responses))
    shape = (prefix_length(L), sampler.responses, T)

    def decode(steps: int) -> float:
        last_PD, shared, own = stages.read(policy, params, prompts, shape, sampler.int8_cache, mesh)
        rows = stages.begin(policy, distribution, served, None, last_PD, key_PG, T, T, mesh)
        jax.block_until_ready((own, rows))
        begun = time.perf_counter()
        until = stages.Until(cursor=steps, prompts=-1, width=1, free=P + 1)
        jax.block_until_ready(stages.decode(policy, distribution, served, shared, own, rows, T, until, mesh))
        return time.perf_counter() - begun

    decode(2)  # compiles
    return statistics.median(decode(T) for _ in range(repeat))


def find_roof(
    shape: Shape, arguments: argparse.Namespace, tokens: float, dtype: np.dtype, matmul: float, memory: float
) -> Roof:
    """The time of each phase by arithmetic or by memory, whichever is longer, if nothing is computed or read twice."""
    P, G, L = arguments.prompts, arguments.responses, arguments.prompt_tokens
    T = tokens / (P * G)
    body, head = matrix_sizes(shape)
    scores = attention_cost(shape)
    position = 2 * shape.layers * shape.kv_heads * shape.channels * dtype.itemsize  # bytes of keys and values
    weights = (body + head) * dtype.itemsize
    prefill = max((P * L * (2 * body + scores * L / 2) + 2 * P * head) / matmul, weights / memory)
    arithmetic = P * G * T * (2 * (body + head) + scores * (L + T / 2)) / matmul
    traffic = (T * (weights + P * L * position) + P * G * T * T / 2 * position) / memory
    return Roof(prefill, max(arithmetic, traffic))


def table(figures: dict[str, float], roof: Roof) -> str:
    """The figures as a table for people."""
    cap, gap = figures.get("to_the_cap_s"), figures.get("logprob_gap_mean")
    more = "" if cap is None else f"\nto the cap{cap:8.2f} s   the rollout took {figures['rollout_s'] / cap:.2f} of it"
    if gap is not None:
        more += f"\nlog-probs {gap:8.4f} nats from the trainer's on average, at most {figures['logprob_gap_max']:.4f}"
    return (
        f"rollout   {figures['rollout_tokens_per_s']:8.0f} tokens/s   {figures['rollout_s']:7.2f} s for"
        f" {figures['tokens']:.0f} tokens\n"
        f"  prefill {figures['prefill_s']:8.2f} s   (roof {roof.prefill_s:.2f} s)\n"
        f"  decode  {figures['decode_s']:8.2f} s   (roof {roof.decode_s:.2f} s)\n"
        f"roof      {figures['roof_tokens_per_s']:8.0f} tokens/s   reached {figures['roof_fraction']:.2f} of it\n"
        f"compiling {figures['compile_s']:8.1f} s   {figures['programs']} program(s){more}"
    )
