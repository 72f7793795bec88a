"""`grpo-jax bench`: how fast this machine samples, next to what its own arithmetic and memory would allow."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.config import ConfigError
from grpo_jax.logprobs import token_logprobs
from grpo_jax.models import SHAPES, Shape, decoder_policy, load
from grpo_jax.rollout import Sampler, programs, stages
from grpo_jax.rollout.plan import prefix_length
from grpo_jax.runtime.cache import keep_programs
from grpo_jax.runtime.roof import matmul_rate, memory_rate
from grpo_jax.runtime.sharding import Layout, place_prompts, weight_shardings
from grpo_jax.structs import Params, Policy, Prompts, Rollouts


@dataclass(frozen=True)
class Roof:
    """The least seconds that arithmetic and memory leave to the two phases of a rollout."""

    prefill_s: float
    decode_s: float


def run(arguments: argparse.Namespace) -> int:
    """Prints the figures, and writes them to a file if asked; the exit code."""
    keep_programs()
    try:
        policy, shape, params, kind = load_model(arguments)
        sampler = build_sampler(arguments, shape)
        prompts = random_prompts(arguments, shape)
        sampler.check_room(policy, prompts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(f"{describe(arguments, params, kind)}\nmeasuring the machine ...", flush=True)
    matmul, memory = matmul_rate(kind) * jax.device_count(), memory_rate() * jax.device_count()
    print(f"matrix product {matmul / 1e9:.0f} GFLOP/s, memory {memory / 1e9:.1f} GB/s; compiling and sampling ...")
    figures = measure(arguments, sampler, policy, params, prompts)
    roof = find_roof(shape, arguments, figures["tokens"], kind, matmul, memory)
    figures |= {
        "roof_tokens_per_s": figures["tokens"] / (roof.prefill_s + roof.decode_s),
        "matmul_flop_per_s": matmul,
        "memory_bytes_per_s": memory,
    }
    figures["roof_fraction"] = figures["rollout_tokens_per_s"] / figures["roof_tokens_per_s"]
    print(table(figures, roof))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures | {"arguments": plain(arguments)}, indent=1) + "\n")
    return 0


def load_model(arguments: argparse.Namespace) -> tuple[Policy, Shape, Params, Any]:
    """The policy, its shape, its parameters, and the type of its activations."""
    mesh = Layout().mesh()
    kind, name = arguments.dtype, arguments.model.removeprefix("random:")
    if name == arguments.model:
        model = load(name, activations=kind)
        return model.policy, model.shape, model.params(mesh), jnp.dtype(kind)
    if name not in SHAPES:
        raise ValueError(f"There is no shape {name!r} for random weights; there are {', '.join(SHAPES)}.")
    policy = decoder_policy(SHAPES[name], jnp.dtype(kind))
    layout = weight_shardings(jax.eval_shape(policy.init, jax.random.key(0)), mesh)
    return policy, SHAPES[name], jax.jit(policy.init, out_shardings=layout)(jax.random.key(0)), jnp.dtype(kind)


def build_sampler(arguments: argparse.Namespace, shape: Shape) -> Sampler:
    """One that never ends early, or at random after `--mean-tokens` on average, as one token in so many is an end."""
    T, mean, V = arguments.response_tokens, arguments.mean_tokens, shape.vocabulary
    ends = [V - 1] if mean is None else np.random.default_rng(0).permutation(V)[: max(1, V // mean)].tolist()
    return Sampler(
        tuple(ends),
        responses=arguments.responses,
        max_tokens=T,
        min_tokens=T if mean is None else 0,
        int8_cache=arguments.int8_cache,
    )


def random_prompts(arguments: argparse.Namespace, shape: Shape) -> Prompts:
    """Prompts of random tokens, all of the same length."""
    size = (arguments.prompts, arguments.prompt_tokens)
    tokens_PL = np.random.default_rng(0).integers(0, shape.vocabulary, size).astype(np.int32)
    prompts = Prompts(tokens_PL, np.ones(size, bool))
    return prompts if jax.device_count() == 1 else place_prompts(prompts, Layout().mesh())


def measure(arguments: argparse.Namespace, sampler: Sampler, policy: Policy, params: Params, prompts: Prompts):
    """Medians over `--repeat` rollouts, each of which has run before, so that nothing is compiled meanwhile."""
    begun = time.perf_counter()
    tokens = []

    def rollout(key: int) -> None:
        rollouts = jax.block_until_ready(sampler(policy, params, prompts, jax.random.key(key)))
        tokens.append(int(np.asarray(rollouts.action_PGT).sum()))

    def prefill(key: int) -> None:
        P, L = prompts.tokens_PL.shape
        key_PG = jax.random.split(jax.random.key(key), (P, sampler.responses))
        shape = (prefix_length(L), sampler.responses, 1)
        last_PD, *_ = stages.read(policy, params, prompts, shape, sampler.int8_cache, None)
        served = policy.serve(params)
        rows = stages.begin(policy, sampler.distribution, served, None, last_PD, key_PG, 1, 1, None)
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
        print("for comparison, every row to the cap in a full cache ...", flush=True)
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
    exact_PGT, _ = jax.jit(partial(token_logprobs, policy))(params, rollouts)
    gap = np.abs(np.asarray(exact_PGT - rollouts.logprobs_PGT))[np.asarray(rollouts.action_PGT)]
    return {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max())}


def to_the_cap(sampler: Sampler, policy: Policy, params: Params, prompts: Prompts, repeat: int) -> float:
    """Seconds of decoding without stages: one cache of `max_tokens`, every row until then."""
    P, L = prompts.tokens_PL.shape
    T, distribution = sampler.max_tokens, replace(sampler.distribution, min_tokens=sampler.max_tokens)
    served, key_PG = policy.serve(params), jax.random.split(jax.random.key(0), (P, sampler.responses))
    shape = (prefix_length(L), sampler.responses, T)

    def decode(turns: int) -> float:
        last_PD, shared, own = stages.read(policy, params, prompts, shape, sampler.int8_cache, None)
        rows = stages.begin(policy, distribution, served, None, last_PD, key_PG, T, T, None)
        jax.block_until_ready((own, rows))
        begun = time.perf_counter()
        until = stages.Until(cursor=turns, pieces=-1, width=1, free=P + 1)
        jax.block_until_ready(stages.decode(policy, distribution, served, shared, own, rows, T, until, 1))
        return time.perf_counter() - begun

    decode(2)  # compiles
    return statistics.median(decode(T) for _ in range(repeat))


def median_seconds(work: Callable[[int], None], repeat: int) -> float:
    """The median of a few runs, each with its own number."""
    seconds = []
    for index in range(repeat):
        begun = time.perf_counter()
        work(index + 1)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def find_roof(
    shape: Shape, arguments: argparse.Namespace, tokens: float, kind: np.dtype, matmul: float, memory: float
) -> Roof:
    """The larger of the arithmetic and the memory floor of each phase, if nothing were computed or read twice."""
    P, G, L = arguments.prompts, arguments.responses, arguments.prompt_tokens
    T = tokens / (P * G)
    head = shape.vocabulary * shape.width
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.channels
    body = shape.layers * shape.width * (heads + 3 * shape.feedforward)
    scores = 4 * shape.layers * shape.heads * shape.channels  # FLOP to attend to one position
    position = 2 * shape.layers * shape.kv_heads * shape.channels * kind.itemsize  # bytes of keys and values
    weights = (body + head) * kind.itemsize
    prefill = max((P * L * (2 * body + scores * L / 2) + 2 * P * head) / matmul, weights / memory)
    arithmetic = P * G * T * (2 * (body + head) + scores * (L + T / 2)) / matmul
    traffic = (T * (weights + P * L * position) + P * G * T * T / 2 * position) / memory
    return Roof(prefill, max(arithmetic, traffic))


def describe(arguments: argparse.Namespace, params: Params, kind: np.dtype) -> str:
    """What is measured, for people."""
    size = sum(array.size for array in jax.tree.leaves(params))
    mean = "" if arguments.mean_tokens is None else f", ending at random after {arguments.mean_tokens} on average"
    return (
        f"{arguments.model}: {size / 1e6:.1f} M parameters, {kind.name}, on {jax.device_count()}"
        f" {jax.devices()[0].device_kind} device(s), JAX {jax.__version__}\n{arguments.prompts} prompts of"
        f" {arguments.prompt_tokens} tokens, {arguments.responses} responses of {arguments.response_tokens}{mean};"
        f" median of {arguments.repeat}"
    )


def table(figures: dict[str, float], roof: Roof) -> str:
    """The figures for people."""
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


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON has them."""
    return {name: value for name, value in vars(arguments).items() if isinstance(value, str | int | None)}
